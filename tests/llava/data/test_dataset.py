"""Records become the reference's batches, in any worker; bad ones are said or left out."""

import json
import pickle

import numpy as np
import pytest
import torch
from repository import ROOT
from texts import llama_folder
from tiny import picture
from torch.utils.data import DataLoader

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.collator import Collator
from llava.data.dataset import ConversationDataset
from llava.data.fitting import Fitter, fit
from llava.data.images import ImageError, ImageSource
from llava.data.masks import Labelled, Labeller, SampleError
from llava.data.packing import PackedDataset, pack
from llava.data.records import Records
from llava.data.survey import survey
from llava.errors import LawError, UsageError
from llava.model.multimodal_encoder.combined import PixelBatch
from llava.model.multimodal_encoder.processor import ImageProcessor
from llava.model.multimodal_encoder.registry import resolve
from llava.tokenization import load_tokenizer

GOLDEN = ROOT / "tests" / "golden" / "llava"
PIXELS = np.load(GOLDEN / "images" / "pixel_values.npz")
BATCHES = np.load(GOLDEN / "stage_batches.npz")
CLIP, DINOV2 = "openai/clip-vit-large-patch14", "facebook/dinov2-large"
SIGLIP = "google/siglip-base-patch16-224"
PINPOINTS = [(32, 64), (64, 32), (64, 64)]
VERSIONS = {"stage1": "plain", "stage2": "v1"}
TOKENS = 16


@pytest.fixture(autouse=True)
def _golden_towers(monkeypatch):
    """The golden folders go by the names of the towers that they stand for."""
    monkeypatch.chdir(GOLDEN / "models")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The one that the golden batches were made with."""
    return load_tokenizer(llama_folder("tiny_legacy_false", tmp_path_factory.mktemp("tokenizer")))


def talk(*texts: str, image=None) -> dict:
    """A record of these turns, human first."""
    turns = [
        {"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)
    ]
    return ({} if image is None else {"image": image}) | {"conversations": turns}


def source(folder=GOLDEN / "images", names=CLIP, mode="square", geometry="own", **also):
    """Golden images for golden towers."""
    processor = ImageProcessor(resolve(names)).for_aspect_ratio(mode, geometry)
    return ImageSource(folder, processor, mode, **also)


def write(folder, values: list[dict]) -> Records:
    """Records of a file in `folder`."""
    path = folder / "data.json"
    path.write_text(json.dumps(values))
    return Records(path)


def golden(stage: str, tokenizer, cache, images=None, **also) -> ConversationDataset:
    """The records of the golden batch."""
    return ConversationDataset(
        Records(GOLDEN / f"{stage}_data.json", cache_dir=cache),
        Labeller(tokenizer, VERSIONS[stage]),
        images or source(),
        TOKENS,
        also.pop("max_length", None),
        **also,
    )


# ------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("names", [CLIP, [CLIP, DINOV2]], ids=["clip", "clip_dinov2"])
@pytest.mark.parametrize("stage", VERSIONS)
def test_golden_batches(tokenizer, tmp_path, stage, names):
    """Ids, labels, mask and pixels are the reference's; its blank image for a text is left out."""
    dataset = golden(stage, tokenizer, tmp_path, source(names=names))
    batch = Collator(tokenizer.pad_token_id)([dataset[i] for i in range(len(dataset))])
    for key in ("input_ids", "labels", "attention_mask"):
        assert batch[key].dtype == torch.from_numpy(BATCHES[f"{stage}.{key}"]).dtype
        np.testing.assert_array_equal(batch[key].numpy(), BATCHES[f"{stage}.{key}"])
    records = json.loads((GOLDEN / f"{stage}_data.json").read_text())
    files = [record["image"] for record in records if "image" in record]
    parts = batch["images"].parts if isinstance(names, list) else [batch["images"]]
    for tower, part in zip(("clip", "dinov2"), parts, strict=False):
        expected = np.stack([PIXELS[f"square/{tower}/{file}"] for file in files])
        np.testing.assert_array_equal(part.numpy(), expected)
    sizes = [PIXELS[f"rgb/{file}"].shape[1::-1] for file in files]
    assert batch["image_sizes"] == sizes


