"""Combinations: parts on their own pixels, joined by channel, appended or interleaved."""

import dataclasses
import types
from collections.abc import Sequence

import pytest
import tiny
import torch

from llava.config import to_plain
from llava.errors import UsageError
from llava.model.multimodal_encoder import registry
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.combined import (
    CombinedTower,
    PixelBatch,
    join_tokens,
    resize_tokens,
)
from llava.model.multimodal_encoder.preprocess import FRAMES
from llava.model.multimodal_encoder.registry import Representation, resolve
from llava.model.representation import representation_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder; `clip48` sees 48 px, the others 32."""
    root = tmp_path_factory.mktemp("parts")
    return {
        "clip": str(tiny.save_encoder(root / "clip", "clip_vision_model")),
        "dino": str(tiny.save_encoder(root / "dino", "dinov2", seed=1, hidden_size=12)),
        "siglip": str(tiny.save_encoder(root / "siglip", "siglip_vision_model", seed=2)),
    }


@pytest.fixture
def images():
    """Three pictures of different shapes."""
    return [tiny.picture(60, 40), tiny.picture(33, 70, 1), tiny.picture(50, 50, 2)]


@pytest.mark.parametrize("frame", FRAMES)
def test_channels(folders, images, frame):
    """Each part's tokens stand beside the others', as the parts give them alone."""
    names = [folders[name] for name in ("clip", "dino", "siglip")]
    tower = build_tower(names, frame=frame)
    assert (tower.dim, tower.grid, tower.num_patches, tower.num_tokens) == (60, (4, 4), 16, 16)
    joined = tower(tower.preprocess(images))
    parts = [build_tower(name, frame=frame) for name in names]
    assert torch.equal(joined, torch.cat([p(p.preprocess(images)) for p in parts], 2))


def test_a_flexible_part_follows(folders, images):
    """DINOv2 takes the size that gives the fixed part's grid, wherever it stands."""
    for names in (["clip", "dino"], ["dino", "clip"]):
        found = resolve([folders[n] for n in names])
        assert {part.grid for part in found.parts} == {(4, 4)}
    alone = resolve([f"{folders['dino']}@48", folders["dino"]])
    assert [part.grid for part in alone.parts] == [(6, 6), (6, 6)]
    tower = build_tower(alone)
    assert tower(tower.preprocess(images)).shape == (3, 36, 24)


def test_append_and_interleave(folders, images):
    """Tokens add up; taking turns, the first token of each part comes first."""
    names = [folders["clip"], folders["siglip"]]
    first, second = (build_tower(name)(build_tower(name).preprocess(images)) for name in names)
    append = build_tower(resolve(names, join="append"))
    assert torch.equal(append(append.preprocess(images)), torch.cat([first, second], 1))
    assert (append.num_tokens, append.num_patches, append.dim) == (32, 32, 24)
    mixed = build_tower(resolve(names, join="interleave"))
    tokens = mixed(mixed.preprocess(images))
    assert torch.equal(tokens[:, 0::2], first)
    assert torch.equal(tokens[:, 1::2], second)


def test_joins_that_cannot_be():
    """Unequal counts and widths name both."""
    a, b = torch.zeros(1, 4, 3), torch.zeros(1, 9, 5)
    for join, message in (
        ("channel", r"equal token counts, got \[4, 9\]"),
        ("append", r"equal widths, got \[3, 5\]; project each part first"),
        ("interleave", "equal token counts"),
        ("chanel", "did you mean 'channel'"),
    ):
        with pytest.raises(UsageError, match=message):
            join_tokens([a, b], join)


def test_interpolated_grids(folders, images):
    """The smaller grid is resampled to the larger one; class tokens are left alone."""
    names = [folders["clip"], f"{folders['dino']}@48"]
    with pytest.raises(UsageError, match=r"4 x 4.*6 x 6"):
        resolve(names)
    found = resolve(names, grid_align="interpolate", select="cls_patch")
    tower = build_tower(found)
    tokens = tower(tower.preprocess(images))
    assert tokens.shape == (3, 37, 36)
    clip = build_tower(resolve(folders["clip"], select="cls_patch"))
    alone = clip(clip.preprocess(images))
    assert torch.equal(tokens[:, 0, :24], alone[:, 0])
    assert torch.equal(tokens[:, :, :24], resize_tokens(alone, (4, 4), (6, 6), 1))


def test_resampling_keeps_a_plane():
    """A constant stays a constant, a ramp its mean; equal grids are not touched."""
    ramp = torch.arange(4.0).repeat(4).reshape(1, 16, 1)
    larger = resize_tokens(ramp, (4, 4), (8, 8))
    assert larger.mean() == ramp.mean()
    assert torch.equal(resize_tokens(torch.ones(1, 16, 2), (4, 4), (6, 6)), torch.ones(1, 36, 2))
    assert resize_tokens(ramp, (4, 4), (4, 4)) is ramp


def test_class_tokens_side_by_side(folders, images):
    """cls_patch of two parts with a class token; one without cannot take part."""
    tower = build_tower(resolve([folders["clip"], folders["dino"]], select="cls_patch"))
    assert tower(tower.preprocess(images)).shape == (3, 17, 36)
    assert (tower.num_tokens, tower.num_patches) == (17, 16)
    with pytest.raises(UsageError, match="no class token"):
        resolve([folders["clip"], folders["siglip"]], select="cls_patch")


