"""`law a-score dump`: the same images for every representation, and nothing done twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from repository import ROOT
from safetensors.torch import load_file
from world import make_world

from A_score import cli, compute, dumping
from A_score.folders import find_benchmarks
from A_score.tokens import pick
from llava import results
from llava.errors import LawError, UsageError
from llava.eval.image_sources import ImageSource, Picture
from llava.extraction import main as law_features
from llava.features import FeatureStore, image_key
from llava.mm_utils import process_images
from llava.model.builder import load_llava
from llava.model.projection import Projection
from llava.model.saving import save_projector

RUNS = {"clip": ("clip",), "dinov2": ("dinov2",), "both": ("clip", "dinov2")}
RANKED = ["clip", "both"]
N = 5


def stage1_folder(world, folder, *towers, seed=0, **config):
    """What stage 1 leaves, with a random projector."""
    torch.manual_seed(seed)
    model = load_llava(str(world / "llm"), dtype=torch.float32)
    model.initialize_vision_modules(
        SimpleNamespace(
            vision_tower=".".join(str(world / name) for name in towers),
            mm_projector_type="mlp2x_gelu",
        ),
        load_tower=False,
    )
    for name, value in config.items():
        setattr(model.config, name, value)
    save_projector(model, folder)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The tiny world with runs of stage 1 of two towers and of both, in run-<name>/."""
    root = make_world(tmp_path_factory.mktemp("world"), records=12, text_only=0)
    for seed, (name, towers) in enumerate(RUNS.items()):
        stage1_folder(root, root / f"run-{name}", *towers, seed=seed)
    return root


def command(world, out, *flags, runs=tuple(RUNS), n=N):
    """Arguments of a dump of runs on the images of the world."""
    given = ["--run", *(world / f"run-{name}" for name in runs), "--out", out, "--n", n]
    given += ["--benchmark", "mine", "--images", world / "images", *flags]
    return ["dump", *map(str, given)]


def dump(world, out, *flags, **options):
    cli.main(command(world, out, *flags, **options))
    return out


def folder_of(world, out, *towers):
    """The folder of some towers' tokens."""
    name = ".".join(str(world / tower) for tower in towers)
    return out / "mine" / name.lstrip("/").replace("/", "--")


