"""`A_score/compute.py`: layouts, what it writes, and how it refuses."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from A_score import cli, compute
from llava import results
from llava.errors import LawError, UsageError

ROOT = Path(__file__).parents[2]
PROTOCOL = "cosine/clip336+clip224/target-to-reference/float32"


def run(*argv):
    compute.main(list(map(str, argv)))


@pytest.fixture
def score(tmp_path):
    """Runs the command with --json: the answer."""

    def run_json(*argv):
        run(*argv, "--json", tmp_path / "answer.json")
        return json.loads((tmp_path / "answer.json").read_text())

    return run_json


@pytest.fixture
def folder(tmp_path):
    """Two references and a target, three images each, 6 wide; different token counts."""
    base = tmp_path / "mme"
    for seed, (tower, count) in enumerate({"clip336": 5, "clip224": 3, "dino": 4}.items()):
        (base / tower).mkdir(parents=True)
        drawn = torch.Generator().manual_seed(seed)
        for i in (1, 2, 10):
            torch.save(torch.randn(count, 6, generator=drawn), base / tower / f"tensor_{i}.pt")
    return base


def test_golden(score, golden_folder, expected):
    answer = score("--base_folder", golden_folder)
    assert set(answer) >= {"a_score", "per_reference", "n_images"}
    assert answer["n_images"] == 5
    assert answer["protocol"] == PROTOCOL
    assert answer["a_score"] == pytest.approx(expected["expected_A"], abs=expected["tolerance"])
    for tower, stored in expected["per_image"].items():
        per_image = answer["per_image"][tower]
        assert per_image["clip336"] == pytest.approx(stored["c336"], abs=expected["tolerance"])
        assert per_image["clip224"] == pytest.approx(stored["c224"], abs=expected["tolerance"])
        means = [answer["per_reference"][tower][name] for name in ("clip336", "clip224")]
        assert means == pytest.approx([stored["mean336"], stored["mean224"]], abs=1e-6)


def test_golden_in_bf16(score, golden_folder, expected):
    """Equal to the published code in bfloat16: each image's value is exact in binary."""
    answer = score("--base_folder", golden_folder, "--emulate-bf16")
    assert answer["a_score"] == pytest.approx(expected["upstream_bfloat16_A"], abs=1e-15)
    assert answer["protocol"].endswith("/bfloat16")


def test_standard_error_over_images(score, golden_folder):
    """Of the mean over references, image by image."""
    answer = score("--base_folder", golden_folder, "--targets", "dino")
    images = answer["per_image"]["dino"]
    means = [(a + b) / 2 for a, b in zip(images["clip336"], images["clip224"], strict=True)]
    mean = sum(means) / 5
    expected = (sum((value - mean) ** 2 for value in means) / 4 / 5) ** 0.5
    assert answer["stderr"] == {"dino": pytest.approx(expected)}
    assert list(answer["a_score"]) == ["dino"]


def test_several_benchmarks(score, golden_folder, tmp_path, capsys):
    """One object a benchmark; results rows of all in one table."""
    for name in ("mme", "mmmu_val"):
        shutil.copytree(golden_folder, tmp_path / "dumps" / name)
    table = tmp_path / "results.csv"
    answer = score("--base_folder", tmp_path / "dumps", "--results", table)
    assert list(answer) == ["mme", "mmmu_val"]
    assert answer["mme"]["a_score"] == answer["mmmu_val"]["a_score"]
    assert {"a_score", "per_reference", "n_images"} <= set(answer["mme"])
    read = results.read(table)
    assert len(read) == 8
    assert read.present("quantity", read.value > 0) == ["A_cosine"]
    assert read.present("unit", read.value > 0) == ["fraction"]
    assert read.present("protocol", read.value > 0) == [PROTOCOL]
    assert set(read.present("benchmark", read.value > 0)) == {"mme", "mmmu_val"}
    out = capsys.readouterr().out
    assert "mmmu_val: 5 images" in out
    one = score("--base_folder", tmp_path / "dumps", "--benchmark", "mme")
    assert one["benchmark"] == "mme"


def test_results_row(folder, tmp_path):
    """The name given for the benchmark, `/` in a tower's name, everything that a row states."""
    (folder / "dino").rename(folder / "facebook--dinov2-large")
    table = tmp_path / "results.csv"
    argv = ["--base_folder", folder, "--targets", "facebook/dinov2-large", "--results", table]
    run(*argv, "--benchmark", "mmbench_en_dev")
    header, row = table.read_text().splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    assert cells["representation"] == "facebook/dinov2-large"
    assert cells["benchmark"] == "mmbench_en_dev"
    assert (cells["n"], cells["unit"], cells["higher_is_better"]) == ("3", "fraction", "true")
    assert float(cells["stderr"]) > 0
    assert cells["protocol"] == PROTOCOL


