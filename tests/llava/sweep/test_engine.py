"""The engine on commands that are stand-ins: what runs, what is kept, what a failure stops."""

import json
import os
import random
import runpy
import signal
import time
from pathlib import Path

import psutil
import pytest

from llava.results import COLUMNS
from llava.sweep.ledger import Ledger
from llava.sweep.processes import MARK

STUB = Path(__file__).with_name("stub_law.py")


def states(sweep) -> dict[str, str]:
    told = json.loads((sweep.run_dir / "summary.json").read_text())
    return {step["name"]: step["state"] for step in told["steps"]}


def test_a_sweep_runs_every_step_and_makes_one_table(sweep):
    done = sweep.run()
    assert done.returncode == 0, done.stderr
    assert set(states(sweep).values()) == {"done"}
    kinds = [command.split()[0] for command in sweep.commands()]
    # stage 1 of 3 candidates and the reference; the pair sees its towers in another frame
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "prepare": 1, "features": 3 + 5, "c-score": 1, "train": 4 + 3, "a-score": 3 + 4 + 3,
        "evaluate": 3, "report": 1,
    }  # fmt: skip
    rows = sweep.table()
    names = ["openai/clip-vit-large-patch14-336", "facebook/dinov2-large"]
    names.append(".".join(names))
    assert [row[:2] for row in rows[:3]] == [(name, "C_pck") for name in names]
    assert [row[0] for row in rows if row[1] == "A_nll"] == names
    assert [row[0] for row in rows if row[1] == "A_cosine"] == names
    assert [row[:3:2] for row in rows if row[1] == "performance"] == [
        (name, task) for name in names for task in ("quiz", "exam")
    ]


def test_what_is_done_is_not_done_again(sweep):
    sweep.run()
    before = (sweep.run_dir / "results.csv").read_bytes()
    ledger = (sweep.run_dir / "ledger.jsonl").read_bytes()
    again = sweep.run()
    assert again.returncode == 0
    assert sweep.commands() == []
    assert (sweep.run_dir / "results.csv").read_bytes() == before
    assert (sweep.run_dir / "ledger.jsonl").read_bytes() == ledger


def test_a_changed_flag_runs_what_it_touches_and_loses_nothing(sweep):
    sweep.run()
    sweep.change("learning_rate: 2e-5", "learning_rate: 3e-5")
    assert sweep.run().returncode == 0
    assert sweep.kinds() == ["evaluate"] * 3 + ["report"] + ["train"] * 3
    assert all("--learning_rate 3e-05" in c for c in sweep.commands() if c.startswith("train"))
    aside = sorted(path.name for path in (sweep.run_dir / "set-aside").iterdir())
    assert len([name for name in aside if name.startswith("stage2--")]) == 3


def test_the_order_of_flags_and_those_without_effect_change_nothing(sweep):
    sweep.run()
    sweep.change("data_path: captions.json, ", "logging_steps: 7, save_steps: 3, ")
    sweep.change("learning_rate: 1e-3", "learning_rate: 0.001, data_path: captions.json")
    sweep.change("gpus: 0", "gpus: 0, gpus_per_step: {evaluate: 2}")
    sweep.run()
    assert sweep.commands() == []


def test_what_a_changed_line_set_aside_comes_back(sweep):
    sweep.run()
    before = sweep.table()
    sweep.change("learning_rate: 2e-5", "learning_rate: 3e-5")
    sweep.run()
    sweep.change("learning_rate: 3e-5", "learning_rate: 2e-5")
    done = sweep.run()
    assert sweep.commands() == []
    assert "stage2/facebook--dinov2-large is back: it was made of just this" in done.stderr
    assert sweep.table() == before
    sweep.change("learning_rate: 2e-5", "learning_rate: 3e-5")
    sweep.run()
    assert sweep.commands() == []


def test_one_more_benchmark_asks_only_that_one(sweep):
    sweep.run()
    sweep.change("[quiz, exam]", "[quiz, exam, viva]")
    assert sweep.run().returncode == 0
    assert sweep.kinds() == ["evaluate"] * 3 + ["report"]
    assert sweep.asked() == [
        f"asks viva {name}" for name in sorted({row[0] for row in sweep.table()})
    ]
    assert len([row for row in sweep.table() if row[1] == "performance"]) == 9


def test_one_more_step_of_prepare_runs_itself_alone(sweep):
    sweep.run()
    sweep.change(
        "llm:",
        '  - {name: more, command: "prepare {run_dir}/more.txt", outputs: [more.txt]}\nllm:',
    )
    sweep.run()
    assert sweep.kinds() == ["prepare", "report"]


