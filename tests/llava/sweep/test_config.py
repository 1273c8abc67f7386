"""What the YAML of a sweep may say; what would be ignored or end in a traceback is refused."""

import itertools
import json

import pytest
import yaml

from llava.errors import ConfigError, UsageError
from llava.sweep.kinds import KINDS
from llava.sweep.plan import load_run, save_run
from llava.sweep.run import main
from llava.sweep.space import check_names
from llava.sweep.step import file_name

SWEEP = {
    "name": "small",
    "run_dir": "runs/small",
    "llm": "llm",
    "representations": ["clip336", "dinov2", "clip336+dinov2"],
    "stage1": {},
    "stage2": {},
    "correspondence": {"data": "pairs"},
    "alignment": {"law": "nll", "nll": {}},
    "evaluation": {"tasks": ["quiz"]},
}


def loaded(folder, run_dir=None, **changes):
    """The sweep above with some keys changed."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP | changes))
    return load_run(path, run_dir)


def step(name="world", **changes):
    return {"name": name, "command": "--version"} | changes


def prepare(*steps):
    return {"prepare": list(steps)}


def launch(**changes):
    return {"launch": changes}


def policy(**changes):
    return {"policy": changes}


WRONG = {
    "a kind of ours": (prepare(step("c-score")), "step 'c-score': the sweep has steps of that"),
    "the report": ({"finish": [step("report")]}, "step 'report': the sweep has steps of that name"),
    "the job that goes on": (prepare(step("continue")), "step 'continue': the sweep has steps"),
    "no such kind": (
        launch(gpus_per_step={"stage_2": 8}),
        "gpus_per_step: unknown kind of step 'stage_2'; did you mean 'stage2'",
    ),
    "a prepare step": (launch(gpus_per_step={"world": 2}), "unknown kind of step 'world'"),
    "no GPUs": (launch(gpus_per_step={"stage1": 0}), "stage1: expected 1 or more, got 0"),
    "GPUs for features": (
        launch(gpus_per_step={"features": 8}),
        "features takes one GPU; expected some of stage1, nll, dump, stage2, evaluate",
    ),
    "GPUs for C": (launch(gpus_per_step={"c-score": 8}), "c-score takes no GPU"),
    "GPUs below none": (launch(gpus=-1), "gpus: expected 0 or more, got -1"),
    "nothing at once": (launch(at_once=0), "at_once: expected 1 or more, got 0"),
    "runs of a stage 2 of all": (
        policy(stage2="all", most_stage2=3),
        "most_stage2: without effect beside stage2: all; leave it out, or say stage2: policy",
    ),
    "rounds of all": (policy(stage2="all", at_once=2), "at_once: without effect beside stage2"),
    "flags of nobody": (policy(stage2="all", flags={"seed": 1}), "flags: without effect"),
    "first of all": (policy(first=["dinov2"]), "first: without effect beside stage1: all"),
    "most of all": (policy(most_stage1=3), "most_stage1: without effect beside stage1: all"),
    "fewer than the encoders": (
        policy(stage1="policy", most_stage1=1),
        "policy: most_stage1: 1, but 2 get A scores before the policy is asked",
    ),
    "fewer than the first": (
        policy(stage1="policy", most_stage1=1, first=["dinov2", "clip336"]),
        "most_stage1: 1, but 2 get A",
    ),
    "the run folder": (prepare(step(folder=".")), r"world: folder '\.': expected a path in the"),
    "a folder of ours": (prepare(step(folder="./stage2")), "is the sweep's own; expected another"),
    "where logs go": (prepare(step(folder="steps/a")), "folder 'steps/a': steps is where logs go"),
    "one folder of two": (
        prepare(step("a", folder="made"), step("b", folder="made/")),
        "b: folder 'made/' and 'made' of a: expected folders apart",
    ),
    "a folder in a folder": (
        {"prepare": [step("a", folder="made/a")], "finish": [step("b", folder="made")]},
        "b: folder 'made' and 'made/a' of a: expected folders apart",
    ),
    "an output without a name": (prepare(step(outputs=[""])), "output '': expected a path in"),
    "the folder as output": (prepare(step(outputs=["."])), r"output '\.': expected a path in the"),
    "two stars": (prepare(step(outputs=["a**b"])), r"expected \*\* alone between slashes"),
    "no words": (prepare(step(command=" ")), "expected one of `command` and `script`"),
    "no run folder": ({"run_dir": ""}, "run_dir: ''; expected a folder"),
    "a folder in itself": ({"run_dir": "{run_dir}/x"}, "expected a folder, which {run_dir} stands"),
}


TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "image_size": 32,
    "patch_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.mark.parametrize("kind", WRONG)
def test_refused(tmp_path, kind):
    changes, message = WRONG[kind]
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, **changes)


def test_every_kind_is_reserved(tmp_path):
    for kind in KINDS:
        with pytest.raises(ConfigError, match=f"step '{kind}': the sweep has steps of that name"):
            loaded(tmp_path, **prepare(step(kind)))


def test_accepted(tmp_path):
    """What is near to the above and means something."""
    loaded(tmp_path, **launch(gpus=0, gpus_per_step={"dump": 2, "evaluate": 8}))
    loaded(tmp_path, **policy(stage1="policy", most_stage1=2, most_stage2=1, at_once=2))
    loaded(tmp_path, **policy(stage1="policy", most_stage1=1, first=["dinov2"]))
    loaded(tmp_path, **prepare(step("a", folder="made/a"), step("b", folder="made/ab")))
    loaded(tmp_path, **prepare(step(outputs=["a/**/b*"], folder="towers")))


# the run folder in the file ----------------------------------------------------------------------

NAMING = {
    "llm": "{run_dir}/llm",
    "stage1": {"data_path": "{run_dir}/a.json", "pairs": ["x={run_dir}/b", "{run_dir}"]},
    "towers": {"tiny/clip": "{run_dir}/towers/clip"},
    "prepare": [
        step(script="make.py --out {run_dir}/world --pair=x={run_dir}/y 'a  b'", command=""),
    ],
}


@pytest.mark.parametrize("given", ["runs/x/", "./runs/x", "runs/../runs//x"])
def test_one_folder_written_in_several_ways(tmp_path, given):
    """A name is what fingerprints and tables hold."""
    assert loaded(tmp_path, given, **NAMING) == loaded(tmp_path, "runs/x", **NAMING)
    assert loaded(tmp_path, **NAMING, run_dir=given) == loaded(tmp_path, "runs/x", **NAMING)


def test_the_folder_one_is_in(tmp_path, monkeypatch):
    """Spelled out: every relative path is in the folder '.'."""
    monkeypatch.chdir(tmp_path)
    assert loaded(tmp_path, ".", **NAMING) == loaded(tmp_path, str(tmp_path), **NAMING)


def test_a_run_folder_with_a_space(tmp_path):
    """The command line is split before the folder is filled in."""
    config = loaded(tmp_path, "my runs/it's x", **NAMING)
    folder = "my runs/it's x"
    assert config.prepare[0].words() == [
        *("make.py", "--out", f"{folder}/world", f"--pair=x={folder}/y", "a  b"),
    ]
    assert config.llm == f"{folder}/llm"


@pytest.mark.parametrize("run_dir", ["runs/x", "my runs/it's x", "small", "/tmp/a"])
def test_the_saved_file_is_the_same_and_can_be_moved(tmp_path, run_dir):
    """Even where the folder is called as the sweep is, and beside paths that begin like it."""
    beside = {"correspondence": {"data": f"{run_dir}2/pairs"}, "report": {"title": f"a{run_dir}"}}
    config = loaded(tmp_path, run_dir, **NAMING, **beside)
    save_run(config, tmp_path / "config.yaml")
    assert load_run(tmp_path / "config.yaml") == config
    moved = loaded(tmp_path, "moved/to", **NAMING, **beside)
    assert load_run(tmp_path / "config.yaml", "moved/to") == moved


def test_a_run_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"name": "x", "steps": [step()]}))
    for place in ("taken", "taken/below"):
        with pytest.raises(UsageError, match=f"{place}: cannot be made .*another --run-dir"):
            main([str(tmp_path / "run.yaml"), "--run-dir", str(tmp_path / place)])


# names of files ----------------------------------------------------------------------------------


def test_names_as_file_names():
    """Those of the hub and of steps stay readable."""
    assert file_name("openai/clip-vit-large-patch14-336") == "openai--clip-vit-large-patch14-336"
    assert file_name("train-features tiny/clip@96 pad") == "train-features+tiny--clip@96+pad"
    assert file_name("rgb/mean@96.tiny/clip") == "rgb--mean@96.tiny--clip"


def test_no_two_names_make_one_file_name():
    """All of four letters of those that are changed, or that others are changed to."""
    letters = "a/-+ .:é"
    names = ["".join(some) for some in itertools.product(letters, repeat=4)]
    names += [end + "x" * 200 + end for end in "ab"] + ["x" * 200, "..", "."]
    made = {name: file_name(name) for name in names}
    assert len(set(made.values())) == len(names)
    assert all(len(name) <= 100 and name.isascii() for name in made.values())
    assert not {"", ".", ".."} & set(made.values())


def test_names_that_differ_in_capitals_only(tmp_path):
    """They would share their folders on some disks."""
    towers = {"tiny/a": "{run_dir}/a", "tiny/A": "{run_dir}/b"}
    config = loaded(tmp_path, representations=list(towers), towers=towers)
    with pytest.raises(UsageError, match="tiny/a and tiny/A differ in capitals only"):
        check_names(config)


def test_a_folder_of_a_representation_may_hold_what_patterns_do(sweep, tmp_path):
    """The tokens of tower `a[1]` are found in their folder."""
    tower = tmp_path / "a[1]"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps(TOWER))
    (tower / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    (tower / "model.safetensors").write_text("weights")
    sweep.change("[clip336, dinov2, clip336+dinov2]", f"['{tower}']")
    sweep.change("references: [clip224]", f"references: ['{tower}']")
    done = sweep.run()
    assert done.returncode == 0, done.stderr
    assert "A_cosine" in {row[1] for row in sweep.table()}


def test_a_moved_run_folder_goes_on_from_its_own_file(sweep, tmp_path):
    """Even where its name has a space, and however it is written."""
    spaced = type(sweep)(tmp_path / "a folder")
    done = spaced.run()
    assert done.returncode == 0, done.stderr
    spaced.run("--run-dir", f"{spaced.run_dir}/")
    assert spaced.commands() == []
    moved = tmp_path / "moved"
    spaced.run_dir.rename(moved)
    spaced.yaml = moved / "config.yaml"
    done = spaced.run("--run-dir", str(moved))
    assert done.returncode == 0, done.stderr
    assert spaced.commands() == []


def test_merged_keys_are_no_flags(sweep):
    sweep.change("stage2: {", "stage2: {<<: {epochs: 1}, ")
    refused = sweep.run()
    assert refused.returncode == 2
    assert "'<<' is not read here; write the keys themselves" in refused.stderr