def test_order_of_images_n_and_layouts_of_a_file(score, folder):
    """tensor_2 before tensor_10; [1, N, C], safetensors, half precision and parameters are read."""
    assert score("--base_folder", folder)["images"] == ["tensor_1", "tensor_2", "tensor_10"]
    before = score("--base_folder", folder, "--n", 2)
    assert before["images"] == ["tensor_1", "tensor_2"]
    first, second = folder / "dino" / "tensor_1.pt", folder / "dino" / "tensor_2.pt"
    torch.save(torch.nn.Parameter(torch.load(first, weights_only=True)[None]), first)
    save_file({"x": torch.load(second, weights_only=True)}, second.with_suffix(".safetensors"))
    second.unlink()
    assert score("--base_folder", folder, "--n", 2) == before
    torch.save(torch.load(first, weights_only=True).bfloat16(), first)
    assert score("--base_folder", folder, "--n", 2)["a_score"]["dino"] == pytest.approx(
        before["a_score"]["dino"], abs=0.01
    )


def test_one_image_has_no_standard_error(score, folder, tmp_path):
    answer = score("--base_folder", folder, "--n", 1, "--results", tmp_path / "results.csv")
    assert answer["stderr"]["dino"] is None
    assert ",,1,cosine/" in (tmp_path / "results.csv").read_text()


def test_each_file_is_read_once(folder, monkeypatch):
    """Also the references, which are targets too."""
    from A_score import folders

    read, load = [], folders.load_tensor
    monkeypatch.setattr(folders, "load_tensor", lambda path: (read.append(path), load(path))[1])
    compute.compute(folder)
    assert len(read) == len(set(read)) == 9


def test_common_images(score, folder):
    (folder / "dino" / "tensor_2.pt").unlink()
    with pytest.raises(LawError, match=r"dino has no tensor_2, which clip336 has .* --common"):
        run("--base_folder", folder)
    assert score("--base_folder", folder, "--n", 1)["n_images"] == 1  # tensor_2 is not among them
    answer = score("--base_folder", folder, "--common")
    assert (answer["n_images"], answer["left_out"]) == (2, 1)
    assert answer["images"] == ["tensor_1", "tensor_10"]
    assert score("--base_folder", folder, "--targets", "clip336")["n_images"] == 3


def test_no_common_image(folder):
    for i in (1, 2, 10):
        (folder / "dino" / f"tensor_{i}.pt").rename(folder / "dino" / f"image_{i}.pt")
    for flags in ([], ["--common"]):
        with pytest.raises(LawError, match="no image has tokens of all of clip336, clip224, dino"):
            run("--base_folder", folder, *flags)


def test_one_reference(score, folder):
    answer = score("--base_folder", folder, "--references", "clip224", "--targets", "dino", "dino")
    assert answer["per_reference"]["dino"] == {"clip224": answer["a_score"]["dino"]}
    assert answer["protocol"] == "cosine/clip224/target-to-reference/float32"


def test_empty_folders_and_other_files_are_passed_over(score, folder, capsys):
    before = score("--base_folder", folder)
    (folder / "unfinished").mkdir()
    (folder / "notes.txt").write_text("x")
    (folder / "dino" / "manifest.json").write_text("{}")
    (folder / "dino" / ".tensor_3.pt.tmp").write_text("")
    assert score("--base_folder", folder) == before
    assert "unfinished holds no tensors" in capsys.readouterr().err


class Payload:
    """Unpickled, it would call `print`."""

    def __reduce__(self):
        return print, ("ran",)


def torch_file(value):
    return lambda path: torch.save(value, path)


def changed(index, value):
    tokens = torch.ones(4, 6)
    tokens[index] = value
    return torch_file(tokens)


