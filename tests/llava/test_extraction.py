"""Extraction: batched, resumable, shared between processes; what is bad is named."""

import io
import os
import signal
import subprocess
import sys

import pytest
import tiny
import torch
from PIL import Image, ImageFile, ImageOps

from llava.errors import LawError, UsageError
from llava.extraction import decode, extract, find_images, main, usable_device
from llava.features import FeatureStore, image_key, mirrored_key
from llava.launch import Launch, launch
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.registry import resolve


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Folder of a tiny DINOv2."""
    return str(tiny.save_encoder(tmp_path_factory.mktemp("encoder") / "dino", "dinov2"))


@pytest.fixture
def images(tmp_path):
    """A folder of ten pictures in two sub-folders, one of them twice."""
    folder = tmp_path / "images"
    for i in range(9):
        path = folder / f"set{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny.picture(30 + 5 * i, 40, seed=i).save(path)
    (folder / "again.PNG").write_bytes((folder / "set0" / "0.png").read_bytes())
    return folder


def files(root) -> dict[str, bytes]:
    """Every file below `root` with its bytes."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def run(root, encoder, images, **options):
    """Extracts with a small batch; the single Extraction."""
    options = {"frame": "pad", "batch_size": 3} | options
    (done,) = extract(resolve(encoder), find_images([images]), FeatureStore(root), **options)
    return done


@pytest.mark.parametrize("suffix", ["png", "jpeg"])
def test_images_cut_short(suffix, monkeypatch):
    """Are refused, also where another library lets PIL fill them up."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    file = io.BytesIO()
    tiny.picture(64, 48).save(file, suffix)
    assert decode(file.getvalue()).size == (64, 48)
    with pytest.raises(LawError, match="does not decode"):
        decode(file.getvalue()[:-200])


def test_equals_the_tower(tmp_path, encoder, images):
    """Stored tokens are those of the tower; tolerance: sums in another order of the batch."""
    done = run(tmp_path / "store", encoder, images)
    assert (done.computed, done.reused, len(done.keys)) == (9, 1, 10)
    tower = build_tower(encoder, frame="pad")
    for path, key in done.keys.items():
        assert key == image_key(path)
        alone = tower(tower.preprocess([decode(path.read_bytes())]))[0]
        torch.testing.assert_close(done.space.read(key), alone, rtol=1e-5, atol=1e-5)


def test_again_is_nothing(tmp_path, encoder, images, monkeypatch):
    """A second run computes nothing, not even the weights are read; no byte changes."""
    run(tmp_path / "store", encoder, images)
    before = files(tmp_path / "store")
    monkeypatch.setattr("llava.extraction.build_tower", None)
    done = run(tmp_path / "store", encoder, images)
    assert (done.computed, done.reused) == (0, 10)
    assert files(tmp_path / "store") == before


def test_damage_is_redone(tmp_path, encoder, images):
    """Truncated and altered shards and stray files: the same bytes are there again."""
    store = tmp_path / "store"
    run(store, encoder, images)
    before = files(store)
    cut, changed, *_ = sorted(store.rglob("*.safetensors"))
    cut.write_bytes(cut.read_bytes()[:200])
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    assert run(store, encoder, images).computed > 0
    assert files(store) == before


def test_two_ranks_are_one(tmp_path, encoder, images, monkeypatch):
    """Under a launcher each rank takes its share of the groups; together the same files."""
    run(tmp_path / "one", encoder, images)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        run(tmp_path / "two", encoder, images)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_workers_do_not_matter(tmp_path, encoder, images):
    """Reading ahead with one thread or five gives the same files."""
    run(tmp_path / "one", encoder, images, workers=1)
    run(tmp_path / "five", encoder, images, workers=5)
    assert files(tmp_path / "one") == files(tmp_path / "five")


def test_parts_of_a_combination(tmp_path, encoder, images):
    """Each tower has its own space, shared with every combination that it is part of."""
    clip = str(tiny.save_encoder(tmp_path / "clip", "clip_vision_model"))
    store = FeatureStore(tmp_path / "store")
    extract(resolve([encoder, clip]), find_images([images]), store)
    again = extract(resolve([clip]), find_images([images]), store)
    assert [one.computed for one in again] == [0]
    assert len(store.spaces()) == 2


def test_bad_images(tmp_path, encoder, images):
    """All the others are done, then the error names one; --skip-bad goes on; all are counted."""
    whole = (images / "set0" / "2.png").read_bytes()
    (images / "set0" / "2.png").write_bytes(whole[: len(whole) // 2])
    (images / "set1" / "text.jpg").write_text("not an image")
    (images / "set1" / "empty.jpg").write_bytes(b"")
    Image.new("F", (9, 9)).save(images / "float.tiff")
    Image.new("L", (1, 20000)).save(images / "thin.png")
    with pytest.raises(LawError, match=r"5 images are left out.*--skip-bad"):
        run(tmp_path / "store", encoder, images)
    done = run(tmp_path / "store", encoder, images, skip_bad=True)
    assert sorted(path.name for path in done.bad) == [
        "2.png",
        "empty.jpg",
        "float.tiff",
        "text.jpg",
        "thin.png",
    ]
    assert "too thin for frame 'pad'" in done.bad[images / "thin.png"]
    assert len(done.space) == 8
    assert done.computed == 0


def test_features_that_are_not_finite(tmp_path, encoder, images, monkeypatch):
    """The image is named, the others of its group are kept."""
    from llava.model.multimodal_encoder.base import VisionTower

    whole = VisionTower.forward

    def broken(self, pixels):
        tokens = whole(self, pixels)
        tokens[0, 3, 2] = torch.nan
        return tokens

    monkeypatch.setattr(VisionTower, "forward", broken)
    with pytest.raises(LawError, match=r"\.png: .*NaN or infinite features in bfloat16; take"):
        run(tmp_path / "store", encoder, images, dtype="bfloat16")
    done = run(tmp_path / "store", encoder, images, dtype="bfloat16", skip_bad=True)
    assert len(done.bad) >= 3
    assert len(done.space) == 9 - len(done.bad)


def test_other_groupings_mend_damage(tmp_path, encoder, images):
    """With another batch size the damaged shard keeps its name, and good copies are read."""
    done = run(tmp_path / "store", encoder, images, batch_size=4)
    for shard in done.space.folder.glob("*.safetensors"):
        data = bytearray(shard.read_bytes())
        data[-5] ^= 1
        shard.write_bytes(data)
    again = run(tmp_path / "store", encoder, images, batch_size=3)
    assert again.computed > 0
    fresh = FeatureStore(tmp_path / "store").find(done.space.spec, "pad")
    assert all(fresh.read(key).isfinite().all() for key in done.keys.values())


def test_links_are_followed(tmp_path, images):
    """A category that is a link to a folder elsewhere counts; a link back up ends."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.png").write_bytes((images / "set0" / "0.png").read_bytes())
    (images / "linked").symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(images)
    assert images / "linked" / "x.png" in find_images([images])
    assert len(find_images([images])) == 11


