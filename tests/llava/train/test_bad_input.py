"""What users do wrong is said before anything is trained, or counted and left out."""

import json
import shutil

import pytest
import torch
from tiny import save_encoder
from world import losses, stage1, stage2

from llava.errors import LawError
from llava.train.checkpoint import checkpoints
from llava.train.train import main as train


@pytest.fixture(scope="module")
def projector(world, tmp_path_factory):
    """A projector of stage 1, for the CLIP tower."""
    output = tmp_path_factory.mktemp("projector")
    train(stage1(world, output, max_steps=1))
    return output / "mm_projector.bin"


def records(world, name="talks.json"):
    """The world's records, to be spoiled."""
    return json.loads((world / name).read_text())


def write(path, content):
    """A data file of records, or of any text."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def refused(flags, output, says):
    """Ends with an error that says so, without a step."""
    with pytest.raises(LawError, match=says) as error:
        train(flags)
    assert not (output / "log.jsonl").exists()
    return str(error.value)


def test_projector_of_another_tower(world, tmp_path, projector):
    """The file's config names the tower it was trained with."""
    flags = stage2(world, tmp_path, projector, vision_tower=world / "dinov2")
    refused(flags, tmp_path, "was trained with .*clip.*this model has .*dinov2")


def test_projector_of_another_width(world, tmp_path, projector):
    """Without a config beside it, the widths are what tells."""
    alone = shutil.copy(projector, tmp_path / "mm_projector.bin")
    pair = f"{world / 'clip'}+{world / 'dinov2'}"
    output = tmp_path / "run"
    said = refused(stage2(world, output, alone, vision_tower=pair), output, "24 wide")
    assert "48 wide" in said


def test_no_projector_file(world, tmp_path):
    """A typing error in the path."""
    missing = tmp_path / "mm_projectr.bin"
    refused(stage2(world, tmp_path / "run", missing), tmp_path / "run", "no such file")


def test_a_pickle_is_not_run(world, tmp_path):
    """A projector file that would execute code on loading."""

    class Evil:
        def __reduce__(self):
            return (print, ("code of a stranger",))

    path = tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.0.weight": Evil()}, path)
    refused(stage2(world, tmp_path / "run", path), tmp_path / "run", "cannot be read")


