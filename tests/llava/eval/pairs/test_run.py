"""Runs: every number from the scores, killed runs that go on, results that are told apart."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from repository import ROOT

from llava import results
from llava.errors import LawError, UsageError
from llava.eval.pairs import run as run_module
from llava.eval.pairs import scorer as scorer_module
from llava.eval.pairs import scoring
from llava.eval.pairs.config import read_benchmarks
from llava.eval.pairs.readers.grid import Grid
from llava.eval.pairs.result import read_result, rows, scorer_protocol
from llava.eval.pairs.run import evaluate, main
from llava.eval.pairs.scorer import Scorer
from llava.eval.pairs.scoring import benchmark_digest
from llava.eval.pairs.synthetic import make_synthetic

STUB = '''
"""A scorer of pixels, for tests: the mean place of what is bright, against words of the caption."""

import os
import time

import numpy as np
from PIL import Image

from llava.eval.pairs.scorer import Scorer


class Stub(Scorer):
    name = "stub"
    performance = True

    def __init__(self, representation, gain, seconds):
        self.representation, self.gain, self.seconds = representation, gain, seconds
        self.seen = []

    def scores(self, items):
        self.seen.append([item.id for item in items])
        time.sleep(self.seconds)
        return [
            np.where(item.needed, [[self.one(i, c) for c in item.captions] for i in item.images],
                     np.nan)
            for item in items
        ]

    def one(self, image, caption):
        pixels = np.asarray(Image.open(image).convert("RGB"), float)
        things = {"red": 0, "green": 1, "blue": 2}
        return self.gain * float(pixels.mean()) / 7 + len(caption) / 3

    def facts(self):
        return {"representation": self.representation, "model": "stub", "gain": self.gain}


def add_arguments(parser):
    parser.add_argument("--gain", type=float, default=1.0, help="of the brightness")
    parser.add_argument("--representation", default="clip336")
    parser.add_argument("--seconds", type=float, default=0.0)


def make(arguments):
    return Stub(arguments.representation, arguments.gain, arguments.seconds)
'''


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """(configuration, folder) of 12 pairs, with the questions as a second benchmark."""
    folder = tmp_path_factory.mktemp("pairs")
    make_synthetic(folder / "s", 12, seed=0)
    (folder / "config.yaml").write_text(
        "benchmarks:\n"
        f"- {{name: synthetic, kind: grid, data: {folder / 's/pairs.jsonl'}}}\n"
        f"- {{name: asked, kind: grid, data: {folder / 's/questions.jsonl'}}}\n"
    )
    return folder / "config.yaml", folder / "s"


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """`--scorer stub`, also in processes that are started."""
    (tmp_path / "stub_scorer.py").write_text(STUB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stub_scorer", raising=False)
    kind = scorer_module.Kind("stub_scorer", "stub_scorer", "for a test")
    monkeypatch.setitem(scorer_module.SCORERS, "stub", kind)
    monkeypatch.setattr(scoring, "PIECE", 5)
    import stub_scorer

    return stub_scorer


class Oracle(Scorer):
    """Reads the colours' places off the picture; `sign` -1 says the contrary."""

    name = "toy"
    answers = True

    def __init__(self, sign=1.0, **facts):
        self.sign, self.given = sign, facts
        self.calls = 0

    def scores(self, items):
        self.calls += 1
        return [
            np.where(item.needed, self.sign * np.eye(len(item.images), len(item.captions)), np.nan)
            for item in items
        ]

    def facts(self):
        return {"representation": "clip336", "model": "m", "sign": self.sign} | self.given


def arguments_of(synthetic, out, *more) -> list[str]:
    return [
        *("--config", str(synthetic[0]), "--scorer", "stub", "--only", "synthetic"),
        *("--out", str(out), *map(str, more)),
    ]


