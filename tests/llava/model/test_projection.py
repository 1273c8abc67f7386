"""Tower and projector without a language model: the rows of the whole model, bit for bit."""

import json
import shutil

import pytest
import safetensors.torch
import torch
import transformers
from llavas import CLIP, DINO, GOLDEN, MODELS, SHAPE, arguments, folders, golden_llava
from tiny import picture

from llava.errors import LawError, UsageError
from llava.mm_utils import process_images
from llava.model.builder import load_llava, load_pretrained_model
from llava.model.language_identity import identity
from llava.model.projection import Projection
from llava.model.saving import save_projector
from llava.tokenization import load_tokenizer

CHECKPOINTS = GOLDEN / "checkpoints"
BASE = str(MODELS / "lmsys" / "tiny-vicuna")
STAGES = {
    "off-llava-stage1": "stage1",
    "law-llava-stage1-combo": "stage1",
    "off-llava-lora": "lora",
    "off-llava-stage2": "whole",
    "off-llava-stage2-notower": "whole",
    "law-llava-stage2-combo": "whole",
}
STAGE1, COMBINED, _, WHOLE, _, WHOLE_COMBINED = STAGES
IMAGES = [picture(40, 33), picture(30, 57, seed=1), picture(64, 20, seed=2)]


def assert_equal(path, base=None, towers=None, **options):
    """Rows of a folder are those of the model that is loaded with its language model."""
    projection = Projection(path, options.get("dtype"), tower_replacements=towers)
    assert not projection.model.get_vision_tower().is_loaded
    _, model, processor, _ = load_pretrained_model(
        str(path), base, tower_replacements=towers, **options
    )
    for image in IMAGES:
        pixels = process_images([image], processor, model.config)
        with torch.no_grad():
            rows, counts = model.encode_images(pixels, [image.size])
        (found,) = projection([image])
        assert torch.equal(found, rows)
        assert (found.dtype, counts) == (model.dtype, [len(found)])
        assert projection.tokens in (None, len(found))
        assert projection.width == found.shape[1]
    assert projection.representation == model.get_vision_tower().representation
    return projection


@pytest.mark.parametrize("name", STAGES)
def test_golden_checkpoints(name):
    """Projectors and adapters as LLaVA left them, whole models with tower weights and without."""
    towers = folders(CLIP, DINO) if "combo" in name else folders(CLIP)
    base = None if STAGES[name] == "whole" else BASE
    projection = assert_equal(CHECKPOINTS / name, base, towers, dtype="float32")
    assert bool(projection.tower_digest) == (name in (WHOLE, WHOLE_COMBINED))
    assert projection.stage == STAGES[name]
    assert projection.language_model.endswith("tiny-vicuna")


def changed(tmp_path, name, change):
    """A copy of a golden checkpoint whose state went through `change`."""
    folder = tmp_path / "changed"
    shutil.copytree(CHECKPOINTS / name, folder)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(change(state), folder / "model.safetensors", {"format": "pt"})
    return folder


def test_nothing_of_the_language_model_is_read(tmp_path):
    """It may be gone; tower weights that the checkpoint brings count, and have a digest."""
    kept = ("model.mm_projector", "model.vision_tower")
    folder = changed(
        tmp_path, WHOLE, lambda state: {k: v for k, v in state.items() if k.startswith(kept)}
    )
    whole = Projection(CHECKPOINTS / WHOLE, tower_replacements=folders(CLIP))
    without = Projection(folder, tower_replacements=folders(CLIP))
    assert torch.equal(whole(IMAGES[:1])[0], without(IMAGES[:1])[0])
    assert whole.facts() == without.facts()

    def other(state):
        return {k: v + ("layers.1.mlp.fc2.bias" in k) for k, v in state.items()}

    shutil.rmtree(folder)
    another = Projection(changed(tmp_path, WHOLE, other), tower_replacements=folders(CLIP))
    assert another.tower_digest != whole.tower_digest
    assert another.projector_digest == whole.projector_digest
    assert not torch.equal(another(IMAGES[:1])[0], whole(IMAGES[:1])[0])