def files(root):
    """Every file below `root` with its bytes and the time of its last change."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def contents(root):
    """Every file below `root` with its bytes; of manifests all but the commit, which moves on."""
    found = {name: data for name, (data, _) in files(root).items()}
    for name in found:
        if name.endswith("manifest.json"):
            found[name] = {k: v for k, v in json.loads(found[name]).items() if k != "commit"}
    return found


@pytest.fixture(scope="module")
def dumps(world, tmp_path_factory):
    """A dump of all runs, and of the same as tensor_<i>.pt in pt/; not to be changed."""
    base = tmp_path_factory.mktemp("dumps")
    return dump(world, base / "dumps", "--pt", base / "pt")


@pytest.fixture
def copy(dumps, tmp_path):
    """A copy of the dump, which may be changed."""
    return shutil.copytree(dumps, tmp_path / "dumps")


def test_aligned_images(world, dumps):
    """Every representation has the same ids, with what its tower and projector give for them."""
    drawn = json.loads((dumps / "mine" / "images.json").read_text())
    assert len(drawn["images"]) == N
    assert (drawn["benchmark"], drawn["seed"]) == ("mine", 0)
    assert drawn["source"]["kind"] == "folder"
    for name, towers in RUNS.items():
        folder = folder_of(world, dumps, *towers)
        found = {path.stem for path in folder.glob("*.safetensors")}
        assert found == set(drawn["images"])
        projection = Projection(world / f"run-{name}")
        for image, content in drawn["images"].items():
            path = world / "images" / image
            (rows,) = projection([Image.open(path)])
            stored = load_file(folder / f"{image}.safetensors")
            assert list(stored) == ["tokens"]
            assert torch.equal(stored["tokens"], rows)
            assert content == image_key(path)


def test_manifest(world, dumps):
    """Everything that the tokens depend on."""
    folder = folder_of(world, dumps, "clip", "dinov2")
    manifest = json.loads((folder / "manifest.json").read_text())
    projection = Projection(world / "run-both")
    assert manifest["tokens"] == projection.facts() | {"tower_tokens": "run"}
    assert manifest["name"] == f"{world}/clip.{world}/dinov2"
    assert manifest["towers"] == [f"{world}/clip", f"{world}/dinov2"]
    assert manifest["run"] == str(world / "run-both")
    assert (manifest["stage"], manifest["shape"]) == ("stage1", [16, 32])
    assert manifest["libraries"]["torch"] == torch.__version__


def test_again_is_nothing(world, copy, monkeypatch):
    """No file is touched, no weight of a tower is read; a smaller --n is nothing to do either."""
    before = files(copy)
    monkeypatch.setattr("llava.model.lazy_tower.build_tower", None)
    dump(world, copy)
    dump(world, copy, n=2)
    assert files(copy) == before


def test_more_images(world, copy, dumps, tmp_path):
    """A longer draw begins with the shorter one, and ends as if it had been drawn at once."""
    before = files(copy)
    dump(world, copy, n=N + 3)
    after = files(copy)
    kept = [name for name in before if not name.endswith("images.json")]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert contents(copy) == contents(dump(world, tmp_path / "at once", n=N + 3))


def test_cosine_equals_the_exported_tensors(world, dumps, tmp_path):
    """The numbers of `law a-score cosine` are those of A_score/compute.py over tensor_<i>.pt."""
    answers = []
    pt = dumps.parent / "pt"
    named = [folder_of(world, pt, name).name for name in ("clip", "dinov2")]
    for base, references in ((dumps, ["clip", "dinov2"]), (pt, named)):
        path = tmp_path / f"{base.name}.json"
        argv = ["--base_folder", base, "--references", *references, "--json", path]
        compute.main(list(map(str, argv)))
        answers.append(json.loads(path.read_text()))
    ours, exported = answers
    assert ours["n_images"] == exported["n_images"] == N
    assert exported["images"] == [f"tensor_{i}" for i in range(1, N + 1)]
    assert [*ours["a_score"].values()] == [
        exported["a_score"][name.lstrip("/").replace("/", "--")] for name in ours["a_score"]
    ]
    assert [list(found.values()) for found in ours["per_image"].values()] == [
        list(exported["per_image"][name.lstrip("/").replace("/", "--")].values())
        for name in ours["per_image"]
    ]
    assert set(ours["a_score"]) == {".".join(f"{world}/{t}" for t in one) for one in RUNS.values()}


def test_results(world, dumps, tmp_path):
    """A row says the representation, its spec and run, the draw, and how tokens were made."""
    table = tmp_path / "results.csv"
    argv = ["--base_folder", dumps, "--references", "clip", "--results", table]
    cli.main(["cosine", *map(str, argv), "--targets", "clip.dinov2", "--n", "3"])
    read = results.read(table)
    (name,) = read.names["representation"]
    assert name == f"{world}/clip.{world}/dinov2"
    header, row = (line.split(",") for line in table.read_text().splitlines())
    cells = dict(zip(header, row, strict=True))
    config = json.loads((world / "run-both" / "config.json").read_text())
    assert cells["spec_hash"] == config["mm_vision_spec_hash"]
    assert cells["run_dir"] == str(world / "run-both")
    assert (cells["benchmark"], cells["n"], cells["seed"]) == ("mine", "3", "0")
    clip = f"{world}/clip".replace("/", "--")
    assert cells["protocol"] == (
        f"cosine/{clip}/target-to-reference/float32/folder3-seed0/projected-stage1-float32"
    )


def test_order_and_n_of_the_cosine(world, dumps, tmp_path):
    """Images come in the order of the draw, so --n takes a shorter draw."""
    drawn = list(json.loads((dumps / "mine" / "images.json").read_text())["images"])
    path = tmp_path / "a.json"
    argv = ["--base_folder", str(dumps), "--references", "clip", "--json", str(path)]
    compute.main([*argv, "--n", "3"])
    answer = json.loads(path.read_text())
    assert answer["images"] == drawn[:3]
    assert answer["draw"]["seed"] == 0
    assert answer["runs"][f"{world}/clip"] == str(world / "run-clip")


def called(folder, representation, name=""):
    """As if a folder's tokens were of a published representation."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tokens"]["representation"] = representation
    path.write_text(json.dumps(manifest | {"name": name or representation}))