DAMAGE = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:200]), "damaged or cut short"),
    "empty": (lambda p: p.write_bytes(b""), "damaged or cut short"),
    "text": (lambda p: p.write_text("hello"), "damaged or cut short"),
    "code": (
        lambda p: p.write_bytes(pickle.dumps(Payload(), 2)),
        "calls print; only plain tensors are read",
    ),
    "code, newer": (
        lambda p: p.write_bytes(pickle.dumps(Payload(), 4)),
        "is not what torch.save writes; only plain tensors are read",
    ),
    "code in torch's format": (torch_file(Payload()), "a pickle that calls .*print"),
    "dictionary": (torch_file({"x": torch.ones(4, 6)}), "holds a dict; expected one tensor"),
    "nan": (changed(2, float("nan")), "NaN or infinity in 1 of 4 tokens, first in token 2"),
    "inf": (changed(3, -float("inf")), "NaN or infinity in 1 of 4 tokens, first in token 3"),
    "wide": (
        torch_file(torch.ones(4, 7)),
        r"dino/tensor_2.pt is 7 wide and .*clip336/tensor_2.pt 6; .* projector",
    ),
    "no tokens": (torch_file(torch.ones(0, 6)), r"shape \[0, 6\], so no tokens"),
    "no width": (torch_file(torch.ones(4, 0)), r"shape \[4, 0\], so no tokens"),
    "vector": (torch_file(torch.ones(6)), r"shape \[6\]; expected \[tokens, width\]"),
    "batch": (torch_file(torch.ones(2, 4, 6)), r"shape \[2, 4, 6\]; expected"),
    "whole numbers": (
        torch_file(torch.ones(4, 6, dtype=torch.int64)),
        "torch.int64, .*expected dense",
    ),
    "sparse": (torch_file(torch.ones(4, 6).to_sparse()), "sparse_coo; expected dense"),
    "complex": (torch_file(torch.ones(4, 6, dtype=torch.complex64)), "complex64, .*expected dense"),
}


def test_8_bit_floats(score, folder):
    """Widened when read."""
    path = folder / "dino" / "tensor_2.pt"
    torch.save(torch.load(path, weights_only=True).to(torch.float8_e4m3fn).float(), path)
    before = score("--base_folder", folder)
    torch.save(torch.load(path, weights_only=True).to(torch.float8_e4m3fn), path)
    assert score("--base_folder", folder) == before


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files(folder, kind, capsys):
    """Every message names the file."""
    damage, message = DAMAGE[kind]
    damage(folder / "dino" / "tensor_2.pt")
    with pytest.raises(LawError, match=message) as error:
        run("--base_folder", folder)
    assert "dino/tensor_2.pt" in str(error.value)
    assert error.value.exit_code == 1
    assert "ran" not in capsys.readouterr().out


def test_damaged_safetensors(folder):
    path = folder / "dino" / "tensor_2.safetensors"
    (folder / "dino" / "tensor_2.pt").unlink()
    save_file({"a": torch.ones(4, 6), "b": torch.ones(4, 6)}, path)
    with pytest.raises(LawError, match="holds 2 tensors"):
        run("--base_folder", folder)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(LawError, match="damaged or cut short"):
        run("--base_folder", folder)


def test_an_image_twice(folder):
    save_file({"x": torch.ones(4, 6)}, folder / "dino" / "tensor_2.safetensors")
    with pytest.raises(LawError, match="is the same image"):
        run("--base_folder", folder)