@pytest.mark.parametrize("mode", ["square", "pad"])
@pytest.mark.parametrize("tower", ["clip", "dinov2", "siglip"])
def test_golden_pixels(tokenizer, tmp_path, tower, mode):
    """Every golden image through the data set, for every kind of tower."""
    files = [key.removeprefix("rgb/") for key in PIXELS if key.startswith("rgb/")]
    records = write(tmp_path, [talk("<image>\nWhat?", "That.", image=file) for file in files])
    images = source(names={"clip": CLIP, "dinov2": DINOV2, "siglip": SIGLIP}[tower], mode=mode)
    dataset = ConversationDataset(records, Labeller(tokenizer, "v1"), images, TOKENS, None)
    for file, sample in zip(files, (dataset[i] for i in range(len(dataset))), strict=True):
        assert sample["images"].shape == (1, 3, 32, 32)
        if file.endswith(".png"):  # other decoders may give a JPEG otherwise, in the last level
            np.testing.assert_array_equal(
                sample["images"][0].numpy(), PIXELS[f"{mode}/{tower}/{file}"]
            )


def test_golden_anyres(tokenizer, tmp_path):
    """Views of every image, and as many tokens as its size makes."""
    files = ["a_wide.png", "c_square.png"]
    records = write(tmp_path, [talk("<image>\nWhat?", "That.", image=file) for file in files])
    images = source(mode="anyres", pinpoints=PINPOINTS, merge="spatial_unpad")
    labeller = Labeller(tokenizer, "v1")
    found = survey(records, labeller, images, TOKENS, None)
    dataset = ConversationDataset(records, labeller, images, TOKENS, None, survey=found)
    samples = [dataset[i] for i in range(2)]
    for file, sample in zip(files, samples, strict=True):
        np.testing.assert_array_equal(sample["images"][0].numpy(), PIXELS[f"anyres/clip/{file}"])
    batch = Collator(0)(samples)
    assert [len(views) for views in batch["images"]] == [3, 5]
    each = [
        images.processor.anyres_tokens(size, PINPOINTS, "spatial_unpad")
        for size in batch["image_sizes"]
    ]
    ids = [len(sample["input_ids"]) for sample in samples]
    assert dataset.lengths_in_tokens.tolist() == [n - 1 + k for n, k in zip(ids, each, strict=True)]


# ------------------------------------------------------------------------------- cutting


def labelled(*ids: int, labels=None) -> Labelled:
    """Ids whose labels are themselves, images apart."""
    own = [IGNORE_INDEX if token < 0 else token for token in ids]
    return Labelled(list(ids), labels or own)


IMAGE = IMAGE_TOKEN_INDEX


@pytest.mark.parametrize(
    ("ids", "tokens", "limit", "kept", "length"),
    [
        ((1, IMAGE, 5, 6, 7), [10], None, 5, 14),
        ((1, IMAGE, 5, 6, 7), [10], 14, 5, 14),
        ((1, IMAGE, 5, 6, 7), [10], 13, 4, 13),
        ((1, IMAGE, 5, 6, 7), [10], 12, 3, 12),
        ((1, 5, IMAGE, 6, IMAGE, 7, 8), [3, 4], 11, 6, 11),
        ((1, 2, 3, 4), [], 2, 2, 2),
    ],
)
def test_cut(ids, tokens, limit, kept, length):
    """Behind the last token that fits, images counted as what they become."""
    found = fit(labelled(*ids), ["x"] * len(tokens), tokens, limit)
    assert found.input_ids == list(ids[:kept])
    assert found.tokens == length
    assert found.cut == (kept < len(ids))
    assert found.supervised == sum(i > 0 for i in ids[1:kept])


@pytest.mark.parametrize(
    ("ids", "tokens", "limit", "message"),
    [
        ((1, IMAGE, 5), [10], 10, "too many image tokens: 10 .* maximum length of 10"),
        ((1, IMAGE, 5), [10], 11, "nothing is supervised: within the maximum length of 11"),
        ((1, 5, IMAGE, 6, IMAGE), [3, 4], 9, "too many image tokens: 7"),
        ((1, IMAGE), [4], None, "nothing is supervised: no answer"),
    ],
)
def test_cut_away(ids, tokens, limit, message):
    """An image is never cut, and a sample without a label is none."""
    with pytest.raises(SampleError, match=message):
        fit(labelled(*ids), ["x"] * len(tokens), tokens, limit)


