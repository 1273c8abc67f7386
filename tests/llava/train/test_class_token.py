"""`--mm_vision_select_feature cls` from end to end: one token stands for an image everywhere."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from tiny import picture
from world import as_flags, launch, losses, stage1, stage2

from llava.errors import LawError, UsageError
from llava.extraction import main as features
from llava.model.builder import load_pretrained_model
from llava.model.likelihood import answer_log_likelihood
from llava.train.train import main as train

CLS = {"mm_vision_select_feature": "cls"}
IDS = torch.tensor([[1, 5, -200, 9, 11, 12]])


def run(flags, output):
    """Trains in this process; the folder."""
    train(flags)
    return output


@pytest.fixture(scope="module")
def pretrained(world, tmp_path_factory):
    """A stage 1 on class tokens."""
    output = tmp_path_factory.mktemp("runs") / "stage1"
    return run(stage1(world, output, **CLS), output)


@pytest.fixture(scope="module")
def finetuned(world, pretrained, tmp_path_factory):
    """Stage 2 after it, and its pictures' pixels."""
    output = tmp_path_factory.mktemp("runs") / "stage2"
    return run(stage2(world, output, pretrained / "mm_projector.bin", **CLS), output)


def answers(folder, base=None):
    """(positions of a prompt with an image, log-likelihood of its last ids, ids that follow)."""
    _, model, processor, _ = load_pretrained_model(str(folder), base, "llava")
    model = model.float()
    pixels = processor([picture(40, 33)])
    labels = IDS.masked_fill(torch.arange(6) < 4, -100)
    embeddings, _, _ = model.embed_prompt(IDS, images=pixels)
    likelihood, count = answer_log_likelihood(
        model, input_ids=IDS, labels=labels, images=pixels, attention_mask=torch.ones_like(IDS)
    )
    said = model.generate(IDS, images=pixels, do_sample=False, max_new_tokens=4)
    assert count.tolist() == [2]
    return embeddings.shape[1], likelihood.item(), said.tolist()


def test_both_stages_learn(pretrained, finetuned):
    """From the class token alone; both configs say what was selected."""
    for folder in (pretrained, finetuned):
        assert losses(folder)[-1] < losses(folder)[0]
        config = json.loads((folder / "config.json").read_text())
        assert config["mm_vision_select_feature"] == "cls"
        assert [spec["select"] for spec in config["mm_vision_specs"]] == ["cls"]


def test_one_token_per_image(world, finetuned):
    """The tower of the loaded run gives hidden_states[-2][:, :1], and says that it is one."""
    _, model, processor, _ = load_pretrained_model(str(finetuned), None, "llava")
    tower = model.get_vision_tower()
    pixels = processor([picture(40, 33), picture(33, 40, 1)])
    import transformers

    whole = transformers.CLIPVisionModel.from_pretrained(world / "clip")
    with torch.no_grad():
        hidden = whole(pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(tower.load_model()(pixels), hidden[:, :1])
    assert (tower.num_patches, tower.num_tokens, processor.num_tokens) == (1, 1, 1)


def test_reload_generates_and_scores(finetuned):
    """Six ids and an image are six positions; answers are finite and the same again."""
    positions, likelihood, said = answers(finetuned)
    assert positions == 6
    assert math.isfinite(likelihood) and likelihood < 0
    assert answers(finetuned) == (positions, likelihood, said)


def test_adapters(world, pretrained, tmp_path):
    """LoRA saves and loads with one token, too."""
    pytest.importorskip("peft")
    flags = CLS | {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "learning_rate": 1e-2}
    folder = tmp_path / "llava-lora"
    run(stage2(world, folder, pretrained / "mm_projector.bin", **flags), folder)
    assert json.loads((folder / "config.json").read_text())["mm_vision_select_feature"] == "cls"
    positions, likelihood, _ = answers(folder, str(world / "llm"))
    assert positions == 6
    assert math.isfinite(likelihood)


def test_packed_is_unpacked(world, tmp_path):
    """All records in one step, in rows of 192 tokens or one by one: the same loss and update."""
    flags = CLS | {"max_steps": 1, "group_by_modality_length": False}
    apart, packed = tmp_path / "apart", tmp_path / "packed"
    run(stage2(world, apart, per_device_train_batch_size=30, **flags), apart)
    run(stage2(world, packed, packing=True, per_device_train_batch_size=100, **flags), packed)
    assert losses(packed) == pytest.approx(losses(apart), rel=1e-5)
    ours = load_file(packed / "model.safetensors")
    for name, tensor in load_file(apart / "model.safetensors").items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=2e-6)