def test_a_step_of_prepare_runs_again_what_reads_from_it(sweep):
    sweep.change("world.txt", "llm/config.json")
    sweep.run()
    (sweep.run_dir / "llm" / "config.json").write_text("damage")
    sweep.run()
    assert sweep.kinds() == ["prepare"]  # what it makes is what it made
    sweep.change("prepare {run_dir}/llm/config.json", "prepare {run_dir}/llm/config.json again")
    sweep.run()
    assert sweep.kinds().count("train") == 7
    assert "c-score" not in sweep.kinds()


def test_an_input_that_is_gone_moves_nothing(sweep):
    """Data that is no longer needed, or a disk that is not there for a moment."""
    sweep.run()
    captions = sweep.folder / "captions.json"
    captions.rename(sweep.folder / "elsewhere")
    assert sweep.run().returncode == 0
    assert sweep.commands() == []
    sweep.change("learning_rate: 1e-3", "learning_rate: 1e-4")
    failed = sweep.run()
    assert failed.returncode == 1
    assert f"captions.json: no such file or folder (seen from {sweep.folder})" in failed.stderr
    assert not (sweep.run_dir / "set-aside").exists()
    assert [k for k in sweep.kinds() if k == "train"] == []


def test_the_folder_of_another_run_is_refused(sweep):
    sweep.run()
    sweep.change("name: stub", "name: other")
    failed = sweep.run()
    assert failed.returncode == 2
    assert "holds the run 'stub', and this is 'other'; take another --run-dir" in failed.stderr


def test_names_are_looked_at_before_anything_runs(sweep):
    sweep.change("[clip336, dinov2, clip336+dinov2]", "[clip336, dinov3x]")
    failed = sweep.run()
    assert failed.returncode == 2
    assert "unknown tower 'dinov3x'" in failed.stderr
    assert sweep.commands() == []


def test_a_changed_input_runs_what_reads_it(sweep, tmp_path):
    captions = tmp_path / "captions.json"
    captions.write_text("[]")
    sweep.change("data_path: captions.json", f"data_path: {captions}")
    sweep.run()
    captions.touch()
    sweep.run()
    assert sweep.commands() == []
    captions.write_text("[1]")
    sweep.run()
    assert "c-score" not in sweep.kinds()
    assert sweep.kinds().count("train") == 7


def test_an_input_that_cannot_be_read_fails_only_what_reads_it(sweep):
    unreadable = "/proc/self/mem"  # for root, too
    sweep.change("stage2: {data_path: conversations.json", f"stage2: {{data_path: {unreadable}")
    failed = sweep.run()
    assert failed.returncode == 1
    found = states(sweep)
    ended = {name.split()[0]: state for name, state in found.items()}
    assert ended["stage2"] == "failed"
    assert ended["evaluate"] == "blocked"
    assert all(s == "done" for k, s in ended.items() if k not in ("stage2", "evaluate"))
    assert f"{unreadable}: cannot be read: Input/output error" in failed.stderr


def test_a_moved_run_folder_is_gone_on_with(sweep, tmp_path):
    sweep.run()
    moved = tmp_path / "elsewhere"
    sweep.run_dir.rename(moved)
    sweep.change(str(sweep.run_dir), str(moved))
    sweep.run_dir = moved
    sweep.run()
    assert sweep.commands() == []


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_output_is_found_and_redone(sweep, damage):
    sweep.run()
    table = sweep.table()
    damaged = sweep.run_dir / "nll" / "facebook--dinov2-large" / "results.csv"
    data = damaged.read_bytes()
    times = damaged.stat()
    if damage == "missing":
        damaged.unlink()
    else:
        damaged.write_bytes(data[:-9] if damage == "cut" else data.replace(b"nats", b"naps"))
        os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = sweep.run()
    assert done.returncode == 0
    assert "nll facebook/dinov2-large is done again" in done.stderr
    assert [c[:11] for c in sweep.commands()] == ["a-score nll"]
    assert sweep.table() == table


def test_a_damaged_feature_store_is_redone(sweep):
    sweep.run()
    stores = sorted(sweep.run_dir.glob("features/correspondence/*dinov2*/0.safetensors"))
    stores[0].write_text("damage")
    sweep.run()
    assert sweep.kinds() == ["features"]


def test_weights_that_were_evaluated_may_be_removed(sweep):
    sweep.run()
    weights = sorted(sweep.run_dir.glob("stage2/*/model.safetensors"))
    for path in weights:
        path.unlink()
    sweep.run()
    assert sweep.commands() == []
    sweep.change("[quiz, exam]", "[quiz]")
    sweep.run()
    assert sweep.kinds() == ["evaluate"] * 3 + ["report"] + ["train"] * 3