def test_default_references(world, copy):
    """clip336 and clip224 are found by what the runs are of; a name of its own counts first."""
    clip, dino = "openai/clip-vit-large-patch14", "facebook/dinov2-large"
    dump(world, copy, "--as", "clip224", runs=["dinov2"])
    called(folder_of(world, copy, "clip"), f"{clip}-336")
    called(folder_of(world, copy, "dinov2"), clip)
    called(folder_of(world, copy, "clip", "dinov2"), f"{clip}-336.{dino}", "a second C+D")
    found = find_benchmarks(copy)["mine"].towers
    for names, key in {
        ("clip336", "CLIP@336", f"{clip}-336"): f"{clip}-336",
        ("CLIP@224", clip): clip,
        ("clip224",): "clip224",
        ("C+D@336", "clip336.dinov2", "a second C+D"): "a second C+D",
    }.items():
        for name in names:
            assert pick(found, [name], "", copy) == [key]
    with pytest.raises(UsageError, match=r"unknown tower 'sd1.5'"):
        pick(found, ["sd1.5"], "", copy)


# ---------------------------------------------------------------- interrupted, and shared


def interrupted_after(count, write):
    """In the place of a function that writes tokens: as if the run was stopped."""
    calls = []

    def wrapped(*arguments):
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(write(*arguments))

    return wrapped