def test_length_is_the_models(tokenizer, tmp_path):
    """With a limit no sample is longer in the model, and what is left is the beginning."""
    whole = golden("stage2", tokenizer, tmp_path)
    cut = golden("stage2", tokenizer, tmp_path, max_length=140)
    for i in range(4):
        a, b = whole[i], cut[i]
        spliced = len(b["input_ids"]) + (TOKENS - 1) * int((b["input_ids"] == IMAGE).sum())
        assert spliced <= 140
        assert torch.equal(a["input_ids"][: len(b["input_ids"])], b["input_ids"])
        assert torch.equal(a["labels"][: len(b["labels"])], b["labels"])


# ------------------------------------------------------------------------------- images and text


def samples_of(tokenizer, folder, values: list[dict], images=None, version="v1"):
    """A data set of these records."""
    given = (write(folder, values), Labeller(tokenizer, version), images or source(), TOKENS, None)
    return ConversationDataset(*given)


def test_several_images(tokenizer, tmp_path):
    """A list of images takes the placeholders in order, and a batch holds them row by row."""
    several = talk("<image> and <image>: which?", "Both.", image=["a_wide.png", "b_tall.png"])
    one = talk("<image>\nThis?", "Yes.", image=["c_square.png"])
    dataset = samples_of(tokenizer, tmp_path, [one, several, talk("No image.", "None."), one])
    batch = Collator(0)([dataset[i] for i in range(4)])
    assert batch["images"].shape == (4, 3, 32, 32)
    files = ["c_square.png", "a_wide.png", "b_tall.png", "c_square.png"]
    expected = np.stack([PIXELS[f"square/clip/{file}"] for file in files])
    np.testing.assert_array_equal(batch["images"].numpy(), expected)
    assert (batch["input_ids"] == IMAGE).sum(1).tolist() == [1, 2, 0, 1]


def test_images_and_places_differ(tokenizer, tmp_path):
    """Is an error that counts both; no image stands in for another."""
    wrong = [
        talk("<image> and <image>?", "x", image=["a_wide.png", "b_tall.png", "c_square.png"]),
        talk("<image>\nfirst?", "x", "<image>\nsecond?", "y", image="a_wide.png"),
    ]
    dataset = samples_of(tokenizer, tmp_path, wrong)
    with pytest.raises(LawError, match="record 0: 3 images, and 2 places of <image>"):
        dataset[0]
    with pytest.raises(LawError, match="record 1: 1 images, and 2 places of <image>"):
        dataset[1]


def test_no_image_but_its_sign(tokenizer, tmp_path):
    """`<image>` in a record without one is a word of its text."""
    dataset = samples_of(tokenizer, tmp_path, [talk("What does <image> mean?", "A tag: <image>.")])
    sample = dataset[0]
    assert (sample["input_ids"] >= 0).all()
    assert "images" not in sample
    assert "<image>" in tokenizer.decode(sample["labels"][sample["labels"] >= 0])


def test_image_that_no_text_names(tokenizer, tmp_path):
    """Is not looked at: the model would have no place for it. The survey counts it."""
    records = [talk("No sign of it.", "Indeed.", image="a_wide.png")]
    dataset = samples_of(tokenizer, tmp_path, records)
    assert "images" not in dataset[0]
    found = survey(dataset.records, dataset.fitter.labeller, source(), TOKENS, None)
    assert found.unseen == 1


def test_image_without_tower(tokenizer, tmp_path):
    """A record with an image cannot be used by a model that has no eyes."""
    records = write(tmp_path, [talk("<image>\nWhat?", "x", image="a_wide.png"), talk("Hi", "Ho")])
    dataset = ConversationDataset(records, Labeller(tokenizer, "v1"), None, 0, None)
    assert len(dataset[1]["input_ids"]) > 0
    with pytest.raises(
        LawError, match="record 0: has an image, and this model has no vision tower"
    ):
        dataset[0]
    assert survey(records, Labeller(tokenizer, "v1"), None, 0, None).keep.tolist() == [1]


# ------------------------------------------------------------------------------- bad images


