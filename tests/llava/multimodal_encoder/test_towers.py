"""Towers give transformers' hidden states, and nothing behind the tap is run."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
import transformers
from repository import ROOT

from llava.errors import LawError, UsageError
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.registry import resolve
from llava.model.multimodal_encoder.tap import tap

GOLDEN = ROOT / "tests" / "golden" / "llava"
KINDS = {
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}
GOLDEN_TOWERS = {
    "clip": "openai/clip-vit-large-patch14",
    "dinov2": "facebook/dinov2-large",
    "dinov2_interp": "facebook/dinov2-interp",
    "siglip": "google/siglip-base-patch16-224",
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """model type -> folder of a tiny random encoder."""
    root = tmp_path_factory.mktemp("encoders")
    return {kind: tiny.save_encoder(root / kind, kind) for kind in KINDS}


def hidden_states(folder, kind: str, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What transformers itself gives for every layer."""
    model_class = getattr(transformers, KINDS[kind])
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(pixel_values=pixels, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [-1, -2, -4, 0, 1, 3])
def test_tokens_are_the_hidden_state(encoders, kind, layer):
    """Exactly: the same modules ran on the same pixels."""
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    spec = resolve(str(encoders[kind]), layer=layer).parts[0]
    expected = hidden_states(encoders[kind], kind, pixels)[layer]
    first = spec.class_token + spec.registers
    tokens = build_tower(spec)(pixels)
    assert tokens.shape == (2, spec.tokens, spec.dim) == (2, 16, 24)
    assert torch.equal(tokens, expected[:, first:])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "siglip_vision_model"])
def test_selection(encoders, kind):
    """`cls_patch` puts the class token before the patches, `cls` is it alone, registers never."""
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    given = {
        select: build_tower(resolve(str(encoders[kind]), select=select))(pixels)
        for select in ("patch", "cls_patch", "cls")
    }
    assert torch.equal(given["cls_patch"], torch.cat([given["cls"], given["patch"]], 1))
    assert torch.equal(given["cls"], hidden_states(encoders[kind], kind, pixels)[-2][:, :1])


def test_no_class_token_no_cls(encoders):
    """SigLIP has none, so there is nothing to read, and the error says what to take."""
    for select in ("cls", "cls_patch"):
        with pytest.raises(UsageError, match=r"has no class token.*take 'patch'"):
            resolve(str(encoders["siglip_vision_model"]), select=select)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_nothing_behind_the_tap(encoders, kind, layer):
    """Blocks after the tap are not kept, and no norm, head or pooling runs."""
    spec = resolve(str(encoders[kind]), layer=layer).parts[0]
    tower = build_tower(spec)
    assert len(tower.model.get_submodule(tower.blocks)) == spec.block
    ran = []
    for name, module in tower.model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    tower(torch.zeros(1, 3, 32, 32))
    assert any(name.endswith(f".{spec.block - 1}.mlp") for name in ran)
    assert not {"", *tower.unused} & set(ran)
    assert not any(p.requires_grad for p in tower.parameters())


def test_embeddings_run_no_block(encoders):
    """Layer 0 is what enters the first block."""
    tower = build_tower(resolve(str(encoders["clip_vision_model"]), layer=0))
    assert len(tower.model.encoder.layers) == 0


@pytest.mark.parametrize("case", sorted(np.load(GOLDEN / "towers.npz").keys() - {"input"}))
def test_golden(case, monkeypatch):
    """Tokens of the reference's towers under transformers 4.38, position resizing included.

    Tolerance: the two releases differ by up to 1.4e-6 where nothing is resized.
    """
    monkeypatch.chdir(GOLDEN / "models")
    golden = np.load(GOLDEN / "towers.npz")
    name, layer, select = case.split("/")
    if name == "siglip":
        select = "patch"  # the reference says cls_patch and gives all tokens, which are patches
    found = resolve(GOLDEN_TOWERS[name], layer=int(layer.removeprefix("layer")), select=select)
    tokens = build_tower(found)(torch.from_numpy(golden["input"]))
    np.testing.assert_allclose(tokens.numpy(), golden[case], rtol=0, atol=3e-6)


