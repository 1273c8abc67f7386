"""`law pairs`: its list, its table of results, and where the data is to be had."""

import argparse
import csv
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import pair_files
import pytest

from llava import catalog
from llava.__main__ import COMMANDS
from llava.errors import LawError, UsageError
from llava.eval.pairs import cli, where
from llava.eval.pairs.metrics import Accuracy
from llava.eval.pairs.result import KEYS, VERSION, read_result
from llava.eval.pairs.scorer import SCORERS, scorer_flags
from llava.eval.pairs.sources import sources
from llava.eval.pairs.table import as_text, main
from llava.features import DTYPES
from llava.model.multimodal_encoder.preprocess import FRAMES


def test_the_list(capsys):
    assert COMMANDS["pairs"].module == cli.__name__
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.ACTIONS)
    with pytest.raises(UsageError, match="did you mean 'agree'"):
        cli.main(["agre"])


@pytest.mark.parametrize("name", cli.ACTIONS)
def test_every_command_has_help(name, capsys):
    assert importlib.util.find_spec(cli.ACTIONS[name].module)
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: law pairs {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", SCORERS)
def test_flags_of_a_scorer_are_quick(name):
    """Listed without anything that is slow to import."""
    slow = ("numpy", "torch", "transformers", "yaml", "PIL")
    code = (
        "import sys\nfrom llava.eval.pairs import run\n"
        f"try: run.main(['--scorer', '{name}', '--help'])\n"
        f"except SystemExit: print([one for one in {slow} if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert f"--scorer {name}:" in done.stdout and "--batch-size" in done.stdout


def test_flags_name_what_there_is():
    """The help lists by hand what it cannot import in time."""
    parser = argparse.ArgumentParser()
    scorer_flags("clip").add_arguments(parser)
    shown = parser.format_help()
    assert "{" + ",".join(FRAMES) + "}" in shown and "{" + ",".join(DTYPES) + "}" in shown


def accuracy(right: int, of: int, chance: float | None) -> dict:
    return {"accuracy": right / of} | vars(Accuracy(right, of, None, chance))


def of_benchmark(name: str, individual: int, pair: int, **more) -> dict:
    """A benchmark of 103 What'sUp sets."""
    return {
        "benchmark": name,
        "protocol": "two-way",
        "digest": "d1",
        "individual": accuracy(individual, 412, 0.5),
        "pair": accuracy(pair, 206, 0.25),
        "same_choice": accuracy(100, 206, None),
        "by_axis": {"left/right": {"pair": accuracy(2, 103, 0.25)}},
    } | more


def file(folder, name: str, *benchmarks: dict, **more) -> str:
    whole = dict.fromkeys(KEYS, "") | {
        "version": VERSION,
        "model": "openai/clip",
        "representation": "clip336",
        "protocol": "clip/ab",
        "results": list(benchmarks),
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(whole | more))
    return str(path)


def shown(capsys, *words: str) -> list[list[str]]:
    """The cells that `law pairs table --format csv` prints."""
    main([*words, "--format", "csv"])
    return list(csv.reader(io.StringIO(capsys.readouterr().out)))


def test_runs_beside_each_other(tmp_path, capsys):
    files = [
        file(tmp_path, "clip", of_benchmark("whatsup_a", 230, 26)),
        file(
            tmp_path,
            "llava",
            of_benchmark("whatsup_a", 380, 150),
            of_benchmark("mmvp", 200, 60, protocol="labels=original"),
            model="llava",
            representation="llava",
            protocol="vqa/cd",
        ),
    ]
    lines = shown(capsys, *files, "--metrics", "individual", "pair")
    assert lines == [
        ["run", "scorer", "whatsup a individual", "whatsup a pair", "mmvp individual", "mmvp pair"],
        ["chance", "", "50.0", "25.0", "50.0", "25.0"],
        ["openai/clip (clip336)", "clip/ab", "55.8", "12.6", "", ""],
        ["llava", "vqa/cd", "92.2", "72.8", "48.5", "29.1"],
    ]
    axes = shown(capsys, files[0], "--axes", "--metrics", "pair")
    assert axes[0][2:] == ["whatsup a pair", "whatsup a left/right pair"]
    assert axes[2][2:] == ["12.6", "1.9"]
    same = shown(capsys, files[0], "--metrics", "same_choice")
    assert same[1:] == [["chance", "", ""], ["openai/clip (clip336)", "clip/ab", "48.5"]]


def test_formats(tmp_path, capsys):
    one = file(tmp_path, "x", of_benchmark("whatsup_a", 412, 206), model="a|b")
    main([one, "--metrics", "pair", "--format", "md"])
    assert capsys.readouterr().out.splitlines() == [
        "| run | scorer | whatsup a pair |",
        "| --- | --- | ---: |",
        "| chance |  | 25.0 |",
        r"| a\|b (clip336) | clip/ab | 100.0 |",
    ]
    main([one, "--metrics", "pair"])
    head, chance, _ = capsys.readouterr().out.splitlines()
    assert head.endswith("whatsup a pair") and chance.endswith("          25.0")
    assert len(head) == len(chance)
    with pytest.raises(UsageError, match=r"--format: unknown format 'html'"):
        main([one, "--format", "html"])
    with pytest.raises(UsageError, match="did you mean 'pair'"):
        main([one, "--metrics", "pairs"])


def test_what_does_not_compare_shares_no_column(tmp_path, capsys):
    two = file(tmp_path, "two", of_benchmark("whatsup_a", 412, 206))
    four = file(tmp_path, "four", of_benchmark("whatsup_a", 400, 200, protocol="four-way"))
    other = file(tmp_path, "other", of_benchmark("whatsup_a", 412, 206, digest="d2"))
    with pytest.raises(UsageError, match=r"'two-way' in .*two.json and 'four-way' in .*--by-proto"):
        main([two, four])
    lines = shown(capsys, two, four, "--by-protocol", "--metrics", "pair")
    assert lines[0][2:] == ["whatsup a (two-way) pair", "whatsup a (four-way) pair"]
    assert [line[2:] for line in lines[2:]] == [["100.0", ""], ["", "97.1"]]
    for flags in ([], ["--by-protocol"]):
        with pytest.raises(UsageError, match=r"are of different data \(digests d1 and d2"):
            main([two, other, *flags])


def test_a_file_that_is_no_result(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(LawError, match="expected a result of `law pairs run`"):
        main([str(tmp_path / "x.json")])
    newer = file(tmp_path, "y", of_benchmark("whatsup_a", 1, 1), version=99)
    with pytest.raises(LawError, match="has version 99"):
        main([newer])


def test_one_run_as_text(tmp_path):
    result = read_result(Path(file(tmp_path, "x", of_benchmark("whatsup_a", 230, 26))))
    lines = [line.split() for line in as_text({"x": result}).splitlines()]
    assert ["whatsup", "a", "left/right", "pair", "25.0", "1.9"] in lines


def test_where_says_all_that_is_known(capsys):
    where.main([])
    whole = capsys.readouterr().out
    for name, source in sources().items():
        assert f"{name}: {source.title}" in whole
        assert all(address in whole for address in source.get)
        assert source.licence and source.layout
    where.main(["mmvp"])
    one = capsys.readouterr().out
    assert one.startswith("mmvp: ") and "whatsup" not in one
    assert "mmvp: 300 images, 150 items" in one
    with pytest.raises(UsageError, match="did you mean 'whatsup'"):
        where.main(["whatsap"])


@pytest.fixture
def mmvp(tmp_path):
    """A configuration of MMVP with all of its 300 images."""
    data, images = pair_files.mmvp(tmp_path, 150)
    path = tmp_path / "mmvp.yaml"
    path.write_text(
        f"benchmarks:\n- {{name: mmvp, kind: mmvp, data: {data}, images: '{images}'}}\n"
    )
    return path, images


def test_where_checks_what_was_got(mmvp, capsys):
    where.main(["--check", "--config", str(mmvp[0])])
    assert capsys.readouterr().out == (
        "mmvp: 150 items, 300 images, all there and readable; protocol questions/labels=original\n"
    )
    (mmvp[1] / "7.jpg").write_bytes((mmvp[1] / "7.jpg").read_bytes()[:300])
    (mmvp[1] / "9.jpg").write_bytes(b"<html>")
    with pytest.raises(LawError, match=r"2 of 300 images are damaged: .*7.jpg: .*9.jpg: does not"):
        where.main(["--check", "--config", str(mmvp[0])])
    (mmvp[1] / "7.jpg").unlink()
    with pytest.raises(LawError, match="1 of 300 images are not there"):
        where.main(["--check", "--config", str(mmvp[0])])
    pair_files.mmvp_questions(mmvp[1].parent / "Questions.csv", 149)
    pair_files.picture(mmvp[1] / "7.jpg")
    with pytest.raises(LawError, match=r"298 images, published 300; .* get the published data"):
        where.main(["--check", "--config", str(mmvp[0])])


@pytest.mark.parametrize(
    "words", [["--check"], ["--config", "x.yaml"], ["--check", "--config", "x.yaml", "mmvp"]]
)
def test_flags_of_where_go_together(words):
    with pytest.raises(UsageError):
        where.main(words)


def test_columns_of_results_have_names():
    """Every published benchmark is shown by a name of its own, and none is in the law's eight."""
    counts = {name: one for source in sources().values() for name, one in source.counts.items()}
    known = catalog.benchmarks()
    for name in sorted(set(counts) - {"mmvp_corrected"}):
        entry = known[f"{name}_individual"]
        assert entry.unit == "fraction" and entry.metric == "individual" and not entry.in_law
        assert entry.display != entry.id and entry.items == counts[name]["images"]
        assert entry.pairs == (not name.startswith("whatsup"))
        if counts[name]["items"] < counts[name]["images"]:
            assert known[f"{name}_pair"].metric == "pair"