WRONG = {
    "folder": (["--base_folder", "{0}/mm"], "no such folder; did you mean .*/mme?"),
    "file": (["--base_folder", "{0}/mme/dino/tensor_1.pt"], "is a file; expected a folder"),
    "tower itself": (["--base_folder", "{0}/mme/dino"], "--base_folder .*/mme$"),
    "empty": (["--base_folder", "{0}/empty"], "no tensors; expected <tower>/tensor_1.pt"),
    "target": (["--base_folder", "{0}/mme", "--targets", "dinno"], "did you mean 'dino'"),
    "reference": (["--base_folder", "{0}/mme", "--references", "clip33"], "mean 'clip336'"),
    "n": (["--base_folder", "{0}/mme", "--n", "0"], "expected one image or more"),
    "names": (["--base_folder", "{0}/mme", "--benchmark", "a", "b"], "one benchmark, and 2 names"),
    "benchmark": (["--base_folder", "{0}", "--benchmark", "mmme"], "did you mean 'mme'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_usage(folder, kind):
    (folder.parent / "empty").mkdir()
    argv, message = WRONG[kind]
    with pytest.raises(UsageError, match=message):
        run(*[word.format(folder.parent) for word in argv])


def test_too_few_images(folder):
    with pytest.raises(LawError, match="--n 100, but there are 3 images"):
        run("--base_folder", folder, "--n", 100)


def test_default_references_that_are_not_there(folder):
    shutil.rmtree(folder / "clip336")
    with pytest.raises(UsageError, match="--references: unknown tower 'clip336'"):
        run("--base_folder", folder)


def test_two_layouts_in_one_folder(folder):
    shutil.copytree(folder, folder / "more")
    with pytest.raises(UsageError, match="expected either DIR/<tower> or DIR/<benchmark>/<tower>"):
        run("--base_folder", folder)


def test_output_that_cannot_be_written(folder, tmp_path):
    """Said before anything is read."""
    (folder / "dino" / "tensor_1.pt").write_bytes(b"")
    for flag in ("--json", "--results"):
        with pytest.raises(LawError, match="is a folder"):
            run("--base_folder", folder, flag, tmp_path)


def test_zero_tokens_are_counted(score, folder, capsys):
    changed(1, 0)(folder / "dino" / "tensor_2.pt")
    assert score("--base_folder", folder)["zero_tokens"] == {"clip224": 0, "clip336": 0, "dino": 1}
    assert "dino: 1 tokens are all zero" in capsys.readouterr().err


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A feature store with spaces of two CLIPs of one width, and a third tower; two images."""
    from llava.features import FeatureStore
    from llava.model.multimodal_encoder.registry import towers

    store = FeatureStore(tmp_path / "features")
    known = towers()
    for seed, name in enumerate(
        (
            "openai/clip-vit-large-patch14-336",
            "openai/clip-vit-large-patch14",
            "facebook/dinov2-large",
        )
    ):
        spec = dataclasses.replace(known[name], size=28, patch=14, dim=6)
        space = store.space(spec, "pad", "float32")
        drawn = torch.Generator().manual_seed(seed)
        images = {digit * 64: torch.randn(4, 6, generator=drawn) for digit in "ab"}
        space.write(images)
    return store


def test_store(score, store, tmp_path):
    """Aliases name the spaces; the numbers are those of the same tokens in files."""
    answer = score("--base_folder", store.root, "--results", tmp_path / "r.csv")
    clip336, clip224 = "openai/clip-vit-large-patch14-336", "openai/clip-vit-large-patch14"
    assert set(answer["a_score"]) == {clip336, clip224, "facebook/dinov2-large"}
    assert answer["protocol"] == (
        "cosine/openai--clip-vit-large-patch14-336+openai--clip-vit-large-patch14/"
        "target-to-reference/float32/unprojected-pad"
    )
    for space in store.spaces():
        folder = tmp_path / "dumps" / space.spec.id.replace("/", "--")
        folder.mkdir(parents=True)
        for key in space:
            torch.save(space.read(key).clone(), folder / f"{key}.pt")
    flags = ["--references", clip336, clip224]
    files = score("--base_folder", tmp_path / "dumps", *flags)
    assert [*files["a_score"].values()] == [
        answer["a_score"][name.replace("--", "/")] for name in files["a_score"]
    ]
    assert answer["n_images"] == 2
    dino = next(space for space in store.spaces() if "dino" in space.spec.id)
    assert dino.spec.hash() in (tmp_path / "r.csv").read_text()
    one = score("--base_folder", store.root, "--targets", "dinov2@28")
    assert list(one["a_score"]) == ["facebook/dinov2-large"]
    with pytest.raises(UsageError, match="unknown tower 'dinov2@336'"):
        run("--base_folder", store.root, "--targets", "dinov2@336")


def test_store_with_a_tower_twice(score, store):
    """Two frames of one tower go by their folders."""
    dino = next(space for space in store.spaces() if "dino" in space.spec.id)
    other = store.space(dino.spec, "stretch", "float32")
    other.write({key: dino.read(key).clone() for key in dino})
    with pytest.raises(UsageError, match=r"may mean .*-pad-.* or .*-stretch-.*; say which"):
        run("--base_folder", store.root, "--targets", "dinov2")
    answer = score("--base_folder", store.root, "--targets", other.folder.name)
    assert list(answer["a_score"]) == [other.folder.name]


def test_damaged_store(store):
    shard = next(next(iter(store.spaces())).folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(LawError, match=r"is cut short.*extract again"):
        run("--base_folder", store.root)


def process(*argv, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, *map(str, argv)], cwd=cwd, capture_output=True, text=True, env=environment
    )


@pytest.mark.slow
def test_as_a_script(folder):
    """From the root and from inside its folder; exit codes 0, 1 and 2."""
    done = process("A_score/compute.py", "--base_folder", folder, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert PROTOCOL in done.stdout
    (folder / "dino" / "tensor_1.pt").write_bytes(b"")
    done = process("compute.py", "--base_folder", folder, cwd=ROOT / "A_score")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("law: error:")
    done = process("A_score/compute.py", "--base_folder", folder / "none", cwd=ROOT)
    assert done.returncode == 2


def test_help_needs_no_torch():
    code = "import sys, A_score.compute as c\n"
    code += "try: c.main(['-h'])\nexcept SystemExit: print('torch' in sys.modules)"
    assert process("-c", code, cwd=ROOT).stdout.endswith("False\n")


def test_as_a_command(folder, capsys):
    """`law a-score cosine`, its help, and a form that is none."""
    cli.main(["cosine", "--base_folder", str(folder)])
    assert "dino" in capsys.readouterr().out
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        cli.main(["cosin"])
    for argv, code in ((["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == code
        assert "cosine" in capsys.readouterr().out