def test_going_on_without_a_package(tmp_path, encoder, images, monkeypatch, capsys):
    """--skip-missing says which tower is left out; with none left it is an error."""
    import llava.extraction as extraction
    from llava.errors import MissingPackageError

    lacking = resolve("clip").parts[0].id

    def check(spec):
        if spec.id == lacking:
            raise MissingPackageError(f"{spec.id} needs nothing-there; type `pip install it`")

    monkeypatch.setattr(extraction, "check_packages", check)
    arguments = ["--images", str(images), "--out", str(tmp_path / "s"), "--skip-missing"]
    main([*arguments, "--model", "clip", "--model", encoder])
    shown = capsys.readouterr()
    assert "going on without openai/clip" in shown.err
    assert "pip install it" in shown.err
    assert shown.out.count("computed") == 1
    with pytest.raises(LawError, match="none of the towers can be run"):
        main([*arguments, "--model", "clip"])


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "2"}, "RANK is 2 and WORLD_SIZE None"),
        ({"WORLD_SIZE": "2"}, "RANK is None and WORLD_SIZE 2"),
        ({"RANK": "9", "WORLD_SIZE": "2"}, "expected a rank from 0"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
    ],
)
def test_half_a_launch_is_refused(monkeypatch, environment, message):
    """Else some share of the work would be nobody's."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        launch()


def test_slurm(monkeypatch):
    """srun's steps are launches; the shell of an allocation is one process."""
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert launch() == Launch(0, 1, 0)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert launch() == Launch(3, 4, 1)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta"])
def test_devices_that_are_none(device):
    """Found before any work, with the command that shows what is there."""
    if device == "cuda:99" and torch.cuda.is_available():
        pytest.skip("a CUDA error would stay with the process")
    with pytest.raises(UsageError, match="law doctor"):
        usable_device(device)