def test_a_failing_step_stops_only_what_depends_on_it(sweep):
    failed = sweep.run(STUB_FAIL="train stage1/facebook")
    assert failed.returncode == 1
    found = states(sweep)
    dino = "facebook/dinov2-large"
    assert found[f"stage1 {dino}"] == "failed"
    blocked = {name for name, state in found.items() if state == "blocked"}
    assert blocked == {f"{kind} {dino}" for kind in ("nll", "dump", "cosine", "stage2", "evaluate")}
    assert all(state == "done" for name, state in found.items() if not name.endswith(f" {dino}")
               or "features" in name)  # fmt: skip
    assert "the stub was told to fail" in failed.stderr
    assert "not run because of it: nll facebook/dinov2-large" in failed.stderr
    assert "goes on from here" in failed.stderr
    mended = sweep.run()
    assert mended.returncode == 0
    assert sorted(c.split()[0] for c in sweep.commands()) == [
        "a-score", "a-score", "a-score", "evaluate", "report", "train", "train",
    ]  # fmt: skip


def test_a_step_that_is_killed_says_so(sweep):
    failed = sweep.run(STUB_FAIL="c-score", STUB_KILL="1")
    assert failed.returncode == 1
    assert "c-score failed: killed by SIGKILL; the machine may have been out of" in failed.stderr
    assert states(sweep)["report"] == "done"


def test_a_step_that_leaves_too_little_has_failed(sweep):
    sweep.change("outputs: [world.txt]", "outputs: [world.txt, map.txt]")
    failed = sweep.run()
    assert failed.returncode == 1
    assert f"world: it left no {sweep.run_dir / 'map.txt'}" in failed.stderr


def test_a_number_under_another_name_is_no_result(sweep):
    """It would be lost to the law without a word."""
    failed = sweep.run(STUB_RENAMES="facebook/dinov2-large")
    assert failed.returncode == 1
    table = sweep.run_dir / "c_score" / "results.csv"
    told = f"{table}: no row of facebook/dinov2-large; rows of others: facebook/dinov2-large@1"
    assert told in failed.stderr


def test_the_stand_in_writes_real_tables():
    assert runpy.run_path(str(STUB))["COLUMNS"] == COLUMNS


def test_two_runs_in_one_folder_are_refused(sweep):
    first = sweep.start(STUB_SLEEP="0.5")
    until(lambda: (sweep.run_dir / "ledger.jsonl").exists())
    second = sweep.run()
    assert second.returncode == 1
    assert f"process {first.pid} on" in second.stderr
    assert "take another --run-dir" in second.stderr
    first.communicate(timeout=120)
    assert first.returncode == 0


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_steps(sweep, end):
    process = sweep.start(STUB_SLEEP="30")
    until(lambda: steps_running(sweep))
    process.send_signal(end)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert steps_running(sweep) == []


def test_killed_at_random_moments_a_run_ends_with_the_same_table(sweep, tmp_path):
    """SIGKILL of the run, whose steps live on; the next run ends them first."""
    sweep.run()
    wanted = sweep.table()
    other = type(sweep)(tmp_path / "other")
    rng = random.Random(7)
    for _ in range(10):
        process = other.start(STUB_SLEEP="0.15")
        time.sleep(rng.uniform(0.3, 2.5))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    last = other.run()
    assert last.returncode == 0, last.stderr
    assert other.table() == wanted
    assert set(states(other).values()) == {"done"}
    assert steps_running(other) == []


def test_the_ledger_counts_lost_attempts(sweep):
    process = sweep.start(STUB_SLEEP="30")
    until(lambda: steps_running(sweep))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert len(steps_running(sweep)) == 1
    assert sweep.run().returncode == 0
    lines = [json.loads(x) for x in (sweep.run_dir / "ledger.jsonl").read_text().splitlines()]
    assert [x["state"] for x in lines if x["step"] == "world"] == [
        "running", "lost", "running", "done",
    ]  # fmt: skip


def test_a_damaged_line_of_the_ledger_costs_its_step_only(sweep):
    sweep.run()
    path = sweep.run_dir / "ledger.jsonl"
    lines = path.read_text().splitlines()
    place = next(i for i, x in enumerate(lines) if '"c-score"' in x and '"done"' in x)
    lines[place] = lines[place][:40]
    path.write_text("\n".join([*lines, '{"step": "repo']))
    done = sweep.run()
    assert done.returncode == 0
    assert f"ledger.jsonl, line {place + 1} is damaged" in done.stderr
    assert sweep.kinds() == ["c-score"]
    assert Ledger(sweep.run_dir).entry("c-score").state == "done"


