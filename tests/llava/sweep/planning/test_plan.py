"""A plan's numbers, against sums worked out by hand."""

import dataclasses
import itertools
import json

import pytest

from llava.costs import cost_models
from llava.errors import UsageError
from llava.model.multimodal_encoder.registry import resolve
from llava.sweep.graph import Sweep
from llava.sweep.planning import Unresolved, as_text, plan, resolved
from llava.sweep.planning.facts import facts

VICUNA = 6_738_415_616
PROJECTOR = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
CLIP = 23 * (2 * 12 * 1024**2 * 577 + 4 * 577**2 * 1024) + 2 * 3 * 14**2 * 1024 * 576
"""FLOPs of CLIP ViT-L/14 at 336 pixels, 23 of its 24 blocks."""
PEAK = 312e12 * 0.4 * 3600


def kind(found, name):
    """A plan's row."""
    return next(row for row in found.kinds if row.name == name)


def planned(config):
    """With its names resolved."""
    return plan(config, *resolved(config))


def test_hours_of_training(sweep):
    """Every factor by hand: tokens, passes, parameters, images, peak."""
    found = planned(sweep(representations=["clip336"]))
    captions = 558_128 * (576 + 24)
    through = 6 * (VICUNA + PROJECTOR) + 2 * PROJECTOR
    stage1 = (captions * through + 558_128 * CLIP) / PEAK
    instructions = 624_610 * (576 + 300) + 40_688 * 300
    stage2 = (instructions * 8 * (VICUNA + PROJECTOR) + 624_610 * CLIP) / PEAK
    assert kind(found, "stage1").most.hours == pytest.approx(stage1)
    assert kind(found, "stage2").most.hours == pytest.approx(stage2)
    mme = 2374 * (2 * VICUNA * (576 + 64 + 16) + CLIP) / (312e12 * 0.1 * 3600)
    assert kind(found, "evaluate").most.hours == pytest.approx(mme)
    nll = 100 * (2 * VICUNA * (576 + 24) + CLIP) / PEAK
    assert kind(found, "nll").most.hours == pytest.approx(nll)
    features = 1800 * CLIP / PEAK
    assert kind(found, "features").most.hours == pytest.approx(features)
    together = stage1 + stage2 + mme + nll + features
    assert found.most.hours == pytest.approx(together)
    assert found.most.days == pytest.approx((stage1 / 8 + stage2 / 8 + mme + nll + features) / 24)


def test_hours_are_near_what_llava_took(sweep):
    """The plan says 99 for both stages; LLaVA's README 8 x (3.5 + 10) = 108."""
    found = planned(sweep(representations=["clip336"]))
    hours = kind(found, "stage1").most.hours + kind(found, "stage2").most.hours
    assert round(hours) == 99
    assert hours == pytest.approx(cost_models()["llava"].total, rel=0.1)
    assert "take 99 A100 hours; its README has 108" in " ".join(as_text(found).split())


def test_disk(sweep):
    """Tokens of every tower once; a projector; weights and optimizer of a checkpoint."""
    found = planned(sweep())
    # clip336, dinov2 alone at 224, and beside clip336 at 336
    tokens = 576 * 1024 + 256 * 1024 + 576 * 1024
    assert kind(found, "features").most.disk == 1800 * tokens * 2
    assert kind(found, "features").most.steps == found.towers == 3
    one = planned(sweep(representations=["clip336"]))
    # bf16 under ZeRO: 2 bytes of weights, 8 of moments, 4 of float32 copies, 2 of gradients
    checkpoint = 16 * (VICUNA + PROJECTOR)
    assert kind(one, "stage2").most.disk == checkpoint + 2 * (VICUNA + PROJECTOR)
    assert kind(one, "stage1").most.disk == 16 * PROJECTOR + 2 * PROJECTOR
    assert one.writing == checkpoint
    never = planned(
        sweep(representations=["clip336"], stage2={"save_strategy": "no"}, stage1={"max_steps": 9})
    )
    assert kind(never, "stage2").most.disk == 2 * (VICUNA + PROJECTOR)
    assert kind(never, "stage1").most.disk == 2 * PROJECTOR