@pytest.fixture
def folder(tmp_path):
    """Images, good and bad, in a folder with something beside it."""
    folder = tmp_path / "images"
    folder.mkdir()
    picture(40, 30).save(folder / "good.png")
    (tmp_path / "beside.png").write_bytes((folder / "good.png").read_bytes())
    picture(64, 64).save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    (folder / "folder.png").mkdir()
    picture(3000, 1).resize((60_000, 1)).save(folder / "thin.png")
    (folder / "link.png").symlink_to(tmp_path / "beside.png")
    (folder / "dangling.png").symlink_to(tmp_path / "gone.png")
    return folder


BAD = {
    "gone.png": "cannot be read: No such file",
    "cut.jpg": "does not decode: .*truncated",
    "empty.png": "is an empty file",
    "text.png": "does not decode: no image format",
    "folder.png": "cannot be read: Is a directory",
    "dangling.png": "cannot be read: No such file",
    "../beside.png": "is no file inside of",
    "sub/../../beside.png": "is no file inside of",
    "../../etc/passwd": "is no file inside of",
    "/etc/passwd": "is no file inside of",
    ".": "is no file inside of",
    "good.png/..": "is no file inside of",
    "nul\0.png": "is no file inside of",
    "x" * 5000: "cannot be read: File name too long",
    "good.png/x": "cannot be read: Not a directory",
}


@pytest.mark.parametrize("name", BAD, ids=lambda name: repr(name[:12]))
def test_bad_images(folder, name):
    """Say what is wrong with them, and a name never leads out of the folder."""
    with pytest.raises(ImageError, match=BAD[name]):
        source(folder).pixels([name])
    with pytest.raises(ImageError):
        source(folder).check(name, "decode")


def test_checks(folder):
    """`exist` finds what is not there without reading, `decode` finds all."""
    images = source(folder)
    for name in ("gone.png", "empty.png", "folder.png", "dangling.png"):
        images.check(name, "none")
        with pytest.raises(ImageError):
            images.check(name, "exist")
    images.check("cut.jpg", "exist")
    for name in ("../beside.png", "/etc/passwd"):
        with pytest.raises(ImageError, match="is no file inside of"):
            images.check(name, "none")


def test_names_that_are_fine(folder, monkeypatch):
    """Links, whole paths into the folder, dots that stay inside; from a relative folder, too."""
    images = source(folder)
    for name in ("link.png", str(folder / "good.png"), "./good.png", "folder.png/../good.png"):
        assert images.pixels([name])[0].shape == (1, 3, 32, 32)
    monkeypatch.chdir(folder.parent)
    spec = images.processor
    inside = ImageSource("images/../images", spec)
    assert inside.load("good.png").size == (40, 30)
    assert inside.load(str(folder / "good.png")).size == (40, 30)


def test_thin_image(folder):
    """One that cannot be resized is the image's fault."""
    with pytest.raises(ImageError, match="too thin for frame"):
        source(folder, mode="pad").pixels(["thin.png"])


def test_source_is_checked(folder):
    """Before anything is read."""
    processor = ImageProcessor(resolve(CLIP), "own")
    with pytest.raises(UsageError, match="takes frame own_pad or pad, and the processor has 'own'"):
        ImageSource(folder, processor, "pad")
    with pytest.raises(UsageError, match="unknown image policy 'skp'; did you mean 'skip'"):
        ImageSource(folder, processor, policy="skp")
    with pytest.raises(UsageError, match="anyres needs image_grid_pinpoints"):
        ImageSource(folder, processor, "anyres")
    with pytest.raises(UsageError, match="is not made of tiles of 32"):
        ImageSource(folder, processor, "anyres", [(33, 64)])
    with pytest.raises(UsageError, match="unknown mm_patch_merge_type"):
        ImageSource(folder, processor, "anyres", PINPOINTS, merge="x")
    with pytest.raises(LawError, match="no such folder of images"):
        ImageSource(folder / "gone", processor)


def with_bad(folder, tokenizer, policy: str, mode="square", **also) -> ConversationDataset:
    """Four records; the third one's image is damaged, which no check of existence sees."""
    names = ["good.png", "good.png", "cut.jpg"]
    values = [talk("<image>\nWhat?", "That.", image=name) for name in names] + [talk("Hi", "Ho")]
    records = write(folder.parent, values)
    images = source(folder, mode=mode, policy=policy, **also)
    labeller = Labeller(tokenizer, "v1")
    found = survey(records, labeller, images, TOKENS, None)
    return ConversationDataset(records, labeller, images, TOKENS, None, survey=found)