def test_position_resizing(monkeypatch):
    """Both forms exist; 5's equals transformers 5 itself, and they are visibly apart."""
    monkeypatch.chdir(GOLDEN / "models")
    pixels = torch.from_numpy(np.load(GOLDEN / "towers.npz")["input"])
    spec = resolve("facebook/dinov2-interp").parts[0]
    assert spec.position_resize == "transformers-4"
    old = build_tower(spec)(pixels)
    new = build_tower(dataclasses.replace(spec, position_resize="transformers-5"))(pixels)
    expected = hidden_states("facebook/dinov2-interp", "dinov2", pixels)[-2][:, 1:]
    assert torch.equal(new, expected)
    assert (old - new).abs().max() > 0.05


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "dinov3_vit"])
@pytest.mark.parametrize("size", [48, 24])
def test_another_size(encoders, kind, size):
    """A flexible tower at NAME@SIZE equals transformers at that size."""
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    spec = resolve(f"{encoders[kind]}@{size}").parts[0]
    spec = dataclasses.replace(spec, position_resize=spec.position_resize and "transformers-5")
    assert spec.grid == (size // 8, size // 8)
    expected = hidden_states(encoders[kind], kind, pixels)[-2]
    tokens = build_tower(spec)(pixels)
    assert torch.equal(tokens, expected[:, 1 + spec.registers :])


@pytest.mark.parametrize("kind", KINDS)
def test_batch_and_order_do_not_matter(encoders, kind):
    """An image's tokens are its own. Tolerance: float32 sums in another order."""
    tower = build_tower(str(encoders[kind]))
    images = [tiny.picture(60 + 7 * i, 50, seed=i) for i in range(4)]
    together = tower(tower.preprocess(images))
    order = [2, 0, 3, 1]
    alone = torch.cat([tower(tower.preprocess([images[i]])) for i in order])
    torch.testing.assert_close(together[order], alone, rtol=1e-5, atol=1e-5)


def test_stays_frozen(encoders):
    """Training mode of the model around it does not reach it; forward builds no graph."""
    tower = build_tower(str(encoders["dinov2"]))
    assert not tower.train().training
    assert not tower(torch.zeros(1, 3, 32, 32, requires_grad=True)).requires_grad


def test_dtype(encoders):
    """bfloat16 throughout where asked for, close to float32."""
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    whole = build_tower(str(encoders["clip_vision_model"]))(pixels)
    tower = build_tower(str(encoders["clip_vision_model"]), dtype=torch.bfloat16)
    half = tower(pixels)
    assert half.dtype == tower.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), whole, dim=-1).min() > 0.99


def test_a_whole_clip_folder(tmp_path):
    """A folder with both of CLIP's towers, as released, gives the vision tower's tokens."""
    vision = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
    vision |= {"intermediate_size": 48, "image_size": 32, "patch_size": 8}
    text = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "vocab_size": 99}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(vision_config=vision, text_config=text)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "clip")
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        states = model.vision_model(pixels, output_hidden_states=True).hidden_states
    spec = resolve(str(tmp_path / "clip")).parts[0]
    assert (spec.family, spec.grid, spec.depth) == ("clip", (4, 4), 3)
    assert torch.equal(build_tower(spec)(pixels), states[-2][:, 1:])


def test_missing_weights_are_refused(tmp_path):
    """Half a checkpoint would run with random numbers in its place."""
    from safetensors.torch import load_file, save_file

    folder = tiny.save_encoder(tmp_path / "half", "dinov2")
    weights = load_file(folder / "model.safetensors")
    some = {k: v for k, v in weights.items() if "layer.1." not in k}
    save_file(some, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LawError, match=r"weights are missing.*expected a whole Dinov2Model"):
        build_tower(str(folder))


def test_damaged_weights(tmp_path):
    """A truncated file is an error that says what to fetch."""
    folder = tiny.save_encoder(tmp_path / "cut", "dinov2")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(LawError, match="cannot be read"):
        build_tower(str(folder))


def test_known_tower_without_weights():
    """Offline, a known tower has a spec; building it says what to fetch."""
    with pytest.raises(LawError, match="hf download openai/clip-vit-base-patch32"):
        build_tower("openai/clip-vit-base-patch32")


def test_another_folders_weights(encoders):
    """--tower-alias: the name stays, facts and weights come from the folder."""
    folder = str(encoders["clip_vision_model"])
    found = resolve("clip", replace={"openai/clip-vit-large-patch14": folder})
    assert found.name == "openai/clip-vit-large-patch14"
    assert found.parts[0].weights == folder
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(build_tower(found)(pixels), build_tower(folder)(pixels))
    assert found.parts[0].hash() == resolve(folder).parts[0].hash()
    with pytest.raises(UsageError, match="no part of 'dinov2' is openai/clip"):
        resolve("dinov2", replace={"openai/clip-vit-large-patch14": folder})


def test_tap_reads_and_stops():
    """The first item of a tuple, the hook gone afterwards, and an error where it is not reached."""
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    ran = []
    second.register_forward_hook(lambda *_: ran.append(1))
    x = torch.ones(1, 2)
    assert torch.equal(tap(first, lambda: second(first(x))), first(x))
    assert not ran
    second(first(x))
    assert ran == [1]
    with pytest.raises(RuntimeError, match="was not reached"):
        tap(second, lambda: first(x))
