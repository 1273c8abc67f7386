"""The ledger: what is known of a step after every kind of line, and what a damaged one costs."""

import json

import pytest

from llava.sweep.ledger import NAME, Entry, Ledger

BEGUN = {"state": "running", "when": "2026-01-02T03:04:05.678+00:00", "fingerprint": "f", "gpus": 8}
DONE = {"state": "done", "fingerprint": "f", "seconds": 2.0, "outputs": {"a": [1, 2, "3"]}}


def ledger_of(folder, *lines) -> Ledger:
    texts = [x if isinstance(x, str) else json.dumps({"step": "s", **x}) for x in lines]
    (folder / NAME).write_text("\n".join([*texts, ""]))
    return Ledger(folder)


@pytest.mark.parametrize(
    "damage",
    [
        {"when": "soon"},
        {"when": None},
        {"fingerprint": None},
        {"gpus": "eight"},
        {"gpus": -1},
        {"job": 7},
        {"seconds": "long"},
        {"seconds": float("nan")},
        {"gpu_hours": float("inf")},
        {"peak_memory": "big"},
        {"peak_gpu_memory": True},
        {"outputs": {"a": [1, 2]}},
        {"outputs": None},
        {"error": 3},
        {"state": "dome"},
    ],
)
def test_a_line_of_other_types_is_said_and_left_out(tmp_path, caplog, damage):
    """Nothing of it is taken, and whoever reads on finds numbers and times."""
    kept = ledger_of(tmp_path, BEGUN, DONE).entry("s")
    found = ledger_of(tmp_path, BEGUN, DONE, BEGUN | damage).entry("s")
    assert f"{NAME}, line 3 is damaged and left out" in caplog.text
    assert found == kept


def test_what_is_no_event_is_left_out(tmp_path, caplog):
    found = ledger_of(tmp_path, "[]", "3", '{"step": 3}', '{"step": "s"', "\x00\x00", BEGUN)
    assert caplog.text.count("is damaged and left out") == 5
    assert found.entry("s").state == "running"


@pytest.mark.parametrize("state", ["done", "failed"])
def test_an_end_whose_beginning_is_lost_still_has_its_fingerprint(tmp_path, state):
    earlier = BEGUN | {"fingerprint": "old", "gpus": 1, "job": "6"}
    end = DONE | {"state": state, "gpus": 8, "job": "7"}
    entry = ledger_of(tmp_path, earlier, '{"step": "s", "state": "runn', end).entry("s")
    assert (entry.state, entry.fingerprint, entry.gpus, entry.job) == (state, "f", 8, "7")


def test_a_beginning_starts_anew():
    entry = Entry()
    entry.take(BEGUN | {"job": "7"})
    entry.take(DONE)
    assert (entry.job, entry.gpus, list(entry.done)) == ("7", 8, ["f"])
    entry.take({"state": "running", "when": BEGUN["when"], "fingerprint": "g"})
    assert (entry.fingerprint, entry.job, entry.gpus, entry.outputs) == ("g", "", 0, {})


def test_gpu_hours_of_killed_attempts_count():
    entry = Entry()
    entry.take(BEGUN)
    entry.take({"state": "lost", "error": "killed", "seconds": 3600.0})
    assert entry.costs["gpu_hours"] == 8.0
    assert (entry.state, entry.error, entry.fingerprint) == ("failed", "killed", "f")
    entry.take(BEGUN)
    entry.take({"state": "lost", "seconds": 3600.0, "gpu_hours": 2.0})
    assert entry.costs["gpu_hours"] == 10.0
    entry.take(BEGUN)
    entry.take(DONE | {"gpu_hours": 0.5})
    assert entry.costs == {"seconds": 7202.0, "cpu_seconds": 0.0, "gpu_hours": 10.5}


def test_what_is_appended_is_what_is_read(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append("s", "running", fingerprint="f", gpus=2)
    (tmp_path / NAME).write_text((tmp_path / NAME).read_text() + '{"step": "s", "sta')
    ledger.append("s", "done", fingerprint="f", seconds=1.5, peak_memory=4, peak_gpu_memory=None)
    assert Ledger(tmp_path).entry("s") == ledger.entry("s")
    assert ledger.entry("s").peaks == {"peak_memory": 4, "peak_gpu_memory": None}