def test_damage_found_late_is_an_error(folder, tokenizer):
    """File, record and what to do."""
    dataset = with_bad(folder, tokenizer, "error")
    assert len(dataset) == 4
    with pytest.raises(LawError, match=r"record 2: image cut\.jpg: .*--image_policy skip"):
        dataset[2]


def test_damage_found_late_is_skipped(folder, tokenizer, law_log):
    """The sample goes on as unsupervised text, so that every rank keeps its number of samples."""
    dataset = with_bad(folder, tokenizer, "skip")
    good, bad = dataset[0], dataset[2]
    assert "images" not in bad
    assert (bad["labels"] == IGNORE_INDEX).all()
    assert torch.equal(bad["input_ids"], good["input_ids"][good["input_ids"] != IMAGE])
    assert dataset.damaged == {"cut.jpg": pytest.approx(dataset.damaged["cut.jpg"])}
    dataset[2]
    assert sum("cut.jpg" in line for line in law_log) == 1
    batch = Collator(0)([dataset[i] for i in range(4)])
    assert len(batch["images"]) == 2
    packed = Collator(0, packed=True)([[dataset[2]], [dataset[3]]])
    assert "images" not in packed


def test_size_is_gone_late(folder, tokenizer):
    """With anyres the size decides the tokens; an image that is gone by then is skipped as well."""
    dataset = with_bad(folder, tokenizer, "skip", "anyres", pinpoints=PINPOINTS)
    assert len(dataset) == 4  # half a JPEG still has its header
    (folder / "cut.jpg").unlink()
    assert (dataset[2]["labels"] == IGNORE_INDEX).all()


# ------------------------------------------------------------------------------- in workers


def equal(a, b) -> bool:
    """Whether two items or batches hold the same."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, PixelBatch):
        return equal(list(a.parts), list(b.parts))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize(("method", "names"), [("fork", CLIP), ("spawn", [CLIP, DINOV2])])
def test_workers(tokenizer, tmp_path, method, names, monkeypatch):
    """Batches from worker processes are those of this one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    dataset = golden("stage2", tokenizer, tmp_path, source(names=names))
    collator = Collator(tokenizer.pad_token_id)
    here = list(DataLoader(dataset, 2, collate_fn=collator))
    there = DataLoader(
        dataset, 2, collate_fn=collator, num_workers=2, multiprocessing_context=method
    )
    assert equal(here, list(there))


def test_pinning(tokenizer, tmp_path, monkeypatch):
    """A loader that pins finds the PixelBatch in a batch; without a GPU it does not try."""
    pinned = []
    monkeypatch.setattr(PixelBatch, "pin_memory", lambda self, device=None: pinned.append(self))
    dataset = golden("stage2", tokenizer, tmp_path, source(names=[CLIP, DINOV2]))
    collator = Collator(0)
    (batch,) = DataLoader(dataset, 4, collate_fn=collator, pin_memory=False)
    torch.utils.data._utils.pin_memory.pin_memory({"images": batch["images"]})
    assert pinned == [batch["images"]]


def test_moving(tokenizer, tmp_path):
    """accelerate moves every part of a batch."""
    from accelerate.utils import send_to_device

    dataset = golden("stage2", tokenizer, tmp_path, source(names=[CLIP, DINOV2]))
    batch = send_to_device(Collator(0)([dataset[0]]), torch.device("cpu"), non_blocking=True)
    assert isinstance(batch["images"], PixelBatch)
    assert batch["images"].to(dtype=torch.bfloat16).dtype == torch.bfloat16


def test_pickles(tokenizer, tmp_path):
    """The whole data set, read again in the copy."""
    dataset = golden("stage1", tokenizer, tmp_path)
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(equal(dataset[i], copy[i]) for i in range(4))


# ------------------------------------------------------------------------------- what is kept