def test_what_a_result_holds(synthetic, tmp_path):
    benchmarks = read_benchmarks(synthetic[0])
    found = evaluate(Oracle(select_feature="cls"), benchmarks, tmp_path / "o.json")
    assert found == read_result(tmp_path / "o.json")
    assert [one["benchmark"] for one in found["results"]] == ["synthetic", "asked"]
    one = found["results"][0]
    who = {key: one[key] for key in ("scorer", "model", "representation", "select_feature")}
    assert who == {
        "scorer": "toy",
        "model": "m",
        "representation": "clip336",
        "select_feature": "cls",
    }
    assert one["individual"] == {
        "accuracy": 1.0,
        "right": 24,
        "of": 24,
        "stderr": None,
        "chance": 0.5,
    }
    assert (one["n"], one["ties"], one["same_choice"]["right"]) == (12, 0, 0)
    assert set(one["by_axis"]) == {"left/right", "above/below"}
    assert "set" not in one
    assert len(one["per_item"]) == 12
    assert one["per_item"][3]["scores"] == [[1.0, 0.0], [0.0, 1.0]]
    assert one["per_item"][3]["images"] == ["pair_00003_0.png", "pair_00003_1.png"]
    assert not list(tmp_path.glob("*.scores.jsonl")), "the scores are in the result now"


def test_what_is_there_is_not_scored_again(synthetic, tmp_path):
    benchmarks = read_benchmarks(synthetic[0])
    first = evaluate(Oracle(), benchmarks, tmp_path / "o.json")
    again = Oracle()
    assert evaluate(again, benchmarks, tmp_path / "o.json") == first
    assert again.calls == 0
    with pytest.raises(LawError, match=r"another model, other flags or other data \(toy, m\)"):
        evaluate(Oracle(-1.0), benchmarks, tmp_path / "o.json")
    with pytest.raises(LawError, match="another model"):
        evaluate(Oracle(), read_benchmarks(synthetic[0], limit=3), tmp_path / "o.json")
    changed = evaluate(Oracle(-1.0), benchmarks, tmp_path / "o.json", overwrite=True)
    assert changed["results"][0]["individual"]["right"] == 0


def test_where_a_checkpoint_lies_does_not_count(synthetic, tmp_path):
    """`runs/a/` is `runs/a`, and may be moved; what it holds counts, and its name without that."""
    (benchmark,) = read_benchmarks(synthetic[0], ["synthetic"], limit=2)
    first = Oracle(fingerprint="f", model="runs/a", run_dir="runs/a")
    evaluate(first, [benchmark], tmp_path / "o.json")
    moved = Oracle(fingerprint="f", model="runs/a/", run_dir="runs/a/")
    evaluate(moved, [benchmark], tmp_path / "o.json")
    assert moved.calls == 0
    for other in (Oracle(fingerprint="g", model="runs/a"), Oracle(model="runs/a")):
        with pytest.raises(LawError, match="another model"):
            evaluate(other, [benchmark], tmp_path / "o.json")
    evaluate(Oracle(model="a"), [benchmark], tmp_path / "named.json")
    with pytest.raises(LawError, match="another model"):
        evaluate(Oracle(model="b"), [benchmark], tmp_path / "named.json")


def test_scores_that_another_run_took_away(synthetic, tmp_path):
    (benchmark,) = read_benchmarks(synthetic[0], ["synthetic"], limit=2)
    scorer = Oracle()
    scores = scorer.scores

    def robbed(items):
        """Another run begins this file anew meanwhile."""
        (tmp_path / "o.json.scores.jsonl").unlink()
        return scores(items)

    scorer.scores = robbed
    with pytest.raises(LawError, match=r"synthetic from item 0 on are gone .* its own --out"):
        evaluate(scorer, [benchmark], tmp_path / "o.json")


def test_ties_are_said(synthetic, tmp_path, stub, law_log):
    """Here of a scorer that knows neither image nor caption."""
    main([*arguments_of(synthetic, tmp_path / "o.json"), "--gain", "0"])
    tied = sum(
        "of 24 decisions are ties, whose scores are equal; they count as wrong" in line
        for line in law_log
    )
    found = read_result(tmp_path / "o.json")["results"][0]["ties"]
    assert tied == 1 and any(f"synthetic: {found} of 24" in line for line in law_log)