def test_memory(sweep):
    """The largest step: ZeRO-2 on 8 GPUs shards gradients and the optimizer's states."""
    found = planned(sweep(representations=["clip", "clip336"]))
    stage1, stage2 = found.memory
    n = VICUNA + PROJECTOR
    assert stage2.gpus == 8
    assert stage2.parts["weights"] == 2 * n
    assert stage2.parts["gradients"] == pytest.approx(2 * n / 8)
    assert stage2.parts["optimizer"] == pytest.approx(12 * n / 8)
    assert stage2.parts["activations"] == 16 * 2048 * 4096 * (2 * 32 + 34)
    assert stage1.representation == "openai/clip-vit-large-patch14-336"
    assert stage1.parts["activations"] == 32 * (576 + 256) * 4096 * (2 * 32 + 34)
    small = planned(sweep(representations=["clip"], cost={"gpu": "RTX4090"}))
    assert "DOES NOT FIT" in as_text(small)
    lora = planned(sweep(representations=["clip336"], stage2={"lora_enable": True, "lora_r": 128}))
    adapters = 32 * 128 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert lora.memory[1].parts["gradients"] == pytest.approx(2 * (adapters + PROJECTOR) / 8)


def test_steps_and_epochs(sweep):
    """max_steps counts samples by the global batch; epochs multiply."""
    once = planned(sweep(representations=["clip336"]))
    twice = planned(sweep(representations=["clip336"], stage1={"num_train_epochs": 2}))
    steps = {"max_steps": 100, "gradient_accumulation_steps": 2}
    short = planned(sweep(representations=["clip336"], stage1=steps))
    hours = kind(once, "stage1").most.hours
    assert kind(twice, "stage1").most.hours == pytest.approx(2 * hours)
    share = 100 * 32 * 2 * 8 / 558_128
    assert kind(short, "stage1").most.hours == pytest.approx(share * hours)


def test_towers_that_stored_tokens_spare(sweep):
    """With `features` each tower runs once over the images, and no training runs it."""
    config = sweep(
        representations=["clip336"],
        features={"images": "nowhere", "flags": {"dtype": "float16"}},
        cost={"samples": {"features": 1_000_000}},
    )
    stored, plain = planned(config), planned(sweep(representations=["clip336"]))
    row = kind(stored, "train-features")
    assert row.most.hours == pytest.approx(1e6 * CLIP / PEAK)
    assert row.most.disk == 1e6 * 576 * 1024 * 2
    spared = kind(plain, "stage1").most.hours - kind(stored, "stage1").most.hours
    assert spared == pytest.approx(558_128 * CLIP / PEAK)
    assert "tower" in plain.memory[0].parts
    assert stored.memory[0].parts["tower"] == 0


def test_cosine(sweep):
    """References get stage 1 and tokens, and no stage 2; one that is a candidate counts once."""
    cosine = {
        "references": ["clip336", "clip"],
        "benchmarks": ["mme", "mmmu_val"],
        "flags": {"n": 50},
    }
    found = planned(
        sweep(representations=["clip336"], alignment={"law": "cosine", "cosine": cosine})
    )
    assert kind(found, "stage1").most.steps == kind(found, "dump").most.steps == 2
    assert kind(found, "cosine").most.steps == kind(found, "stage2").most.steps == 1
    assert kind(found, "dump").most.disk == 100 * (576 + 256) * 4096 * 2
    # what finetuning all would take has no references
    assert found.saving.all_stage1 == pytest.approx(found.each[0].stage1)
    assert found.saving.all_stage1 < kind(found, "stage1").most.hours


SEVEN = ["clip", "clip336", "openclip", "siglip", "dinov2", "sd1.5", "dit"]


def test_when_the_policy_stops(sweep):
    """One benchmark: 5.125 runs; several: 6; whole rounds; never more than there are or may be."""

    def runs(**changes):
        return kind(
            planned(sweep(**{"representations": SEVEN, **changes})), "stage2"
        ).expected.steps

    assert runs() == 5.125
    assert runs(evaluation={"tasks": ["paper8"]}) == 6
    assert runs(policy={"at_once": 4}) == 7
    assert runs(policy={"at_once": 3}) == 6
    assert runs(policy={"most_stage2": 2}) == 2
    assert runs(representations=SEVEN[:3]) == 3
    assert runs(policy={"stage2": "all"}) == 7


def test_expected_hours_are_those_of_mean_runs(sweep):
    """Before: stage 1 of all; expected: the mean of stage 2 times the runs; most: all."""
    found = planned(sweep(representations=SEVEN))
    stage2 = [each.stage2 for each in found.each]
    row = kind(found, "stage2")
    assert row.before.steps == row.before.hours == 0
    assert row.expected.hours == pytest.approx(5.125 * sum(stage2) / 7)
    assert row.most.hours == pytest.approx(sum(stage2))
    assert (row.least_hours, row.most_hours) == (min(stage2), max(stage2))
    for when in (found.before, found.expected, found.most):
        assert kind(found, "stage1").before.hours <= when.hours
    capped = kind(planned(sweep(representations=SEVEN, policy={"most_stage2": 2})), "stage2")
    assert capped.most.hours == pytest.approx(sum(sorted(stage2)[-2:]))