def test_shards(tmp_path):
    """An index of several files."""
    name = WHOLE_COMBINED
    state = safetensors.torch.load_file(CHECKPOINTS / name / "model.safetensors")
    places = {}
    for number, keys in enumerate((sorted(state)[::2], sorted(state)[1::2])):
        file = f"model-{number}.safetensors"
        safetensors.torch.save_file({k: state[k] for k in keys}, tmp_path / file, {"format": "pt"})
        places |= dict.fromkeys(keys, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    shutil.copy(CHECKPOINTS / name / "config.json", tmp_path)
    towers = folders(CLIP, DINO)
    one, other = (
        Projection(path, tower_replacements=towers) for path in (CHECKPOINTS / name, tmp_path)
    )
    assert one.facts() == other.facts()
    assert torch.equal(one(IMAGES[:1])[0], other(IMAGES[:1])[0])


@pytest.mark.parametrize("generation", [4, 5])
def test_converted(tmp_path, monkeypatch, generation):
    """transformers' own layouts, whose tower becomes a folder in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig.from_pretrained(MODELS / CLIP),
        text_config=transformers.LlamaConfig(**SHAPE),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    folder = tmp_path / "model"
    model.save_pretrained(folder, save_original_format=generation == 4)
    shutil.copy(MODELS / CLIP / "preprocessor_config.json", folder)
    load_tokenizer(BASE).save_pretrained(folder)
    assert_equal(folder, dtype="float32")


@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_unpad"])
def test_tiles(tmp_path, merge):
    """anyres: as many rows as an image's tiles make; the newline is read."""
    model = golden_llava()
    model.initialize_vision_modules(
        arguments(mm_patch_merge_type=merge),
        representation=model.get_vision_tower().representation,
    )
    model.config.image_aspect_ratio = "anyres"
    model.config.image_grid_pinpoints = [[64, 32], [32, 64], [64, 64]]
    save_projector(model, tmp_path)
    assert assert_equal(tmp_path, BASE).tokens is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_of_training(tmp_path, dtype):
    """That which the config records is the default; a combination in one geometry."""
    towers = folders(CLIP, DINO)
    model = load_llava(BASE, dtype=dtype)
    aliases = [f"{name}={folder}" for name, folder in towers.items()]
    model.initialize_vision_modules(
        arguments(
            vision_tower=f"{CLIP}.{DINO}",
            tower_alias=aliases,
            mm_vision_geometry="shared",
            image_aspect_ratio="pad",
        ),
    )
    model.config.image_aspect_ratio = "pad"
    save_projector(model, tmp_path)
    projection = Projection(tmp_path)
    assert projection.dtype == str(dtype).removeprefix("torch.")
    assert projection.facts()["frame"] == "pad"
    assert_equal(tmp_path, BASE, dtype=dtype)


def test_diffusion_tower(tmp_path):
    """Noise is that of the image, so the rows are, too."""
    model = load_llava(BASE, dtype=torch.float32)
    tower = str(GOLDEN.parent / "diffusion" / "sd15")
    model.initialize_vision_modules(arguments(vision_tower=tower, tower_alias=[], t=261))
    save_projector(model, tmp_path)
    assert_equal(tmp_path, BASE)


def test_features_in_place_of_images(tmp_path):
    """What the tower gave, out of a store."""
    projection = Projection(CHECKPOINTS / COMBINED, tower_replacements=folders(CLIP, DINO))
    rows = projection(IMAGES)
    tower = projection.model.get_vision_tower()
    pixels = process_images(IMAGES, tower.image_processor, projection.model.config)
    again = projection.of_features(list(tower(pixels, torch.device("cpu"))))
    assert all(map(torch.equal, rows, again))


def test_a_batch_is_its_images():
    """But for rounding: sums in another order."""
    projection = Projection(CHECKPOINTS / STAGE1, tower_replacements=folders(CLIP))
    for image, rows in zip(IMAGES, projection(IMAGES), strict=True):
        torch.testing.assert_close(projection([image])[0], rows, rtol=1e-5, atol=1e-6)


def test_digest_is_of_the_weights(tmp_path):
    """The same for either file of a projector, another for other weights."""
    model = golden_llava()
    save_projector(model, tmp_path)
    both = Projection(tmp_path).projector_digest
    (tmp_path / "mm_projector.safetensors").unlink()
    assert Projection(tmp_path).projector_digest == both
    with torch.no_grad():
        model.mm_projector[0].bias[3] += 1e-3
    save_projector(model, tmp_path)
    assert Projection(tmp_path).projector_digest != both


def test_name_of_the_language_model(tmp_path):
    """Out of the run's flags, also those of the run that a checkpoint is of."""
    save_projector(golden_llava(), tmp_path / "checkpoint-3")
    assert Projection(tmp_path / "checkpoint-3").language_model == ""
    flags = {"flags": {"model_name_or_path": "somewhere/vicuna-7b"}}
    (tmp_path / "run.json").write_text(json.dumps(flags))
    assert Projection(tmp_path / "checkpoint-3").language_model == "somewhere/vicuna-7b"
    flags["flags"]["model_name_or_path"] = BASE
    (tmp_path / "run.json").write_text(json.dumps(flags))
    assert Projection(tmp_path / "checkpoint-3").language_model == identity(BASE)


def test_what_is_no_run(tmp_path):
    """Each says what was expected."""
    with pytest.raises(UsageError, match="without a vision tower; expected a run of stage 1"):
        Projection(BASE)
    with pytest.raises(LawError, match=r"no config\.json"):
        Projection(tmp_path)
    shutil.copytree(CHECKPOINTS / STAGE1, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "mm_projector.bin", weights_only=True)
    torch.save(dict(list(state.items())[:3]), tmp_path / "run" / "mm_projector.bin")
    with pytest.raises(LawError, match="does not fit a projector of type mlp2x_gelu: it lacks"):
        Projection(tmp_path / "run", tower_replacements=folders(CLIP))
    with pytest.raises(UsageError, match="expected float32, bfloat16 or float16"):
        Projection(CHECKPOINTS / STAGE1, "float3", tower_replacements=folders(CLIP))