def test_keep(tokenizer, tmp_path):
    """Numbers, lengths and modalities are those of the records that are kept."""
    dataset = golden("stage2", tokenizer, tmp_path, keep=[3, 1])
    assert len(dataset) == 2
    assert [dataset.record_index(i) for i in range(2)] == [3, 1]
    assert [dataset.has_image(i) for i in range(2)] == [True, False]
    assert dataset.lengths.tolist() == BATCHES["stage2.lengths"][[3, 1]].tolist()
    assert dataset.modality_lengths.tolist() == BATCHES["stage2.modality_lengths"][[3, 1]].tolist()
    assert dataset[1]["index"] == 1
    with pytest.raises(LawError, match="lengths in tokens are what a survey"):
        len(dataset.lengths_in_tokens)
    with pytest.raises(IndexError):
        dataset[2]


def test_lengths_in_tokens(tokenizer, tmp_path):
    """Exactly what the model makes of every sample."""
    records = Records(GOLDEN / "stage2_data.json", cache_dir=tmp_path)
    labeller, images = Labeller(tokenizer, "v1"), source()
    found = survey(records, labeller, images, TOKENS, 120)
    dataset = ConversationDataset(records, labeller, images, TOKENS, 120, survey=found)
    for i, length in enumerate(dataset.lengths_in_tokens):
        ids = dataset[i]["input_ids"]
        assert length == len(ids) + (TOKENS - 1) * int((ids == IMAGE).sum())
        assert found.supervised[i] == int((dataset[i]["labels"] != IGNORE_INDEX).sum())


def test_packed(tokenizer, tmp_path):
    """A pack is one row of whole samples, whose first labels are ignored."""
    records = Records(GOLDEN / "stage2_data.json", cache_dir=tmp_path)
    labeller, images = Labeller(tokenizer, "v1"), source()
    found = survey(records, labeller, images, TOKENS, None)
    dataset = ConversationDataset(records, labeller, images, TOKENS, None, survey=found)
    capacity = int(found.tokens.sum())
    packed = PackedDataset(dataset, pack(found.tokens, capacity))
    assert packed.lengths.tolist() == [capacity]
    batch = Collator(0, packed=True)([packed[0]])
    order = packed.indices(0).tolist()
    samples = [dataset[i] for i in order]
    assert "attention_mask" not in batch
    assert batch["input_ids"].shape == batch["labels"].shape == batch["segment_ids"].shape
    assert torch.equal(batch["input_ids"][0], torch.cat([s["input_ids"] for s in samples]))
    for segment, sample in enumerate(samples):
        here = batch["segment_ids"][0] == segment
        assert torch.equal(batch["input_ids"][0][here], sample["input_ids"])
        assert torch.equal(batch["labels"][0][here][1:], sample["labels"][1:])
        assert batch["labels"][0][here][0] == IGNORE_INDEX
    assert len(batch["images"]) == 3
    assert (batch["labels"] != IGNORE_INDEX).sum() == found.supervised.sum()


def row(*ids: int) -> dict:
    """A sample of these ids, all supervised."""
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids), "index": 0}


def test_padding():
    """Masks come from lengths, so an id that pads may stand in a text."""
    samples = [row(5, 0, 6), row(0)]
    right = Collator(0)(samples)
    assert right["attention_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert right["labels"].tolist() == [[5, 0, 6], [0, -100, -100]]
    left = Collator(9, padding_side="left")(samples)
    assert left["input_ids"].tolist() == [[5, 0, 6], [9, 9, 0]]
    assert left["attention_mask"].tolist() == [[True] * 3, [False, False, True]]
    assert left["labels"].tolist() == [[5, 0, 6], [-100, -100, 0]]
    assert right.keys() == {"input_ids", "labels", "attention_mask"}
    with pytest.raises(UsageError, match="unknown padding side 'rigth'; did you mean 'right'"):
        Collator(0, padding_side="rigth")


def test_collating_leaves_samples(tokenizer, tmp_path):
    """A sample that is collated twice gives the same twice."""
    samples = [[row(5, 6)], [row(7)]]
    first = Collator(0, packed=True)(samples)
    assert equal(first, Collator(0, packed=True)(samples))
    assert samples[0][0]["labels"].tolist() == [5, 6]


def test_fitter_is_what_both_use(tokenizer, tmp_path):
    """Survey and data set fit records by the same object's rules."""
    dataset = golden("stage1", tokenizer, tmp_path)
    fitter = Fitter(dataset.fitter.labeller, dataset.images, TOKENS, None)
    fitted = fitter(dataset.records[0])
    assert dataset[0]["input_ids"].tolist() == fitted.input_ids
    assert fitted.images == ["a_wide.png"]