def test_stage_1_by_the_policy(sweep):
    """The encoders first, then one for each run of stage 2; or the names that `first` has."""
    search = {"encoders": [*SEVEN[:3], "dinov2"], "up_to": 2}
    policy = {"stage1": "policy"}
    flags = {"stage1": {"mm_vision_grid_align": "interpolate"}}
    found = planned(sweep(representations=[], search=search, policy=policy, **flags))
    row = kind(found, "stage1")
    assert (row.before.steps, row.expected.steps, row.most.steps) == (4, 9.125, 10)
    rest = [each.stage1 for each in found.each[4:]]
    grown = row.expected.hours - row.before.hours
    assert grown == pytest.approx(5.125 * sum(rest) / len(rest))
    named = {"stage1": "policy", "first": ["C+D@336", "clip"], "most_stage1": 3}
    found = planned(sweep(representations=[], search=search, policy=named, **flags))
    row = kind(found, "stage1")
    assert (row.before.steps, row.expected.steps, row.most.steps) == (2, 3, 3)


def test_what_the_policy_saves(sweep):
    """Both sums from their parts, also where the sweep itself finetunes all."""
    config = sweep(representations=SEVEN, policy={"stage2": "all"})
    found = planned(config)
    saving = found.saving
    each = found.each
    whole = sum(e.stage1 + e.stage2 + e.evaluate for e in each)
    assert saving.all == pytest.approx(whole)
    scores = sum(kind(found, name).most.hours for name in ("features", "nll"))
    some = 5.125 / 7 * sum(e.stage2 + e.evaluate for e in each)
    assert saving.policy == pytest.approx(scores + sum(e.stage1 for e in each) + some)
    assert saving.share == pytest.approx(1 - saving.policy / whole)
    assert saving.further == pytest.approx(sum(e.stage2 + e.evaluate for e in each) / 7)
    asked = planned(dataclasses.replace(config, policy=sweep().policy))
    assert asked.expected.hours == pytest.approx(saving.policy)
    text = " ".join(as_text(found).split())
    assert f"{100 * saving.share:.1f} % saved. This sweep finetunes all" in text
    assert "3 runs of the 1,023 combinations of 10 encoders: 1,152 of 392,832 GPU hours" in text


@pytest.mark.parametrize(("model", "stage1", "stage2"), [("llava", 28, 80), ("authors", None, 120)])
def test_named_cost_models(sweep, model, stage1, stage2):
    """Figures of a source, the same for every representation; what it does not split is said."""
    found = planned(sweep(representations=SEVEN, cost={"model": model}))
    assert [each.stage1 for each in found.each] == [stage1] * 7
    assert kind(found, "stage2").most.hours == 7 * stage2
    assert found.saving.all_stage1 + found.saving.all_stage2 == 7 * cost_models()[model].total
    assert found.expected.partial == (stage1 is None)
    text = as_text(found)
    assert cost_models()[model].source in " ".join(text.split())
    assert ("cost model authors has no figure" in " ".join(text.split())) == (stage1 is None)


def test_unknown_towers_are_named_and_never_zero(sweep):
    """The tower's own FLOPs are left out by name; a sum without them says that it is more."""
    found = planned(sweep(representations=["clip", "sd3.5"]))
    text = as_text(found)
    said = " ".join(text.split())
    assert "nobody has counted: stabilityai/stable-diffusion-3.5-medium@512" in said
    row = kind(found, "features")
    assert row.unknown == 1
    assert found.before.partial
    assert "before the policy is asked" in text
    assert "> " in text.splitlines()[3]