def test_unequal_grids(world, tmp_path):
    """Both towers and their grids are named."""
    large = save_encoder(tmp_path / "large", "clip_vision_model", image_size=64)
    facts = json.loads((large / "preprocessor_config.json").read_text())
    facts |= {"crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 64}}
    (large / "preprocessor_config.json").write_text(json.dumps(facts))
    flags = stage1(world, tmp_path / "run", vision_tower=f"{world / 'clip'}+{large}")
    said = refused(flags, tmp_path / "run", "grid")
    assert "4" in said and "8" in said


def test_too_many_image_tokens(world, tmp_path):
    """A maximum length that an image does not fit into leaves no record, and says so."""
    refused(stage1(world, tmp_path, model_max_length=12), tmp_path, "too many image tokens")


def test_captions_cut_away(world, tmp_path):
    """The image fits and nothing of the caption does."""
    refused(stage1(world, tmp_path, model_max_length=17), tmp_path, "within the maximum length")


@pytest.mark.parametrize("kind", ["images", "text"])
@pytest.mark.parametrize("grouped", [True, False])
def test_one_modality(world, tmp_path, kind, grouped):
    """Image-only and text-only data train, also grouped by modality."""
    chosen = [one for one in records(world) if ("image" in one) == (kind == "images")]
    path = write(tmp_path / "data.json", chosen)
    flags = {"data_path": path, "group_by_modality_length": grouped, "max_steps": 2}
    train(stage2(world, tmp_path / "run", per_device_train_batch_size=2, **flags))
    assert len(losses(tmp_path / "run")) == 2


def test_no_tower_and_text(world, tmp_path):
    """A language model alone trains on text; images in its data are counted and left out."""
    flags = stage2(world, tmp_path / "run", max_steps=1, max_dropped=1)
    place = flags.index("--vision_tower")
    del flags[place : place + 2]
    train(flags)
    report = json.loads((tmp_path / "run" / "data.json").read_text())
    assert report["samples"] == 6
    assert report["left_out"] == {"has an image, and this model has no vision tower": 24}


def spoiled(world, tmp_path, kind):
    """An image folder in which one image is missing, empty, damaged or a folder."""
    images = tmp_path / "images"
    shutil.copytree(world / "images", images)
    victim = images / "3.png"
    content = victim.read_bytes()
    victim.unlink()
    if kind == "empty":
        victim.write_bytes(b"")
    elif kind == "folder":
        victim.mkdir()
    elif kind == "cut":
        victim.write_bytes(content[:60])
    return images


@pytest.mark.parametrize("kind", ["missing", "empty", "folder"])
def test_bad_images(world, tmp_path, kind):
    """An error that names file and record; with the policy `skip`, a count."""
    images = spoiled(world, tmp_path, kind)
    said = refused(stage1(world, tmp_path / "a", image_folder=images), tmp_path / "a", "3.png")
    assert "--image_policy skip" in said
    flags = {"image_folder": images, "image_policy": "skip"}
    train(stage1(world, tmp_path / "b", **flags))
    report = json.loads((tmp_path / "b" / "data.json").read_text())
    assert (report["samples"], sum(report["left_out"].values())) == (23, 1)
    assert report["records_left_out"][0]["record"] == 3


def test_images_are_verified(world, tmp_path):
    """All are decoded before training where that is asked for; a missing one may go unseen."""
    flags = {"image_folder": spoiled(world, tmp_path, "cut"), "verify_images": "decode"}
    refused(stage1(world, tmp_path / "a", **flags), tmp_path / "a", r"1 records .*3\.png")
    train(stage1(world, tmp_path / "b", image_policy="skip", max_steps=1, **flags))
    assert json.loads((tmp_path / "b" / "data.json").read_text())["samples"] == 23
    (tmp_path / "images" / "3.png").unlink()
    flags |= {"verify_images": "none", "image_policy": "skip"}
    train(stage1(world, tmp_path / "c", max_steps=1, **flags))
    assert json.loads((tmp_path / "c" / "data.json").read_text())["samples"] == 24


def test_damaged_image(world, tmp_path, law_log):
    """Found when it is decoded: an error, or its sample teaches nothing and the run goes on."""
    images = spoiled(world, tmp_path, "cut")
    flags = {"image_folder": images, "num_train_epochs": 1, "max_steps": -1}
    with pytest.raises(LawError, match=r"3\.png"):
        train(stage1(world, tmp_path / "a", **flags))
    train(stage1(world, tmp_path / "b", image_policy="skip", **flags))
    assert len(losses(tmp_path / "b")) == 6
    assert any("3.png" in line and line.startswith("WARNING") for line in law_log)


def test_all_masked_batch(world, tmp_path):
    """A batch of damaged images only has loss 0 and a finite model, not NaN."""
    images = spoiled(world, tmp_path, "cut")
    only = [one for one in records(world, "captions.json") if one["id"] == "3"]
    flags = {
        "data_path": write(tmp_path / "data.json", only),
        "image_folder": images,
        "image_policy": "skip",
        "max_steps": 1,
    }
    train(stage1(world, tmp_path / "run", **flags))
    assert losses(tmp_path / "run") == [0.0]
    saved = torch.load(tmp_path / "run" / "mm_projector.bin", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


BROKEN = {
    "cut off": '[{"id": 1, "conversations": [{"from": "human", "value": "a"}',
    "no list": '{"id": 1}',
    "empty": "",
    "no records": "[]",
    "a number": "[3]",
    "no turns": '[{"id": 1}]',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_json(world, tmp_path, kind):
    """The file is named, and where in it the fault is."""
    path = write(tmp_path / "data.json", BROKEN[kind])
    refused(stage1(world, tmp_path / "run", data_path=path), tmp_path / "run", "data.json")


def test_no_data_file(world, tmp_path):
    """A typing error in the path."""
    flags = stage1(world, tmp_path / "run", data_path=tmp_path / "nothing.json")
    refused(flags, tmp_path / "run", "nothing.json")


def test_bad_records_are_counted(world, tmp_path):
    """Roles that are none, two humans in a row, nothing to learn: left out, up to a share."""
    good = records(world)
    talk = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hi."}]
    bad = [
        {"id": "b0", "conversations": [{"from": "system", "value": "x"}, *talk]},
        {"id": "b1", "conversations": [talk[0], *talk]},
        {"id": "b2", "conversations": [talk[0], {"from": "gpt", "value": ""}]},
    ]
    path = write(tmp_path / "data.json", [*good, *bad])
    train(stage2(world, tmp_path / "run", data_path=path, max_steps=1))
    report = json.loads((tmp_path / "run" / "data.json").read_text())
    assert report["samples"] == len(good)
    assert [one["record"] for one in report["records_left_out"]] == [30, 31, 32]
    flags = {"data_path": path, "max_dropped": 0.05}
    refused(stage2(world, tmp_path / "no", **flags), tmp_path / "no", "3 of 33 .*--max_dropped 0.1")


def test_too_long_for_many(world, tmp_path):
    """The flag that lets more of them in is named."""
    flags = {"model_max_length": 80, "max_dropped": 0.2}
    says = "maximum length.*mend them, raise --model_max_length, or allow it with --max_dropped"
    refused(stage2(world, tmp_path, **flags), tmp_path, says)


def test_no_language_model(world, tmp_path):
    """A folder without a config, and a projector in a model's place."""
    flags = stage1(world, tmp_path / "run", model_name_or_path=world / "images")
    refused(flags, tmp_path / "run", "images")
    flags = stage1(world, tmp_path / "run", model_name_or_path=world / "clip")
    refused(flags, tmp_path / "run", "clip")


def test_unknown_projector(world, tmp_path):
    """The nearest name is suggested."""
    flags = stage1(world, tmp_path, mm_projector_type="mlp2x_gleu")
    refused(flags, tmp_path, "did you mean 'mlp2x_gelu'")


def test_damaged_checkpoint(world, tmp_path, law_log):
    """No run starts from it; `auto` takes the newest good one, says so, and ends the same."""
    flags = {"save_strategy": "steps", "save_steps": 2}
    train(stage1(world, tmp_path, **flags))
    whole = (tmp_path / "mm_projector.bin").read_bytes()
    newest = checkpoints(tmp_path)[-1].folder
    file = newest / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(LawError, match=r"checkpoint-2: --resume_from_checkpoint auto"):
        train(stage1(world, tmp_path, **flags))
    train([*stage1(world, tmp_path, **flags), "--resume_from_checkpoint", "auto"])
    assert any("going on from checkpoint-2" in line for line in law_log)
    assert (tmp_path / "mm_projector.bin").read_bytes() == whole
    assert (tmp_path / "checkpoint-4.aside").is_dir()