def test_mirrored_images(tmp_path, encoder, images):
    """Under keys of their own, with the tokens of the picture turned left to right."""
    run(tmp_path / "store", encoder, images)
    done = run(tmp_path / "store", encoder, images, mirrored=True)
    assert (done.computed, len(done.space)) == (9, 18)
    tower = build_tower(encoder, frame="pad")
    path = images / "set1" / "3.png"
    turned = ImageOps.mirror(decode(path.read_bytes()))
    alone = tower(tower.preprocess([turned]))[0]
    assert done.keys[path] == mirrored_key(image_key(path))
    torch.testing.assert_close(done.space.read(done.keys[path]), alone, rtol=1e-5, atol=1e-5)
    assert run(tmp_path / "store", encoder, images).reused == 10


def test_no_room(tmp_path, encoder, images, monkeypatch):
    """Said before the work starts."""
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("llava.extraction.shutil.disk_usage", lambda _: usage)
    with pytest.raises(LawError, match=r"GiB are needed.*--dtype float16"):
        run(tmp_path / "store", encoder, images)


def test_usage(tmp_path, encoder, images):
    """Missing folders, folders without images, bad flags."""
    with pytest.raises(LawError, match="no such file or folder"):
        find_images([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(LawError, match="no image there"):
        find_images([tmp_path / "empty"])
    with pytest.raises(UsageError, match="batch size"):
        run(tmp_path / "store", encoder, images, batch_size=0)
    arguments = ["--images", str(images), "--model", encoder, "--out", str(tmp_path / "s")]
    with pytest.raises(UsageError, match="did you mean 'float32'"):
        main([*arguments, "--dtype", "float3"])
    with pytest.raises(UsageError, match="did you mean 'pad'"):
        main([*arguments, "--frame", "pda"])
    with pytest.raises(UsageError, match="OLD=NEW"):
        main([*arguments, "--tower-alias", "clip"])


def test_command(tmp_path, encoder, images, capsys):
    """One line per tower on stdout; another dtype is another space."""
    arguments = ["--images", str(images), "--model", encoder, "--out", str(tmp_path / "s")]
    main([*arguments, "--select", "cls_patch"])
    main([*arguments, "--dtype", "bfloat16", "--frame", "stretch", "--mirrored"])
    out = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2] for line in out] == ["9 computed, 1 there"] * 3
    spaces = FeatureStore(tmp_path / "s").spaces()
    assert {(s.frame, s.dtype, s.spec.tokens) for s in spaces} == {
        ("own", "float32", 17),
        ("stretch", "bfloat16", 16),
    }


KILLED = """
import sys, time
import llava.extraction as extraction
from llava.features import Space

write = Space.write
def slow(self, tokens):
    write(self, tokens)
    print("wrote", flush=True)
    time.sleep(0.3)
Space.write = slow
extraction.main(sys.argv[1:])
"""


def test_killed_and_resumed(tmp_path, encoder, images):
    """kill -9 after the first shards; the second run ends with the bytes of an unbroken one."""
    arguments = ["--images", str(images), "--model", encoder, "--frame", "pad"]
    arguments += ["--batch-size", "2", "--out"]
    main([*arguments, str(tmp_path / "whole")])
    command = [sys.executable, "-c", KILLED, *arguments, str(tmp_path / "broken")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "wrote\n"
    assert process.stdout.readline() == "wrote\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    broken = files(tmp_path / "broken")
    assert 1 < len(broken) < len(files(tmp_path / "whole"))
    main([*arguments, str(tmp_path / "broken")])
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_at_once(tmp_path, encoder, images):
    """Two extractions into one store at the same time, and torchrun with two processes."""
    arguments = ["--images", str(images), "--model", encoder, "--frame", "pad"]
    arguments += ["--batch-size", "3", "--out"]
    run(tmp_path / "alone", encoder, images)
    law = [sys.executable, "-m", "llava", "features", *arguments, str(tmp_path / "both")]
    both = [subprocess.Popen(law, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert files(tmp_path / "both") == files(tmp_path / "alone")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launch += ["-m", "llava", "features", *arguments, str(tmp_path / "launched")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(launch, check=True, capture_output=True, env=environment, timeout=240)
    assert files(tmp_path / "launched") == files(tmp_path / "alone")