def test_what_prepare_will_make(sweep, tmp_path):
    """Neither model nor data nor towers are there: steps are counted, hours are not invented."""
    config = sweep(
        run_dir=str(tmp_path),
        llm=f"{tmp_path}/llm",
        representations=["tiny/a", "tiny/b", "tiny/a+tiny/b"],
        towers={"tiny/a": f"{tmp_path}/a", "tiny/b": f"{tmp_path}/b"},
        prepare=[{"name": "world", "script": "make.py"}],
        stage1={"data_path": f"{tmp_path}/a.json"},
        stage2={"data_path": f"{tmp_path}/b.json"},
        correspondence={"data": f"{tmp_path}/pairs"},
        evaluation={"tasks": ["mine"]},
    )
    candidates, _ = resolved(config)
    assert candidates[2] == Unresolved("tiny/a+tiny/b", ("tiny/a", "tiny/b"))
    found = planned(config)
    assert (found.candidates, found.towers) == (3, 2)
    assert kind(found, "stage1").most.steps == 3
    assert found.most.partial
    assert found.most.partial_disk
    text = as_text(found)
    assert text.splitlines()[3].split()[5] == "?"
    for said in ("tiny/a, tiny/b", "stage1: `prepare`", "benchmarks of unknown size: mine"):
        assert said in text
    json.dumps(found.plain())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llm": "lmsys/vicuna-7b"}, "did you mean 'lmsys/vicuna-7b-v1.5'"),
        ({"stage1": {"data_path": "x.json"}}, r"cost: \{samples: \{stage1: N\}\}"),
        ({"correspondence": {"data": "x"}}, r"cost: \{samples: \{correspondence: N\}\}"),
        ({"cost": {"gpu": "A100"}}, "GPU 'A100': expected one of A100-40GB, A100-80GB"),
        ({"cost": {"model": "lava"}}, "cost: unknown model 'lava'; did you mean 'llava'"),
        ({"representations": ["clip336+siglip"]}, "grid_align: interpolate"),
    ],
)
def test_errors_say_what_to_type(sweep, changes, message):
    """Before anything starts."""
    with pytest.raises(UsageError, match=message):
        planned(sweep(**changes))


def test_what_would_stop_the_sweep_stands_on_top(sweep):
    """An image longer than a sample may be; more GPUs than there are."""
    launch = {"gpus": 4, "gpus_per_step": {"stage2": 8}}
    head = as_text(planned(sweep(representations=["sdxl"], launch=launch)))
    top = head.partition("step  ")[0]
    assert "WRONG: stage1: an image alone fills model_max_length 2048: SDXL (2,304 tokens)" in top
    assert "WRONG: stage2 takes 8 GPUs (launch.gpus_per_step) of 4" in top


def test_samples_and_tokens_that_the_yaml_says(sweep):
    """Questions of one's own benchmark, text of one's own data."""
    cost = {"samples": {"mine": 1000}, "tokens": {"stage1": 124}}
    found = planned(
        sweep(representations=["clip336"], evaluation={"tasks": ["mine"], "flags": {"limit": 100}})
    )
    more = planned(sweep(representations=["clip336"], evaluation={"tasks": ["mine"]}, cost=cost))
    hours = [kind(one, "evaluate").most.hours for one in (found, more)]
    assert hours[1] == pytest.approx(10 * hours[0])
    longer = kind(more, "stage1").most.hours - kind(found, "stage1").most.hours
    assert longer * PEAK == pytest.approx(
        558_128 * 100 * (6 * (VICUNA + PROJECTOR) + 2 * PROJECTOR)
    )


def test_a_plan_takes_representations_as_they_are(sweep):
    """Who has resolved them hands them on."""
    found = plan(sweep(), [resolve("clip336")])
    assert [each.shown for each in found.each] == ["CLIP@336"]
    assert facts().runs["ours"].mean > found.saving.runs == 1


def test_one_token_per_image(sweep):
    """Class tokens: plan and features of training count 1 for 576; the command asks for them."""
    flags = {"mm_vision_select_feature": "cls", "mm_vision_select_layer": -2}
    config = sweep(
        representations=["clip336"],
        features={"images": "nowhere", "flags": {"dtype": "float16"}},
        stage1=flags,
        stage2=flags,
        cost={"samples": {"features": 1_000_000}},
    )
    found = planned(config)
    captions = 558_128 * (1 + 24) * (6 * (VICUNA + PROJECTOR) + 2 * PROJECTOR)
    assert kind(found, "stage1").most.hours == pytest.approx(captions / PEAK)
    assert kind(found, "train-features").most.disk == 1e6 * 1 * 1024 * 2
    graph = Sweep(config, lambda name: True, lambda steps: True)
    steps = [step for stage in itertools.islice(graph.stages(), 2) for step in stage]
    (step,) = [step for step in steps if step.kind == "train-features"]
    words = " ".join(step.command)
    assert "--layer -2" in words and "--select cls" in words