def test_a_pixel_batch_is_like_a_tensor(folders, images):
    """Length, index, slice, mask, cast and stack go over the images, not over the parts."""
    tower = build_tower([folders["clip"], f"{folders['dino']}"])
    batch = tower.preprocess(images)
    assert isinstance(batch, PixelBatch)
    assert len(batch) == 3
    assert batch.to(torch.float16).dtype == torch.float16
    assert batch.device == torch.device("cpu")
    whole = tower(batch)
    torch.testing.assert_close(tower(batch[1:]), whole[1:], rtol=1e-5, atol=1e-5)
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(tower(batch[mask]), whole[mask], rtol=1e-5, atol=1e-5)
    again = PixelBatch.stack(list(batch))
    assert all(torch.equal(a, b) for a, b in zip(again.parts, batch.parts, strict=True))
    assert "(3, 3, 32, 32)" in repr(batch)
    with pytest.raises(ValueError, match="pixels for 1 towers, expected 2"):
        tower([batch.parts[0]])
    with pytest.raises(TypeError, match="one tensor for several towers"):
        tower(batch.parts[0])
    with pytest.raises(TypeError, match="no length"):
        len(batch[0])
    assert not isinstance(batch, Sequence)  # a loader that pins memory would take it apart
    assert whole.shape[1:] == tower(batch[:0]).shape[1:]


class Noisy(VisionTower):
    """As a diffusion tower: no class token, a wide grid, features that rest on noise."""

    def load(self):
        """It has no weights."""

    def encode(self, pixels_BCSS, noise=None):
        """Means of the patches, and noise of the pixels' own seed unless it is given."""
        side = self.grid[0]
        means = torch.nn.functional.adaptive_avg_pool2d(pixels_BCSS, side).flatten(2).mT
        if noise is None:
            seeds = [hash((self.spec.seed, one.double().sum().item())) for one in pixels_BCSS]
            drawn = [torch.Generator().manual_seed(seed) for seed in seeds]
            noise = torch.stack([torch.randn(means.shape[1:], generator=g) for g in drawn])
        return torch.cat([means, means + noise], 2)


def test_the_interface_carries_diffusion(folders, images):
    """2,304 tokens of a 768 px tower beside 32 px; noise by the image alone, or as given."""
    spec = dataclasses.replace(
        resolve(folders["siglip"]).parts[0], size=768, patch=16, dim=6, t=1, seed=0, prompt=""
    )
    tower = Noisy(spec)
    assert (tower.num_tokens, tower.grid) == (2304, (48, 48))
    pixels = tower.preprocess(images)
    together = tower(pixels)
    alone = torch.cat([tower(one[None]) for one in pixels.flip(0)]).flip(0)
    assert torch.equal(together, alone)
    given = tower(pixels, noise=torch.zeros(3, 2304, 3))
    assert torch.equal(given[..., :3], given[..., 3:])
    clip = build_tower(folders["clip"])
    found = Representation("both", (spec, clip.spec), "channel", "interpolate")
    both = CombinedTower(found, [tower, clip])
    batch = both.preprocess(images)
    assert [part.shape[-1] for part in batch.parts] == [768, 32]
    assert both(batch).shape == (3, 2304, 30)


def test_one_field_of_view(folders):
    """In a shared frame parts of different sizes see the same part of the image; in `own` not."""
    image = tiny.picture(90, 40)
    tower = build_tower([f"{folders['dino']}@64", f"{folders['dino']}@64"], frame="crop")
    small = build_tower(folders["siglip"], frame="crop")
    large = tower.preprocess([image]).parts[0]
    shrunk = torch.nn.functional.interpolate(large, (32, 32), mode="area")
    correlation = torch.corrcoef(
        torch.stack([shrunk.flatten(), small.preprocess([image]).flatten()])
    )
    assert correlation[0, 1] > 0.99


@pytest.mark.parametrize("select", ["cls", "cls_patch"])
def test_unlike_tokens_do_not_join(folders, select):
    """A class token beside patches: both towers and what to say are named, wherever it comes from.

    From stored specs, and from families whose default it is; appended tokens may be of any kind.
    """
    clip, dino = resolve([folders["clip"], folders["dino"]]).parts
    unlike = (dataclasses.replace(clip, select=select), dino)
    said = rf"{clip.id} selects '{select}'.*{dino.id} 'patch' \(16\).*mm_vision_select_feature"
    for join, parts in (("channel", unlike), ("interleave", unlike)):
        with pytest.raises(UsageError, match=said):
            Representation("x", parts, join)
    with pytest.raises(UsageError, match=said):
        registry._settle_grids(list(unlike), [False, False], "channel", "interpolate")
    config = types.SimpleNamespace(
        mm_vision_tower="x", mm_vision_specs=[to_plain(part) for part in unlike]
    )
    with pytest.raises(UsageError, match=said):
        representation_of(config)
    assert Representation("x", unlike, "append").tokens == 16 + {"cls": 1, "cls_patch": 17}[select]


@pytest.mark.parametrize("join", ["channel", "append", "interleave"])
def test_class_tokens_alone(folders, images, join):
    """Every join of two: what the parts give alone, whatever their grids."""
    names = [folders["clip"], f"{folders['dino']}@48"]
    if join != "channel":
        names = [folders["clip"], folders["clip"]]
    tower = build_tower(resolve(names, select="cls", join=join))
    first, second = (build_tower(resolve(name, select="cls")) for name in names)
    wanted = [part(part.preprocess(images)) for part in (first, second)]
    tokens = tower(tower.preprocess(images))
    assert torch.equal(tokens, torch.cat(wanted, 2 if join == "channel" else 1))
    assert tokens.shape[1:] == (tower.num_tokens, tower.dim)