def test_digests_go_by_what_is_asked(synthetic, tmp_path):
    """Not by where it lies; by every byte of an image, and by every text."""
    (benchmark,) = read_benchmarks(synthetic[0], ["synthetic"])
    make_synthetic(tmp_path / "elsewhere", 12, seed=0)

    def digest() -> str:
        return benchmark_digest(Grid("synthetic", tmp_path / "elsewhere/pairs.jsonl").read())

    assert digest() == benchmark_digest(benchmark)
    image = tmp_path / "elsewhere/images/pair_00002_1.png"
    picture = Image.open(image).convert("RGB")
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(image)
    other = digest()
    assert other != benchmark_digest(benchmark)
    text = (tmp_path / "elsewhere/pairs.jsonl").read_text()
    (tmp_path / "elsewhere/pairs.jsonl").write_text(text.replace("red circle", "red disc", 1))
    assert digest() not in (other, benchmark_digest(benchmark))
    image.unlink()
    with pytest.raises(LawError, match="1 of 24 images are not there"):
        digest()


def test_a_stopped_run_goes_on(synthetic, tmp_path, stub, monkeypatch):
    """After any number of pieces, and after a line that was cut off: the same file."""
    benchmarks = read_benchmarks(synthetic[0], ["synthetic"])
    whole = evaluate(stub.Stub("clip336", 1.0, 0), benchmarks, tmp_path / "whole.json")
    scorer = stub.Stub("clip336", 1.0, 0)
    scorer.scores, scores = stop_after(scorer.scores, 2), scorer.scores
    with pytest.raises(KeyboardInterrupt):
        evaluate(scorer, benchmarks, tmp_path / "o.json")
    beside = tmp_path / "o.json.scores.jsonl"
    text = beside.read_text()
    assert text.count("\n") == 3
    beside.write_text(text[:-20])  # as a kill leaves it
    scorer.scores = scores
    scorer.seen.clear()
    found = evaluate(scorer, benchmarks, tmp_path / "o.json")
    assert [len(ids) for ids in scorer.seen] == [5, 2], "the first five are kept"
    assert found["results"] == whole["results"]
    assert not beside.exists()


def stop_after(scores, pieces):
    """A scorer's method that is interrupted at the next piece."""
    left = [pieces]

    def stopping(items):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return scores(items)

    return stopping


def test_scores_of_something_else_are_not_taken(synthetic, tmp_path, stub):
    benchmarks = read_benchmarks(synthetic[0], ["synthetic"])
    scorer = stub.Stub("clip336", 1.0, 0)
    scorer.scores = stop_after(scorer.scores, 2)
    with pytest.raises(KeyboardInterrupt):
        evaluate(scorer, benchmarks, tmp_path / "o.json")
    other = stub.Stub("clip336", -1.0, 0)
    evaluate(other, benchmarks, tmp_path / "o.json")
    assert [len(ids) for ids in other.seen] == [5, 5, 2]


@pytest.mark.parametrize("damage", ["[]\n", '{"fingerprint": 1}\n', "\0\0", ""])
def test_damaged_scores_are_made_anew(synthetic, tmp_path, stub, damage):
    benchmarks = read_benchmarks(synthetic[0], ["synthetic"])
    (tmp_path / "o.json.scores.jsonl").write_text(damage)
    scorer = stub.Stub("clip336", 1.0, 0)
    evaluate(scorer, benchmarks, tmp_path / "o.json")
    assert [len(ids) for ids in scorer.seen] == [5, 5, 2]


DRIVER = """
import sys
from llava.eval.pairs import scorer, scoring
from llava.eval.pairs.run import main
scorer.SCORERS["stub"] = scorer.Kind("stub_scorer", "stub_scorer", "for a test")
scoring.PIECE = 2
main(sys.argv[1:])
"""


def test_a_killed_process_goes_on(synthetic, tmp_path, stub):
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    words = arguments_of(synthetic, tmp_path / "o.json", "--seconds", "0.3")
    command = [sys.executable, "-c", DRIVER, *words]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    beside = tmp_path / "o.json.scores.jsonl"
    deadline = time.monotonic() + 60
    while not (beside.exists() and beside.read_text().count("\n") > 2):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "o.json").exists()
    words[-1] = "0"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "pieces are scored already" in done.stderr
    whole = evaluate(
        stub.Stub("clip336", 1.0, 0),
        read_benchmarks(synthetic[0], ["synthetic"]),
        tmp_path / "whole.json",
    )
    assert read_result(tmp_path / "o.json")["results"] == whole["results"]