def test_interrupted(world, dumps, tmp_path, monkeypatch):
    """What is there is kept; in the end there are the same bytes."""
    with monkeypatch.context() as patch:
        patch.setattr(dumping, "write_tokens", interrupted_after(7, dumping.write_tokens))
        with pytest.raises(KeyboardInterrupt):
            dump(world, tmp_path / "out")
    before = files(tmp_path / "out")
    assert sum(name.endswith(".safetensors") for name in before) == 7
    dump(world, tmp_path / "out")
    after = files(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert contents(tmp_path / "out") == contents(dumps)


KILLED = """
import os, signal, sys
import torch  # its own files are synced before
from A_score import cli
from llava import files

calls = []

def killed(descriptor):
    calls.append(descriptor)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)

files.os.fsync = killed
cli.main(sys.argv[1:])
"""


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_killed(world, dumps, tmp_path):
    """`kill -9` while a file is being written."""
    argv = [sys.executable, "-c", KILLED, *command(world, tmp_path / "out")]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sum(name.endswith(".tmp") for name in left) == 1
    assert 1 < sum(name.endswith(".safetensors") for name in left) < len(RUNS) * N
    assert contents(dump(world, tmp_path / "out")) == contents(dumps)


@pytest.mark.parametrize("batch", ["1", "2"])
def test_two_ranks_are_one(world, tmp_path, monkeypatch, batch):
    """Each takes its share of two benchmarks, whichever comes first; alone, one is not enough."""
    flags = ["--benchmark", "mine", "yours", "--batch_size", batch, "--images"]
    flags += [f"{name}={world / 'images'}" for name in ("mine", "yours")]

    def dumped(place):
        dump(world, tmp_path / place / "out", *flags, "--pt", tmp_path / place / "pt", runs=RANKED)
        return contents(tmp_path / place)

    alone = dumped("alone")
    assert sum(name.endswith(".pt") for name in alone) == 2 * len(RANKED) * N
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, complete in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        assert (dumped("shared") == alone) == complete


def torchrun(*flags):
    """`law a-score` in two processes; `--` since torchrun's parser looks at --run and --n, too."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    argv += ["-m", "--", "llava", "a-score", *flags]
    return subprocess.run(argv, env=environment(), capture_output=True, text=True)


@pytest.mark.slow
def test_torchrun(world, dumps, tmp_path):
    """Two processes at once; what fails in one of them fails the launch."""
    done = torchrun(*command(world, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(dumps)
    assert "(process 0 of 2)" in done.stderr
    folder = folder_of(world, tmp_path / "out", "clip")
    shutil.rmtree(folder)
    folder.write_text("in the way")
    done = torchrun(*command(world, tmp_path / "out"))
    assert done.returncode != 0
    assert "law: error: " in done.stderr


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def damage_bytes(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def damage_swap(path):
    """Another image's tokens, whole."""
    other = next(one for one in path.parent.glob("*.safetensors") if one != path)
    path.write_bytes(other.read_bytes())


DAMAGE = {
    "removed": (lambda path: path.unlink(), "clip has no"),
    "cut": (damage_cut, "cannot be read"),
    "bytes": (damage_bytes, "bytes of it are not those that were written"),
    "swapped": (damage_swap, "its image is another than in images.json"),
    "text": (lambda path: path.write_text("hello"), "cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage(world, copy, kind):
    """The cosine names the file; dumping again makes it as it was, and leaves the others."""
    damage, message = DAMAGE[kind]
    before = files(copy)
    path = sorted(folder_of(world, copy, "clip").glob("*.safetensors"))[1]
    damage(path)
    with pytest.raises(LawError, match=message) as error:
        compute.main(["--base_folder", str(copy), "--references", "dinov2"])
    assert path.stem in str(error.value)
    dump(world, copy)
    after = files(copy)
    name = str(path.relative_to(copy))
    assert {one for one in before if before[one] != after[one]} == {name}
    assert after[name][0] == before[name][0]


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def other_projector(world, tmp_path):
    """A run of the same tower with another projector."""
    return stage1_folder(world, tmp_path / "other", "clip", seed=77)


def test_another_projector(world, copy, other_projector):
    """Refused by name, and dumped beside under a name of its own; nothing else is touched."""
    before = files(copy)
    flags = ["--run", str(other_projector)]
    with pytest.raises(
        UsageError, match=r"holds tokens of .*run-clip, whose projector .*--as NAME"
    ):
        dump(world, copy, *flags)
    assert files(copy) == before
    dump(world, copy, *flags, "--as", "clip, again")
    assert {name: after for name, after in files(copy).items() if name in before} == before
    found = find_benchmarks(copy)["mine"].towers
    assert found["clip, again"].representation == "clip, again"
    with pytest.raises(UsageError, match=r"'clip' may mean .*; say which"):
        pick(found, ["clip"], "", copy)


def test_a_manifest_without_tokens(world, copy, dumps):
    """It binds nothing: what was refused after it can be dumped in another way."""
    folder = folder_of(world, copy, "clip")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    dump(world, copy, "--dtype", "bfloat16", runs=["clip"])
    assert json.loads((folder / "manifest.json").read_text())["tokens"]["dtype"] == "bfloat16"
    shutil.rmtree(folder)
    assert contents(dump(world, copy)) == contents(dumps)


CHANGED = {
    "dtype": (["--dtype", "bfloat16"], "whose dtype float32, and this is dtype bfloat16"),
    "seed": (["--seed", "1"], "was drawn with seed 0, and this is seed 1"),
    "kind": (["--images", "{world}/captions.json", "--image_folder", "{world}/images"], "kind"),
    "source": (["--images", "{world}/others"], "has image .* where .* would be drawn now"),
    "content": (["--images", "{world}/painted"], "has an image .* of other content"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_other_tokens_or_images_in_the_same_place(world, copy, kind):
    """Refused, with what to do, before anything is written."""
    for name in ("others", "painted"):
        if not (world / name).exists():
            shutil.copytree(world / "images", world / name)
    drawn = next(iter(json.loads((copy / "mine" / "images.json").read_text())["images"]))
    (world / "others" / drawn).unlink(missing_ok=True)
    Image.new("RGB", (9, 9)).save(world / "painted" / drawn)
    before = files(copy)
    flags, message = CHANGED[kind]
    with pytest.raises(UsageError, match=f"{message}.*another --out"):
        dump(world, copy, *(text.format(world=world) for text in flags), runs=["clip"])
    assert files(copy) == before


def test_two_names_of_one_folder(world, tmp_path):
    """One after the other they are refused as they are in one call."""
    first = ["--benchmark", "x/y", "--as", "a/b"]
    out = dump(world, tmp_path / "out", *first, runs=["clip"])
    before = files(out)
    for flag, other in (("--benchmark", "x--y"), ("--as", "a--b")):
        with pytest.raises(UsageError, match=f" is .*, and this is .*{other}.*another --out"):
            dump(world, out, *first, flag, other, runs=["clip"])
    assert files(out) == before


def test_a_name_too_long_for_a_folder(world, tmp_path):
    """As that of a combination of many towers: its folder is shorter, its name is whole."""
    names = ["+".join(["some/tower"] * 30 + [end]) for end in "ab"]
    for name in names:
        out = dump(world, tmp_path / "out", "--as", name, runs=["clip"])
    told = [json.loads(path.read_text())["name"] for path in sorted(out.glob("*/*/manifest.json"))]
    assert sorted(told) == names


WRONG = {
    "n": (["--n", "0"], "--n 0: expected 1 or more"),
    "batch": (["--batch_size", "0"], "--batch_size 0: expected 1 or more"),
    "names": (["--as", "a", "b"], "--as: 2 names for 1 runs; give one for each"),
    "name": (["--as", "../"], r"'\.\./' makes no name of a folder; .* --as NAME"),
    "device": (["--device", "gpu"], "--device gpu: .*law doctor"),
    "dtype": (["--dtype", "float3"], "dtype 'float3': expected float32"),
    "run": (["--run", "{world}/llm"], "without a vision tower; expected a run of stage 1"),
    "same run": (["--run", "{world}/run-clip", "{world}/run-clip"], "2 runs are called .*--as"),
    "same folder": (
        ["--run", "{world}/run-clip", "{world}/run-clip", "--as", "a/b", "a--b"],
        "2 runs are called a/b and a--b, which makes one folder, a--b; .* by --as",
    ),
    "same benchmark": (
        ["--benchmark", "./x", "x", "--images", "./x={world}/images", "x={world}/images"],
        r"2 benchmarks are called \./x and x, which makes one folder, x;",
    ),
    "alias": (["--tower_alias", "clop=there"], "unknown tower"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_usage(world, tmp_path, kind):
    flags, message = WRONG[kind]
    with pytest.raises(UsageError, match=message):
        dump(world, tmp_path / "out", *(text.format(world=world) for text in flags), runs=["clip"])
    assert not (tmp_path / "out").exists()


def test_missing_images_come_first(world, tmp_path, monkeypatch):
    """Named before a tower is loaded or a file is written."""
    monkeypatch.setattr("llava.model.lazy_tower.build_tower", None)
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"image": "0.png"}, {"image": "gone.png"}]))
    flags = ["--images", str(data), "--image_folder", str(world / "images")]
    with pytest.raises(LawError, match=r"image gone\.png of .*data\.json: .*cannot be read"):
        dump(world, tmp_path / "out", *flags, n=2)
    assert contents(tmp_path / "out") == {}


def test_folders_of_others(world, copy, tmp_path):
    """Tensors that nobody describes stay as they are; manifests of other programs are passed by."""
    folder = folder_of(world, copy, "clip")
    (folder / "manifest.json").unlink()
    with pytest.raises(UsageError, match=r"holds tokens and no manifest\.json; .*--as NAME"):
        dump(world, copy)
    (folder / "manifest.json").write_text('{"format": "law a-score dump 2"}')
    with pytest.raises(LawError, match="is 'law a-score dump 2', and this program reads"):
        dump(world, copy)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "web app"}')
    assert len(find_benchmarks(copy)["mine"].towers) == 2


EDITED = {
    "no tokens": ("manifest.json", {"tokens": {}}, "tokens: expected a text under spec_hash"),
    "dtype": ("manifest.json", {"tokens": {"spec_hash": "a", "dtype": 5}}, "a text under dtype"),
    "list": ("manifest.json", {"tokens": []}, "tokens"),
    "towers": ("manifest.json", {"towers": [5]}, "towers"),
    "no source": ("images.json", {"source": {}}, "source: expected a text under kind"),
    "images": ("images.json", {"images": {"0.png": 5}}, "images"),
}


@pytest.mark.parametrize("kind", EDITED)
def test_edited_files(world, copy, kind):
    """The file is named and what it lacks, wherever it is read."""
    name, change, message = EDITED[kind]
    path = next(copy.rglob(name))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for read in (lambda: compute.compute(copy, references=["clip"]), lambda: dump(world, copy)):
        with pytest.raises(LawError, match=rf"(?s){path}.*{message}"):
            read()


def test_no_room(world, tmp_path, monkeypatch):
    """Said before the work starts; 5 images of 16 x 32 float32 by three runs."""
    usage = type("Usage", (), {"free": 5 * 16 * 32 * 4 * 3 - 1})
    monkeypatch.setattr("A_score.dumping.shutil.disk_usage", lambda _: usage)
    with pytest.raises(LawError, match=r"GiB are needed and .* GiB free; take fewer images"):
        dump(world, tmp_path / "out")
    usage.free += 1
    dump(world, tmp_path / "out")


def test_tokens_that_are_not_finite(world, tmp_path, monkeypatch):
    """The image is named; what was computed before stays."""
    whole = Projection.__call__

    def broken(self, images):
        (rows,) = whole(self, images)
        return [rows / (0 if images[0].size == (43, 36) else 1)]

    monkeypatch.setattr(Projection, "__call__", broken)
    with pytest.raises(
        LawError, match=r"NaN or infinity for image 3\.png of .*images in bfloat16;"
    ):
        dump(world, tmp_path / "out", "--dtype", "bfloat16", n=12)


# ---------------------------------------------------------------- other ways


def test_a_batch(world, dumps, tmp_path):
    """Several images at once: the same but for rounding, and no other place."""
    out = dump(world, tmp_path / "out", "--batch_size", "3")
    batched = contents(out)
    for name, data in contents(dumps).items():
        if name.endswith(".safetensors"):
            one, other = (load_file(root / name)["tokens"] for root in (dumps, out))
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        else:
            assert batched[name] == data
    before = files(out)
    dump(world, out)
    assert files(out) == before


def test_stored_features(world, dumps, tmp_path, monkeypatch):
    """A store in place of towers: the same tokens but for rounding, said in the manifest."""
    store = tmp_path / "features"
    argv = ["--images", world / "images", "--out", store]
    for name in ("clip", "dinov2"):
        for frame in ("own", "crop"):  # alone, and of both, which see the same
            law_features([*map(str, argv), "--model", str(world / name), "--frame", frame])
    monkeypatch.setattr("llava.model.lazy_tower.build_tower", None)
    out = dump(world, tmp_path / "out", "--features", store)
    for name in contents(dumps):
        if name.endswith(".safetensors"):
            one, other = (load_file(root / name)["tokens"] for root in (dumps, out))
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    with pytest.raises(UsageError, match="tower_tokens float32, and this is tower_tokens run"):
        dump(world, out, runs=["clip"])
    next(store.glob("*/*.safetensors")).unlink()
    shutil.rmtree(out)
    with pytest.raises(LawError, match=r"has no features of image .*; `law features --model"):
        dump(world, out, "--features", store)
    assert contents(out) == {}
    with pytest.raises(LawError, match=r"has no features of .*`law features --model"):
        dump(world, out, "--features", tmp_path / "nothing")


def test_stored_features_that_are_others(world, tmp_path):
    """Of tiles there are none."""
    run = stage1_folder(
        world,
        tmp_path / "run",
        "clip",
        image_aspect_ratio="anyres",
        image_grid_pinpoints=[[64, 64]],
    )
    flags = ["--run", run, "--features", tmp_path / "features"]
    with pytest.raises(UsageError, match="looks at tiles"):
        dump(world, tmp_path / "out", *flags)
    dump(world, tmp_path / "out", "--run", run)
    (manifest,) = (tmp_path / "out").rglob("manifest.json")
    assert json.loads(manifest.read_text())["shape"] == [None, 32]
    assert len(load_file(next(manifest.parent.glob("*.safetensors")))["tokens"]) == 5 * 16


class Shown(ImageSource):
    """Images that come out of no file, as a task shows them; two of each question."""

    kind, where = "task", "task shown"
    names = tuple(map(str, range(6)))

    def pictures(self, name):
        return [Picture(Image.new("RGB", (30, 20 + i), (int(name), i, 9))) for i in range(2)]

    def facts(self):
        return {"kind": self.kind, "task": "shown"}


def test_images_of_a_task(world, tmp_path):
    """Two benchmarks in one call; the protocol says where the images are from."""
    options = dumping.Options()
    manifests = dumping.describe([str(world / "run-clip")], ["c"], options)
    sources = {"vqa": Shown(), "seedbench:seed_all": Shown()}
    dumping.dump(manifests, sources, tmp_path, 3, 5, options)
    scores = compute.compute(tmp_path, references=["c"])
    assert {score.benchmark for score in scores} == set(sources)
    assert scores[0].a_score == pytest.approx(1)
    assert "/task3-seed5/projected-stage1-float32" in scores[0].protocol
    assert any(image.endswith("~2") for image in scores[0].images)
    named = compute.compute(tmp_path, references=["c"], benchmarks=["seed_all"])
    assert [score.benchmark for score in named] == ["seedbench:seed_all"]
    stored = dumping.Options(features=tmp_path / "none")
    with pytest.raises(LawError, match="has no features of"):
        dumping.describe([str(world / "run-clip")], ["c"], stored)


def test_stored_features_of_a_task(world, tmp_path, monkeypatch):
    """A store by pixels serves tasks; without an image of it, the error says how it comes there."""
    run = str(world / "run-clip")
    projection = Projection(run)
    tower = projection.model.get_vision_tower()
    (spec,) = tower.representation.parts
    space = FeatureStore(tmp_path / "features").space(spec, tower.frame, projection.dtype)
    pictures = [picture.image for name in Shown.names for picture in Shown().pictures(name)]
    for image in pictures:
        pixels = process_images([image], tower.image_processor, projection.model.config)
        space.write({image_key(image): tower(pixels, "cpu")[0]})
    ran, stored = dumping.Options(), dumping.Options(features=tmp_path / "features")
    for name, options in (("ran", ran), ("stored", stored)):
        manifests = dumping.describe([run], [name], options)
        dumping.dump(manifests, {"vqa": Shown()}, tmp_path / "out", 5, 0, options)
    for path in (tmp_path / "out" / "vqa" / "ran").glob("*.safetensors"):
        other = load_file(tmp_path / "out" / "vqa" / "stored" / path.name)["tokens"]
        torch.testing.assert_close(load_file(path)["tokens"], other, rtol=1e-4, atol=1e-6)
    (tmp_path / "out").rename(tmp_path / "done")
    monkeypatch.setattr(Shown, "names", (*Shown.names, "99"))
    with pytest.raises(LawError, match=r"has no features .* of task shown .*law_llava .*features="):
        dumping.dump(manifests, {"vqa": Shown()}, tmp_path / "out", 14, 0, stored)
    assert contents(tmp_path / "out") == {}


def test_exported_tensors(world, copy, tmp_path, capsys):
    """Written once; made anew where damaged, refused where they are others'."""
    pt = tmp_path / "pt"
    dump(world, copy, "--pt", pt)
    before = files(pt)
    drawn = json.loads((copy / "mine" / "images.json").read_text())["images"]
    second = folder_of(world, pt, "clip") / "tensor_2.pt"
    tokens = load_file(folder_of(world, copy, "clip") / f"{list(drawn)[1]}.safetensors")["tokens"]
    assert torch.equal(torch.load(second, weights_only=True), tokens)
    second.write_bytes(second.read_bytes()[:50])
    dump(world, copy, "--pt", pt)
    after = files(pt)
    name = str(second.relative_to(pt))
    assert after[name][0] == before[name][0]
    assert {k: v for k, v in after.items() if k != name} == {
        k: v for k, v in before.items() if k != name
    }
    torch.save(tokens + 1, second)
    with pytest.raises(LawError, match=r"--pt: .*tensor_2\.pt holds other tokens; take another"):
        dump(world, copy, "--pt", pt)


@pytest.mark.slow
def test_diffusion_tower(world, tmp_path):
    """A tower of noise, alone and beside CLIP, through dump and cosine."""
    tower = ROOT / "tests" / "golden" / "diffusion" / "sd15"
    both = stage1_folder(world, tmp_path / "both", "clip", tower)
    alone = stage1_folder(world, tmp_path / "alone", tower)
    out = dump(world, tmp_path / "out", "--run", both, alone, world / "run-clip")
    before = contents(out)
    shutil.rmtree(out)
    assert contents(dump(world, out, "--run", both, alone, world / "run-clip")) == before
    (score,) = compute.compute(out, references=["clip"])
    assert len(score.targets) == 3
    assert all(0 < value <= 1 + 1e-6 for value in score.a_score)


# ---------------------------------------------------------------- the cosine over a dump


def test_a_dump_that_is_not_finished(world, copy, tmp_path):
    """An error that says how many all have; where the draw was made longer, with --n."""
    path = tmp_path / "a.json"
    argv = ["--base_folder", str(copy), "--references", "clip", "--json", str(path)]
    dump(world, copy, runs=["clip"], n=N + 2)
    with pytest.raises(LawError, match=rf"dinov2 has no .* all have with --n {N}"):
        compute.main(argv)
    compute.main([*argv, "--n", str(N)])
    assert f"/folder{N}-seed0/" in json.loads(path.read_text())["protocol"]
    first = next(iter(json.loads((copy / "mine" / "images.json").read_text())["images"]))
    (folder_of(world, copy, "dinov2") / f"{first}.safetensors").unlink()
    with pytest.raises(LawError, match=rf"take the {N - 1} images that all have with --common"):
        compute.main(argv)
    compute.main([*argv, "--common"])
    assert f"/folder{N - 1}of{N + 2}-seed0/" in json.loads(path.read_text())["protocol"]
    for folder in (copy / "mine").iterdir():
        if folder.is_dir():
            (folder / f"{first}.safetensors").unlink(missing_ok=True)
    with pytest.raises(LawError, match=rf"has no {first}, which the draw has"):
        compute.main([*argv, "--n", "2"])


def test_leftovers_do_not_count(world, copy):
    """Tokens of an image that the draw has not."""
    folder = folder_of(world, copy, "clip")
    shutil.copy(next(folder.glob("*.safetensors")), folder / "zzz.safetensors")
    (score,) = compute.compute(copy, references=["clip"])
    assert len(score.images) == N


def test_a_folder_twice(copy):
    """A copy of a representation or of a benchmark would be taken for it."""
    mine = copy / "mine"
    folder = next(path for path in sorted(mine.iterdir()) if path.is_dir())
    shutil.copytree(folder, mine / "copied")
    with pytest.raises(LawError, match=r"are both .*; move one of them away"):
        find_benchmarks(copy)
    shutil.rmtree(mine / "copied")
    shutil.copytree(mine, copy / "again")
    with pytest.raises(LawError, match="are both mine; move one of them away"):
        find_benchmarks(copy)


def test_tokens_made_in_different_ways(world, tmp_path, law_log):
    """Said, and to be seen in the protocol of that row alone."""
    out = dump(world, tmp_path / "out", runs=["clip"])
    dump(world, out, "--dtype", "bfloat16", runs=["dinov2"])
    (alone,) = compute.compute(out, ["clip"], references=["clip"])
    assert not any("in different ways" in line for line in law_log)
    (score,) = compute.compute(out, references=["clip"])
    assert any("tokens are projected in different ways" in line for line in law_log)
    clip, dino = (f"{world}/{name}" for name in ("clip", "dinov2"))
    assert score.protocols[dino].endswith("/projected-stage1-bfloat16+stage1-float32")
    assert score.protocols[clip] == alone.protocols[clip] == score.protocol
    assert {row.representation: row.protocol for row in score.rows()} == score.protocols
    assert "; ".join(score.protocols.values()) in compute.as_text(score)


def of_language_model(folder, name):
    """As if a folder's tokens were for a language model."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"language_model": name}))


def test_language_models_do_not_compare(world, copy):
    """Refused by name; those that are not known, and targets among themselves, may go on."""
    of_language_model(folder_of(world, copy, "clip"), "lmsys/vicuna-7b")
    of_language_model(folder_of(world, copy, "dinov2"), "vicuna-7b@12345678")
    (score,) = compute.compute(copy, references=["clip"])
    protocols = score.protocols
    assert protocols[f"{world}/clip"].endswith("projected-stage1-float32-lmsys--vicuna-7b")
    of_language_model(folder_of(world, copy, "dinov2"), "other/vicuna-7b")
    message = r"dinov2 was projected for the language model other/vicuna-7b and the reference "
    message += r".*clip for lmsys/vicuna-7b, .*; name --targets and --references of one"
    with pytest.raises(UsageError, match=message):
        compute.compute(copy, references=["clip"])
    (score,) = compute.compute(copy, ["clip", "clip.dinov2"], references=["clip"])
    assert score.protocols[f"{world}/clip"] == protocols[f"{world}/clip"]
    compute.compute(copy, references=["clip.dinov2"])


def test_other_versions_are_said(world, copy, law_log, monkeypatch):
    """A package that changed since: nothing is computed again."""
    before = files(copy)
    monkeypatch.setattr(dumping, "library_versions", lambda: {"torch": "9.9"})
    dump(world, copy)
    assert any("was begun with torch" in line and "torch 9.9" in line for line in law_log)
    assert files(copy) == before


def test_help_needs_no_torch():
    code = "import sys, A_score.dump as d\n"
    code += "try: d.main(['-h'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.endswith("False\n")


def test_one_class_token(world, tmp_path):
    """A run on class tokens is scored by its one token: its largest cosine to the reference's."""
    config = json.loads((world / "run-dinov2" / "config.json").read_text())
    run = shutil.copytree(world / "run-dinov2", tmp_path / "run-cls")
    config["mm_vision_select_feature"] = "cls"
    for spec in config["mm_vision_specs"]:
        spec["select"] = "cls"
    (run / "config.json").write_text(json.dumps(config))
    out = dump(world, tmp_path / "dumps", runs=("clip",))
    argv = ["--run", run, "--out", out, "--n", N, "--benchmark", "mine"]
    cli.main(["dump", *map(str, [*argv, "--images", world / "images"])])
    (score,) = compute.compute(out, ["dinov2"], references=["clip"])
    (alone,) = score.a_score
    wanted = []
    for path in folder_of(world, out, "clip").glob("*.safetensors"):
        target = load_file(folder_of(world, out, "dinov2") / path.name)["tokens"]
        assert target.shape == (1, 32)
        cosines = torch.cosine_similarity(target.double(), load_file(path)["tokens"].double())
        wanted.append(cosines.max().item())
    assert len(wanted) == N
    assert alone == pytest.approx(sum(wanted) / N, abs=1e-6)