def test_the_policy_is_asked_until_it_says_stop(guided):
    done = guided.run()
    assert done.returncode == 0, done.stderr
    told = json.loads((guided.run_dir / "summary.json").read_text())
    assert [(r["round"], len(r["stage2"]), r["stop"]) for r in told["rounds"]] == [
        (1, 1, False), (2, 1, False), (3, 0, True),
    ]  # fmt: skip
    assert guided.kinds().count("evaluate") == 2
    assert len([row for row in guided.table() if row[1] == "performance"]) == 4
    guided.run()
    assert guided.commands() == []


def test_the_policy_sees_only_what_was_known_then(guided):
    """A proposal that is made again later rests on the table of its own round."""
    guided.run()
    first = (guided.run_dir / "policy" / "001.csv").read_text()
    (guided.run_dir / "policy" / "001.json").write_text("{}")
    guided.run()
    assert guided.kinds() == ["policy"]
    assert (guided.run_dir / "policy" / "001.csv").read_text() == first
    assert "performance" not in first


def test_stage_1_where_the_policy_asks_for_it(guided):
    guided.change("policy: {stage2: policy}", "policy: {stage1: policy, first: [dinov2]}")
    done = guided.run(STUB_ROUNDS="3")
    assert done.returncode == 0, done.stderr
    trained = [c for c in guided.commands() if c.startswith("train") and "--tune_mm" in c]
    assert len(trained) == 4
    assert len([row for row in guided.table() if row[1] == "A_nll"]) == 3


def test_what_was_finetuned_stays_when_the_rounds_change(guided):
    """A mended failure, a new candidate: the policy is asked anew and knows what was finetuned."""
    first = guided.run(STUB_FAIL="train stage2/facebook--dinov2-large", STUB_ROUNDS="2")
    assert first.returncode == 1
    tuned = {row[0] for row in guided.table() if row[1] == "performance"}
    assert len(tuned) == 2
    mended = guided.run(STUB_ROUNDS="3")
    assert mended.returncode == 0, mended.stderr
    assert guided.kinds().count("evaluate") == 1
    assert {row[0] for row in guided.table() if row[1] == "performance"} > tuned
    guided.change("[clip336, dinov2, clip336+dinov2]", "[clip224, clip336, dinov2, clip336+dinov2]")
    assert guided.run(STUB_ROUNDS="3").returncode == 0
    assert guided.kinds().count("evaluate") == 0
    assert len({row[0] for row in guided.table() if row[1] == "performance"}) == 3


def test_an_interrupted_second_run_keeps_the_table(sweep):
    sweep.run()
    rows = len(sweep.table())
    sweep.change("[clip336, dinov2, clip336+dinov2]", "[siglip, clip336, dinov2, clip336+dinov2]")
    process = sweep.start(STUB_SLEEP="30")
    until(lambda: steps_running(sweep))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert len(sweep.table()) == rows


def test_removed_weights_are_made_again_for_a_damaged_evaluation(sweep):
    sweep.run()
    rows = sweep.table()
    for path in sweep.run_dir.glob("stage2/*/model.safetensors"):
        path.unlink()
    damaged = next(sweep.run_dir.glob("evaluate/facebook*/results.csv"))
    damaged.write_text("damage")
    done = sweep.run()
    assert done.returncode == 0, done.stderr
    assert sweep.kinds().count("train") == 1
    assert sweep.table() == rows


def test_a_failing_step_of_prepare_fails_only_what_needs_it(sweep):
    sweep.change("clip336+dinov2]", "tiny/tower]")
    sweep.change("llm:", 'towers: {tiny/tower: "{run_dir}/towers/tower"}\nllm:')
    sweep.change("world.txt", "towers/tower/config.json")
    failed = sweep.run(STUB_FAIL="tower/config.json")
    assert failed.returncode == 1
    assert "world: exit code 1" in failed.stderr
    assert "goes on from here" in failed.stderr
    assert len({row[0] for row in sweep.table() if row[1] == "performance"}) == 2


def test_a_proposal_of_something_else_is_refused(guided):
    failed = guided.run(STUB_PROPOSES="what/else")
    assert failed.returncode == 1
    assert "the policy proposes what/else, which is no candidate of this sweep" in failed.stderr


def test_towers_whose_packages_lack_are_left_out_aloud(sweep, monkeypatch):
    from llava.sweep import space
    from llava.sweep.plan import load_run

    monkeypatch.setattr(
        space, "missing_packages", lambda family: ["x"] if family.name == "dinov2" else []
    )
    config = load_run(sweep.yaml)
    kept = [c.name for c in space.candidates(config, space.names(config))]
    assert kept == ["openai/clip-vit-large-patch14-336"]


def until(true) -> None:
    """Waits for something, at most a minute."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps_running(sweep) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(sweep.run_dir):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