def test_stored_class_tokens(world, tmp_path):
    """Trained from the store to the last bit as with the tower; a store of patches is refused."""
    given = {"images": world / "images", "model": world / "clip"}
    features(as_flags(given | {"out": tmp_path / "patches"}))
    features(as_flags(given | {"out": tmp_path / "store", "select": "cls"}))
    run(stage1(world, tmp_path / "live", **CLS), tmp_path / "live")
    stored = CLS | {"vision_features": "store", "feature_store": tmp_path / "store"}
    run(stage1(world, tmp_path / "stored", **stored), tmp_path / "stored")
    live, again = (tmp_path / way / "mm_projector.safetensors" for way in ("live", "stored"))
    assert live.read_bytes() == again.read_bytes()
    wrong = stored | {"feature_store": tmp_path / "patches"}
    with pytest.raises(LawError, match=r"law features .*--select cls"):
        train(stage1(world, tmp_path / "wrong", **wrong))


def test_check_counts_one(world, tmp_path, capsys):
    """Looked at without training: patches that the tower has, and the one token that is read."""
    with pytest.raises(SystemExit) as stopped:
        train([*stage1(world, tmp_path, **CLS), "--check"])
        raise SystemExit(0)
    said = capsys.readouterr().out
    assert stopped.value.code == 0, said
    assert "4 x 4 patches, of which the class token alone is read" in said
    assert "together 1 token 24 wide; 1 of an image" in said
    assert "Nothing is wrong" in said


def test_a_score(world, pretrained, tmp_path):
    """By likelihood, whatever the batch."""
    given = CLS | {"a_score": True, "a_score_samples": 20}
    given["pretrain_mm_mlp_adapter"] = pretrained / "mm_projector.bin"
    for size in (1, 7):
        train(stage1(world, tmp_path / str(size), per_device_train_batch_size=size, **given))
    one, seven = (json.loads((tmp_path / n / "a_score.json").read_text()) for n in ("1", "7"))
    assert one["nll_sums"] == pytest.approx(seven["nll_sums"], rel=1e-6)
    assert one["n_tokens"] == sum(one["tokens"]) > 0


def test_projector_of_other_tokens(world, pretrained, tmp_path):
    """What learned to read class tokens is not put before patches."""
    with pytest.raises(UsageError, match="mm_vision_select_feature cls, here patch"):
        train(stage2(world, tmp_path, pretrained / "mm_projector.bin"))


def test_combination(world, tmp_path):
    """Two class tokens side by side are one token, as wide as both."""
    name = f"{world / 'clip'}+{world / 'dinov2'}"
    output = run(stage1(world, tmp_path, vision_tower=name, **CLS), tmp_path)
    assert load_file(output / "mm_projector.safetensors")["model.mm_projector.0.weight"].shape[1]
    _, model, processor, _ = load_pretrained_model(str(output), str(world / "llm"), "llava")
    assert (processor.num_tokens, model.config.mm_hidden_size) == (1, 48)


def test_maps_of_tiles_need_patches(world, tmp_path):
    """One token per tile is no map; the error says what to take."""
    tiles = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": "[(32, 64), (64, 64)]"}
    with pytest.raises(UsageError, match=r"needs one token per patch.*take 'flat'"):
        train(stage2(world, tmp_path / "a", mm_patch_merge_type="spatial", **CLS, **tiles))
    run(stage2(world, tmp_path / "b", **CLS, **tiles), tmp_path / "b")


@pytest.mark.slow
def test_two_processes(world, tmp_path):
    """The same projector as one process leaves, up to rounding."""
    one = run(stage1(world, tmp_path / "one", **CLS), tmp_path / "one")
    two = tmp_path / "two"
    launch(stage1(world, two, per_device_train_batch_size=2, **CLS), processes=2)
    found = load_file(two / "mm_projector.safetensors")
    for name, tensor in load_file(one / "mm_projector.safetensors").items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