def test_the_command(synthetic, tmp_path, stub, capsys):
    out, table = tmp_path / "r" / "o.json", tmp_path / "results.csv"
    words = arguments_of(synthetic, out, "--results", table, "--gain", 2)
    main(words)
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split() == ["run", "chance", "stub", "(clip336)"]
    assert "synthetic individual" in shown and "synthetic left/right pair" in shown
    result = read_result(out)
    assert result["facts"]["gain"] == 2 and result["quantity"] == "performance"
    main(words)
    assert capsys.readouterr().out == shown
    read = results.read(table)
    assert len(read) == 2 and read.replaced == 0, "the same run gives no row twice"
    assert read.names["benchmark"] == ["synthetic_individual", "synthetic_pair"]
    assert list(read.value) == [
        result["results"][0][name]["accuracy"] for name in ("individual", "pair")
    ]


def test_rows_say_what_was_measured(synthetic, tmp_path):
    benchmarks = read_benchmarks(synthetic[0], ["synthetic"], limit=4)
    facts = {"spec_hash": "abc", "seed": 3, "run_dir": "runs/x", "protocol": "how"}
    found = evaluate(Oracle(**facts), benchmarks, tmp_path / "o.json")
    (row, _) = rows(found, ["individual", "text", "set"], "elsewhere")
    assert (row.representation, row.quantity, row.benchmark, row.value, row.unit) == (
        "clip336",
        "pairs_toy",
        "synthetic_individual",
        1.0,
        "fraction",
    )
    assert (row.n, row.seed, row.spec_hash, row.run_dir) == (8, 3, "abc", "runs/x")
    assert row.protocol == "limit=4/toy/how"


def test_protocols_tell_how_and_not_who():
    base = {"representation": "clip336", "model": "a", "spec_hash": "1", "dtype": "float32"}
    usual = scorer_protocol("vqa", base)
    assert usual == scorer_protocol(
        "vqa", base | {"representation": "dinov2", "model": "b", "select_feature": "patch"}
    )
    others = [
        scorer_protocol("vqa", base | {"dtype": "bfloat16"}),
        scorer_protocol("vqa", base | {"select_feature": "cls"}),
        scorer_protocol("clip", base),
    ]
    assert len({usual, *others}) == 4
    assert scorer_protocol("vqa", {"protocol": "eos", "select_feature": "cls"}) == (
        "vqa/select=cls/eos"
    )


def test_questions_are_refused_by_what_takes_none(synthetic, tmp_path):
    scorer = Oracle()
    scorer.answers = False
    with pytest.raises(UsageError, match=r"asked: asks questions, .* --scorer toy cannot"):
        evaluate(scorer, read_benchmarks(synthetic[0]), tmp_path / "o.json")
    assert scorer.calls == 0


class Bad(Oracle):
    """Gives what the test says."""

    given_scores: list

    def scores(self, items):
        return self.given_scores


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ([np.zeros((2, 2))], r"the scorer gave matrices \[\(2, 2\)\], expected \[\(2, 2\), "),
        ([np.zeros((2, 3))] * 12, r"the scorer gave matrices \[\(2, 3\)"),
        ([np.full((2, 2), np.nan)] * 12, "is nan; expected a finite number"),
    ],
)
def test_scores_that_are_none(synthetic, tmp_path, scores, why):
    scorer = Bad()
    scorer.given_scores = scores
    benchmarks = read_benchmarks(synthetic[0], ["synthetic"])
    with pytest.raises(LawError, match=why):
        evaluate(scorer, benchmarks, tmp_path / "o.json")
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--limit", "0"], "--limit 0: expected 1 or more"),
        (["--metrics", "pairs"], "did you mean 'pair'"),
        (["--out", "x.csv"], r"--out x.csv: expected a name that ends in .json"),
        (["--scorer", "clipp"], "--scorer: unknown scorer 'clipp'; did you mean 'clip'"),
        (["--only", "synthetik"], "did you mean 'synthetic'"),
    ],
)
def test_flags_that_cannot_be_meant(synthetic, tmp_path, stub, more, why):
    with pytest.raises(UsageError, match=why):
        main([*arguments_of(synthetic, tmp_path / "o.json"), *more])


