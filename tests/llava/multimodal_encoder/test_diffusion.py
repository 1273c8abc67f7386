"""Diffusion towers: golden features of the published code, equalities with stock diffusers."""

import dataclasses
import functools
import json
import math
from concurrent.futures import ThreadPoolExecutor

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from repository import ROOT

from llava.extraction import extract
from llava.features import FeatureStore
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.diffusion.noise import Mixing, draws, pixel_digests
from llava.model.multimodal_encoder.diffusion.tower import AT_ONCE, fold
from llava.model.multimodal_encoder.registry import resolve

GOLDEN = ROOT / "tests" / "golden" / "diffusion"
CASES = json.loads((GOLDEN / "expected.json").read_text())["cases"]
MODELS = ("sd15", "sd21", "imsd", "sdxl", "dit", "sd3")
WITH_PROMPT = ("sd15", "sd21", "sdxl", "sd3")


@functools.cache
def golden() -> dict[str, torch.Tensor]:
    """Every array of expected.npz."""
    with np.load(GOLDEN / "expected.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@functools.cache
def pictures() -> tuple[Image.Image, ...]:
    """The two pictures, neither of them square."""
    return tuple(Image.fromarray(golden()[f"pic{i}_uint8"].numpy()) for i in (0, 1))


@functools.cache
def tower_of(model: str, size: int = 64, **changes):
    """A golden model's tower at a size, with other fields of its spec."""
    (spec,) = resolve(f"{GOLDEN / model}@{size}").parts
    return build_tower(dataclasses.replace(spec, **changes))


def photos(count: int, size: int = 50) -> list[Image.Image]:
    """Pictures that differ."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    return [Image.fromarray(one) for one in pixels]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_golden(case):
    """The published code's tokens to 1e-5, from images, with its noise; prompts are our own."""
    model, key = case["model"], case["key"]
    changes = {"t": case["t"], "up_ft_index": case["idx"], "ensemble_size": case["ens"]}
    tower = tower_of(model, case["size"], **changes)
    pixels = tower.preprocess(pictures()[: case["B"]])
    assert torch.equal(pixels, golden()[f"pixels_{case['size']}"][: case["B"]])
    tokens = tower(pixels, vae_eps=golden()[f"{key}_eps_vae"], noise=golden()[f"{key}_noise"])
    assert tokens.shape == (case["B"], math.prod(tower.grid), tower.dim)
    torch.testing.assert_close(tokens, golden()[f"{key}_tokens"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", WITH_PROMPT)
def test_golden_prompts(model):
    """The empty prompt's embedding; transformers 5 and 4 differ by up to 1.9e-5 in these models."""
    tower = tower_of(model)
    for name in tower.condition_shapes():
        expected = golden()[f"{model}_{name}"]
        torch.testing.assert_close(getattr(tower, name), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("case", [c for c in CASES if c["key"].endswith(("0", "2"))], ids=str)
def test_golden_conditions_given(case):
    """With the stored embeddings in place of our own."""
    model, key = case["model"], case["key"]
    changes = {"t": case["t"], "up_ft_index": case["idx"], "ensemble_size": case["ens"]}
    tower = tower_of(model, case["size"], **changes)
    given = {"vae_eps": golden()[f"{key}_eps_vae"], "noise": golden()[f"{key}_noise"]}
    for name in tower.condition_shapes():
        stored = f"{key}_image_embeds" if model == "imsd" else f"{model}_{name}"
        given[name] = golden()[stored]
    tokens = tower(golden()[f"pixels_{case['size']}"][: case["B"]], **given)
    torch.testing.assert_close(tokens, golden()[f"{key}_tokens"], rtol=0, atol=1e-5)


def test_golden_mistakes_are_seen():
    """What the tolerance has to catch: each of these moves features by more than 5e-4."""
    key = "sd15_case0"
    given = {"vae_eps": golden()[f"{key}_eps_vae"], "noise": golden()[f"{key}_noise"]}
    pixels, expected = golden()["pixels_64"], golden()[f"{key}_tokens"]
    for change in ({"t": 0}, {"vae_sample": "mode"}, {"prompt": "a"}):
        tokens = tower_of("sd15", **change)(pixels, **given)
        assert (tokens - expected).abs().max() > 5e-4, change


def whole_network(model: str, tower):
    """The network as stock diffusers loads it, with every block.

    Frozen as the tower is: torch computes linear layers that are not in other last digits.
    """
    kind = "transformer" if model in ("dit", "sd3") else "unet"
    network = getattr(diffusers, tower.network_class).from_pretrained(
        GOLDEN / model, subfolder=kind
    )
    return network.requires_grad_(False)


def captured(block: torch.nn.Module, run) -> torch.Tensor:
    """The block's output in a pass that goes on to its end."""
    found = []
    handle = block.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    with torch.no_grad():
        run()
    handle.remove()
    return found[0][1] if isinstance(found[0], tuple) else found[0]


@pytest.mark.parametrize("size", [64, 72])
@pytest.mark.parametrize(
    ("model", "index"),
    [*((m, i) for m in ("sd15", "sd21") for i in range(4)), *((m, 1) for m in ("sdxl", "imsd"))],
)
def test_unets_equal_the_whole_pass(model, index, size):
    """Every bit of what a pass through all blocks gives, also where latents cannot be halved."""
    tower = tower_of(model, size, up_ft_index=index, compat="clean")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, size // 8, size // 8, generator=generator)
    prompt = torch.randn(2, 77, tower.network.config.cross_attention_dim, generator=generator)
    conditions, added = {"prompt_embeds": prompt}, None
    if model == "sdxl":
        conditions["pooled_prompt_embeds"] = torch.randn(2, 16, generator=generator)
        sizes = torch.tensor([[size, size, 0, 0, size, size]] * 2)
        added = {"text_embeds": conditions["pooled_prompt_embeds"], "time_ids": sizes}
    network = whole_network(model, tower)
    expected = captured(
        network.up_blocks[index],
        lambda: network(latents, torch.tensor([1]), prompt, added_cond_kwargs=added),
    )
    with torch.no_grad():
        tokens = tower.features(latents, conditions)
    rows, columns = tower.grid
    assert tokens.shape == (2, rows * columns, tower.dim)
    assert torch.equal(tokens, expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("model", ["dit", "sd3"])
def test_transformers_equal_the_whole_pass(model, index):
    """Every bit, in compat clean, where nothing is taken out of the network."""
    tower = tower_of(model, up_ft_index=index, compat="clean")
    latents = torch.randn(2, tower.network.config.in_channels, 8, 8)
    network, time = whole_network(model, tower), torch.tensor([1, 1])
    if model == "dit":
        conditions, run = {}, lambda: network(latents, time, torch.tensor([10, 10]))
    else:
        conditions = {
            "prompt_embeds": torch.randn(2, 90, 40),
            "pooled_prompt_embeds": torch.ones(2, 24),
        }
        run = lambda: network(latents, *conditions.values(), time)  # noqa: E731
    expected = captured(network.transformer_blocks[index], run)
    with torch.no_grad():
        tokens = tower.features(latents, conditions)
    assert torch.equal(tokens, fold(expected, 2))


def test_fold():
    """2 x 2 neighbours of a 4 x 4 grid: (row, column) 00, 10, 01, 11, each with its channels."""
    tokens = torch.arange(16.0).reshape(1, 16, 1) + torch.tensor([0, 0.5])
    assert fold(tokens, 2)[0, 0].tolist() == [0, 0.5, 4, 4.5, 1, 1.5, 5, 5.5]
    assert fold(tokens, 2)[0, 3, ::2].tolist() == [10, 14, 11, 15]
    assert torch.equal(fold(tokens, 1), tokens)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_kept(model):
    """No decoder, no text encoder, no block after the one that is read."""
    tower = tower_of(model, up_ft_index=0)
    assert tower.vae.decoder is None
    names = [name for name, _ in tower.named_parameters()]
    assert not [name for name in names if "text_encoder" in name or "decoder" in name]
    (blocks,) = tower._block_lists()
    assert sum(p.numel() for block in blocks[1:] for p in block.parameters()) == 0
    assert sum(p.numel() for p in blocks[0].parameters()) > 0
    assert not any(p.requires_grad for p in tower.parameters())


@pytest.mark.parametrize("compat", ["reference", "clean"])
@pytest.mark.parametrize("model", MODELS)
def test_any_batch(model, compat):
    """A batch of four, any order, one by one: the same, but for the order of sums."""
    tower = tower_of(model, compat=compat)
    pixels = tower.preprocess(photos(4))
    together, order = tower(pixels), torch.tensor([2, 0, 3, 1])
    scale = together.abs().max()
    for tokens in (
        tower(pixels[order])[order.argsort()],
        torch.cat([tower(one[None]) for one in pixels]),
    ):
        assert (tokens - together).abs().max() < 1e-5 * scale
    assert torch.equal(tower(pixels), together)


@pytest.mark.parametrize("model", ["sd15", "imsd", "sdxl", "dit", "sd3"])
def test_ensemble_is_the_mean_of_seeds(model):
    """k draws are those of seeds s to s + k - 1."""
    fields = {"t": 261, "compat": "clean"}
    pixels = tower_of(model).preprocess(photos(2))
    several = tower_of(model, ensemble_size=3, seed=5, **fields)(pixels)
    each = [tower_of(model, seed=5 + k, **fields)(pixels) for k in range(3)]
    assert (each[0] - each[1]).abs().max() > 1e-3 * each[0].abs().max()
    torch.testing.assert_close(several, torch.stack(each).mean(0), rtol=1e-5, atol=1e-6)


def test_noise_is_the_images_own():
    """A function of seed and pixels; a cast of the pixels to 16 bits changes nothing."""
    pixels = tower_of("sd15").preprocess(photos(3))
    digests = pixel_digests(pixels)
    assert len(set(digests)) == 3
    for dtype in (torch.bfloat16, torch.float16):
        assert pixel_digests(pixels.to(dtype)) == digests
    eps, noise = draws(digests, 0, (4, 8, 8))
    alone = draws(digests[1:2], 0, (4, 8, 8))
    assert torch.equal(eps[1], alone[0][0])
    assert torch.equal(noise[1], alone[1][0])
    assert not torch.equal(eps, noise)
    assert not torch.equal(noise, draws(digests, 1, (4, 8, 8))[1])
    many = torch.cat([draws([bytes([i])], 3, (4, 32, 32))[1] for i in range(20)])
    assert abs(many.mean()) < 4 / many.numel() ** 0.5
    assert abs(many.std() - 1) < 4 / (2 * many.numel()) ** 0.5


def test_noise_whatever_the_defaults():
    """Neither a default dtype nor a default device leaks into it."""
    expected = draws([b"a"], 0, (4, 8, 8))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = draws([b"a"], 0, (4, 8, 8))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_threads():
    """Several on one tower take turns; each gets its own tokens."""
    tower = tower_of("dit")
    pixels = tower.preprocess(photos(8))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: tower(one[None]), [*pixels] * 3))
    for one, tokens in zip([*pixels] * 3, found, strict=True):
        assert torch.equal(tokens, tower(one[None]))


def test_large_batches_go_in_parts():
    """More images than one pass takes give what they give alone."""
    tower = tower_of("sdxl", compat="clean")
    pixels = tower.preprocess(photos(AT_ONCE + 3))
    tokens = tower(pixels)
    assert len(tokens) == AT_ONCE + 3
    assert (tokens[-1] - tower(pixels[-1:])[0]).abs().max() < 1e-5 * tokens.abs().max()


def test_levels_outlive_a_cast():
    """All 256 grey levels come back from float16 and bfloat16."""
    levels = ((torch.arange(256) / 255) - 0.5) / 0.5
    image = levels.reshape(1, 1, 16, 16)
    assert len({pixel_digests(image.to(d))[0] for d in (torch.float32, torch.float16)}) == 1
    assert pixel_digests(image.bfloat16()) == pixel_digests(image)


@pytest.mark.parametrize(
    ("model", "signal", "noise"),
    [("sd15", 0.9991477, 0.0412793), ("sdxl", 0.9991477, 0.0412793), ("dit", 0.9998900, 0.0148304)],
)
def test_noise_at_t_1(model, signal, noise):
    """Shares of signal and noise, from the betas; of the latents and of the noise in float32."""
    mixing = tower_of(model).mixing
    assert mixing.coefficients == pytest.approx((signal, noise), abs=1e-7)
    one, zero = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    assert mixing(one, zero).mean().item() == pytest.approx(signal, abs=1e-6)
    assert mixing(zero, one).mean().item() == pytest.approx(noise, abs=1e-6)


def test_bfloat16_rounds_the_noise_away():
    """compat reference: none of t 1's noise is left, as in the published code; clean keeps it."""
    pixels = tower_of("sd15").preprocess(photos(2))
    for compat, kept in (("reference", False), ("clean", True)):
        (spec,) = resolve(f"{GOLDEN / 'sd15'}@64:compat={compat}").parts
        tower = build_tower(spec, dtype=torch.bfloat16)
        assert {p.dtype for p in tower.parameters()} == {torch.bfloat16}
        two = [tower(pixels, noise=torch.full((2, 4, 8, 8), value)) for value in (-1.0, 1.0)]
        assert two[0].dtype == torch.bfloat16
        assert torch.equal(*two) != kept


def test_flow_matching():
    """reference: the clean latent at t 1, noise alone at 0; clean: as the stock scheduler."""
    latents, noise = torch.randn(2, 1, 16, 4, 4)
    (spec,) = resolve("sd3").parts
    assert torch.equal(Mixing(spec)(latents, noise), latents)
    assert torch.equal(Mixing(dataclasses.replace(spec, t=0))(latents, noise), noise)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    for t in (1, 250, 1000):
        mixed = Mixing(dataclasses.replace(spec, t=t, compat="clean"))(latents, noise)
        expected = scheduler.scale_noise(latents, torch.tensor([float(t)]), noise)
        torch.testing.assert_close(mixed, expected, rtol=1e-6, atol=1e-6)


def test_clean_shift():
    """The VAE's shift is taken off; the published code leaves it."""
    latents = torch.ones(1, 16, 2, 2)
    clean, published = tower_of("sd3", compat="clean"), tower_of("sd3")
    assert clean.scaled(latents).mean().item() == pytest.approx((1 - 0.0609) * 1.5305)
    assert published.scaled(latents).mean().item() == pytest.approx(1.5305)


def test_clean_text_tokens():
    """77 zeros in T5's place as published, 256 as the stock pipeline."""
    assert tower_of("sd3").prompt_embeds.shape == (1, 154, 40)
    assert tower_of("sd3", compat="clean").prompt_embeds.shape == (1, 333, 40)
    assert not tower_of("sd3").prompt_embeds[:, 77:].any()


def test_clean_image_condition():
    """Normalised as CLIP's own processor does it, but for rounding to 8 bits in between."""
    from transformers import CLIPImageProcessorPil

    tower = tower_of("imsd", 448, compat="clean")
    pictures = [Image.fromarray(np.asarray(p.resize((448, 448)))) for p in photos(2)]
    processor = CLIPImageProcessorPil.from_pretrained(
        GOLDEN / "imsd", subfolder="feature_extractor"
    )
    expected = processor(pictures, return_tensors="pt")["pixel_values"]
    seen = tower._clip_pixels(tower.preprocess(pictures))
    torch.testing.assert_close(seen, expected, rtol=0, atol=0.02)


def test_float16_keeps_a_vae_that_overflows_wide():
    """force_upcast in the VAE's config: float32 there, float16 elsewhere."""
    (spec,) = resolve(f"{GOLDEN / 'sdxl'}@64").parts
    tower = build_tower(spec, dtype=torch.float16)
    assert (tower.vae.dtype, tower.network.dtype) == (torch.float32, torch.float16)
    mean, _ = tower.latent_moments(tower.preprocess(photos(1)).half())
    assert mean.dtype == torch.float16
    cast = build_tower(spec).to(torch.float16)
    cast.latent_moments(cast.preprocess(photos(1)))
    assert (cast.vae.dtype, cast.network.dtype) == (torch.float32, torch.float16)


@pytest.mark.parametrize("model", ["sd15", "sd3"])
def test_autocast_changes_nothing(model):
    """Features in bfloat16 are those of bfloat16 weights, in whatever context they are computed."""
    tower = build_tower(resolve(f"{GOLDEN / model}@64"), dtype=torch.bfloat16)
    pixels = tower.preprocess(photos(2))
    with torch.autocast("cpu", torch.bfloat16):
        inside = tower(pixels)
    assert torch.equal(inside, tower(pixels))


def test_store_equals_the_tower(tmp_path):
    """Features out of the store are those of a fresh tower, whatever group they were made in."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, photo in enumerate(photos(5)):
        photo.save(folder / f"{i}.png")
    found = resolve(f"{GOLDEN / 'dit'}@64:t=261")
    images = sorted(folder.iterdir())
    (done,) = extract(found, images, FeatureStore(tmp_path / "store"), batch_size=2)
    tower = build_tower(found)
    tokens = tower(tower.preprocess(photos(5)))
    for image, expected in zip(images, tokens, strict=True):
        torch.testing.assert_close(
            done.space.read(done.keys[image]), expected, rtol=1e-5, atol=1e-5
        )
    (other,) = resolve(f"{GOLDEN / 'dit'}@64").parts
    assert other.hash() != found.parts[0].hash()


def test_two_ranks_are_one(tmp_path, monkeypatch):
    """Together the same files, to the last byte, as of one process."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, photo in enumerate(photos(6)):
        photo.save(folder / f"{i}.png")
    found, images = resolve(f"{GOLDEN / 'sd15'}@64"), sorted(folder.iterdir())
    extract(found, images, FeatureStore(tmp_path / "one"), batch_size=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        extract(found, images, FeatureStore(tmp_path / "two"), batch_size=2)
    written = [
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.safetensors")}
        for n in ("one", "two")
    ]
    assert len(written[0]) == 3
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nose": torch.zeros(1)}, "nose: .* takes vae_eps, noise, prompt_embeds"),
        ({"noise": torch.zeros(3, 4, 8, 8)}, "noise: 3 rows for 2 images; expected 1, 2 or 2"),
        ({"noise": torch.zeros(2, 4, 9, 9)}, r"noise: \(2, 4, 9, 9\), expected \(2, 4, 8, 8\)"),
    ],
)
def test_what_is_given_has_to_fit(given, message):
    """By name, rows and shape."""
    tower = tower_of("sd15")
    with pytest.raises((TypeError, ValueError), match=message):
        tower(golden()["pixels_64"], **given)


def test_no_images():
    """An empty batch gives no tokens, and asks for no noise."""
    tower = tower_of("sd15")
    assert tower(torch.empty(0, 3, 64, 64)).shape == (0, 4, 16)


def test_combined_with_a_vit(tmp_path):
    """Joined by channel on one grid; each part's tokens are those of the tower alone."""
    import tiny

    clip = tiny.save_encoder(tmp_path / "clip", "clip_vision_model")
    found = resolve([str(clip), str(GOLDEN / "sd15")])
    vit, diffusion = found.parts
    assert found.grid == vit.grid == diffusion.grid
    tower = build_tower(found)
    pixels = tower.preprocess(photos(2))
    tokens = tower(pixels)
    assert tokens.shape == (2, found.tokens, vit.dim + diffusion.dim)
    alone = build_tower(diffusion)(pixels.parts[1])
    assert torch.equal(tokens[..., vit.dim :], alone)