def test_several_processes_share_the_pieces(synthetic, tmp_path, stub):
    """Under torchrun: the numbers of one process, printed once."""
    benchmarks = read_benchmarks(synthetic[0], ["synthetic"])
    whole = evaluate(stub.Stub("clip336", 1.0, 0), benchmarks, tmp_path / "whole.json")
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), str(tmp_path / "driver.py")]
    done = subprocess.run(
        [*command, *arguments_of(synthetic, tmp_path / "o.json")],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert read_result(tmp_path / "o.json")["results"] == whole["results"]
    assert done.stdout.count("synthetic individual") == 1, "only one process prints"
    assert not list(tmp_path.glob("*.scores*.jsonl"))


def test_only_the_first_process_tells_what_is_there(synthetic, tmp_path, stub, monkeypatch, capsys):
    words = arguments_of(synthetic, tmp_path / "o.json")
    main(words)
    assert capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    main(words)
    assert not capsys.readouterr().out


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_pieces_of_other_processes_are_read(synthetic, tmp_path, stub):
    """What three processes left is gone on with by one."""
    benchmarks = read_benchmarks(synthetic[0], ["synthetic"])
    whole = evaluate(stub.Stub("clip336", 1.0, 0), benchmarks, tmp_path / "whole.json")
    scorer = stub.Stub("clip336", 1.0, 0)
    scorer.scores, scores = stop_after(scorer.scores, 1), scorer.scores
    with pytest.raises(KeyboardInterrupt):
        evaluate(scorer, benchmarks, tmp_path / "o.json")
    (tmp_path / "o.json.scores.jsonl").rename(tmp_path / "o.json.scores2.jsonl")
    scorer.scores = scores
    scorer.seen.clear()
    found = evaluate(scorer, benchmarks, tmp_path / "o.json")
    assert [len(ids) for ids in scorer.seen] == [5, 2]
    assert found["results"] == whole["results"]
    assert not list(tmp_path.glob("o.json.scores*"))


def test_processes_that_do_not_know_each_other(synthetic, tmp_path, stub, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match=r"2 processes that do not know .* torchrun --nproc_per"):
        main(arguments_of(synthetic, tmp_path / "o.json"))


def test_help_shows_the_scorers_flags(stub, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--scorer", "stub", "--help"])
    assert ended.value.code == 0 and "of the brightness" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "--gain" not in shown and "--overwrite" in shown


def test_the_law_takes_such_columns(tmp_path):
    """AC_policy fits the performance of a pair benchmark like any other."""
    from AC_policy.commands.fit import add

    names = ["clip336", "clip224", "openclip", "dinov2", "sd1.5", "sd2.1"]
    rng = np.random.default_rng(0)
    table = tmp_path / "t.csv"
    found = []
    for name, (a, c) in zip(names, rng.uniform(0.2, 0.9, (len(names), 2)), strict=True):
        told = {"A_cosine": ("coco", a), "C_pck": ("spair71k", c)}
        found += [
            results.ResultRow(name, quantity, benchmark, float(value), "fraction")
            for quantity, (benchmark, value) in told.items()
        ]
        found.append(
            results.ResultRow(
                name,
                "performance",
                "whatsup_a_pair",
                float(0.3 * a + 0.4 * c),
                "fraction",
                protocol="two-way/vqa/1234",
            )
        )
    results.append(table, found)
    parser = argparse.ArgumentParser()
    add(parser.add_subparsers())
    out = tmp_path / "fit.json"
    arguments = parser.parse_args(["fit", "--table", str(table), "--json", str(out)])
    arguments.run(arguments)
    assert "whatsup_a_pair" in json.dumps(json.loads(out.read_text()))


def test_this_module_is_the_one_that_law_runs():
    from llava.eval.pairs.cli import ACTIONS

    assert ACTIONS["run"].module == run_module.__name__
    assert Path(run_module.__file__).name == "run.py"
