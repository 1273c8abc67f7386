"""One step in its process: what is written of it, how it is stopped, what of it is passed on."""

import json
import os
import signal
import threading
import time
from datetime import UTC, datetime

import psutil
import pytest

from llava.errors import LawError
from llava.sweep import work as work_module
from llava.sweep.ledger import NAME, Ledger
from llava.sweep.left import outputs
from llava.sweep.processes import MARK
from llava.sweep.step import Step
from llava.sweep.work import ALIVE, Work, seconds_seen


def python(text: str, **facts) -> Step:
    return Step("s", "s", ("-c", text), **facts)


def events(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / NAME).read_text().splitlines()]


def alive(run_dir) -> list[int]:
    """Processes of the run that have not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(run_dir) and process.status() != "zombie":
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def soon(true) -> bool:
    deadline = time.monotonic() + 20
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_both_lines_of_an_attempt_tell_what_it_is(tmp_path):
    Work(tmp_path, threads=1, job="7").do(python("pass"), "f", Ledger(tmp_path), ["0", "1"])
    begun, ended = events(tmp_path)
    assert (begun["state"], ended["state"]) == ("running", "done")
    for event in (begun, ended):
        assert (event["fingerprint"], event["gpus"], event["job"]) == ("f", 2, "7")
    assert ended["gpu_hours"] == pytest.approx(ended["seconds"] * 2 / 3600, abs=1e-6)
    entry = Ledger(tmp_path).entry("s")
    assert (entry.gpus, entry.job, entry.fingerprint) == (2, "7", "f")


def test_a_step_is_stopped_however_early(tmp_path):
    """Between its line in the ledger and its process it is neither waiting nor running."""
    step = python("import time; time.sleep(60)")
    for delay in (0.0, 0.001, 0.01, 0.1):
        work = Work(tmp_path, threads=1)

        class Telling(Ledger):
            def append(self, step, state, work=work, delay=delay, **told):
                super().append(step, state, **told)
                threading.Timer(delay, work.stop).start()

        start = time.monotonic()
        work.do(step, "f", Telling(tmp_path), [])
        assert time.monotonic() - start < 20
        assert work.running == {}
    assert {event["state"] for event in events(tmp_path)} == {"running"}
    assert soon(lambda: not alive(tmp_path))


def test_what_is_stopped_begins_nothing(tmp_path):
    work = Work(tmp_path, threads=1)
    work.stop()
    work.do(python("pass"), "f", Ledger(tmp_path), [])
    assert not (tmp_path / NAME).exists()
    with pytest.raises(LawError, match="s, node 0: stopped"):
        work.follow(python("pass"), [])


def test_stop_sees_all_steps_while_others_come_and_go(tmp_path):
    work, ledger = Work(tmp_path, threads=1), Ledger(tmp_path)
    ended = threading.Event()

    def keep_going(number: int) -> None:
        while not ended.is_set():
            work.do(Step(f"s{number}", "s", ("-c", "pass")), "f", ledger, [])

    threads = [threading.Thread(target=keep_going, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    work.stop()
    ended.set()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert work.running == {}


@pytest.mark.parametrize("trial", range(3))
def test_a_run_is_interrupted_as_soon_as_a_step_is_said_to_run(sweep, trial):
    process = sweep.start(STUB_SLEEP="50")
    ledger = sweep.run_dir / NAME
    assert soon(lambda: ledger.exists() and b"running" in ledger.read_bytes())
    time.sleep(0.004 * trial)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert soon(lambda: not alive(sweep.run_dir))


def test_a_silent_step_is_seen_to_run(tmp_path, monkeypatch):
    """So that a killed attempt's time is known although it wrote nothing."""
    monkeypatch.setattr(work_module, "BEAT", 0.1)
    began = datetime.now(UTC).isoformat()
    work = Work(tmp_path, threads=1)
    work.do(python("import time; time.sleep(2)"), "f", Ledger(tmp_path), [])
    folder = tmp_path / "steps" / "s"
    assert (folder / "log.txt").stat().st_size == 0
    assert (folder / ALIVE).exists()
    assert 1.5 < seconds_seen(folder, began) < 60


def test_gpu_hours_of_a_killed_attempt_count(tmp_path):
    ledger = Ledger(tmp_path)
    work = Work(tmp_path, threads=1)
    threading.Timer(0.5, work.stop).start()
    work.do(python("import time; time.sleep(60)"), "f", ledger, ["0", "1", "2", "3"])
    again = Ledger(tmp_path)
    assert again.entry("s").state == "running"
    again.append("s", "lost", error="killed", seconds=1800.0)
    assert Ledger(tmp_path).entry("s").costs["gpu_hours"] == 2.0


def test_the_error_is_of_this_attempt(tmp_path):
    ledger = Ledger(tmp_path)
    Work(tmp_path, threads=1).do(python("raise ValueError('first')"), "f", ledger, [])
    assert "ValueError: first" in ledger.entry("s").error
    Work(tmp_path, threads=1).do(python("exit('it is over')"), "f", ledger, [])
    assert "exit code 1: it is over" in ledger.entry("s").error
    Work(tmp_path, threads=1).do(python("import os; os.kill(os.getpid(), 40)"), "f", ledger, [])
    assert "killed by signal 40" in ledger.entry("s").error
    log = (tmp_path / "steps/s/log.txt").read_text()
    assert "ValueError: first" in log


def test_what_a_step_prints_is_shown_and_kept(tmp_path, capfd):
    text = "import sys; print('ß' * 70000); sys.stdout.flush(); sys.stdout.write('end')"
    Work(tmp_path, threads=1, shown=True).do(python(text), "f", Ledger(tmp_path), [])
    shown = capfd.readouterr().out
    assert shown == "ß" * 70000 + "\nend"
    assert (tmp_path / "steps/s/stdout.txt").read_text() == shown


def test_what_a_step_leaves_running_is_not_waited_for(tmp_path, capfd):
    text = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('done')"
    )
    start = time.monotonic()
    ledger = Ledger(tmp_path)
    Work(tmp_path, threads=1, shown=True).do(python(text), "f", ledger, [])
    assert time.monotonic() - start < 30
    assert ledger.entry("s").state == "done"
    assert capfd.readouterr().out == "done\n"
    for pid in alive(tmp_path):
        os.kill(pid, signal.SIGKILL)


def test_a_step_that_closes_its_stdout_is_waited_for(tmp_path, capfd):
    text = "import os, time; os.close(1); time.sleep(0.5); os._exit(3)"
    ledger = Ledger(tmp_path)
    Work(tmp_path, threads=1, shown=True).do(python(text), "f", ledger, [])
    assert ledger.entry("s").error == "exit code 3; what it printed stands above"


def test_a_step_whose_reader_is_gone_ends_with_the_run(tmp_path, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr("sys.stdout", os.fdopen(writing, "w"))
    text = "import time; print('x', flush=True); time.sleep(60)"
    work = Work(tmp_path, threads=1, shown=True)
    start = time.monotonic()
    with pytest.raises(LawError, match=r"stdout takes no more .Broken pipe., so the run ends"):
        work.do(python(text), "f", Ledger(tmp_path), [])
    assert time.monotonic() - start < 30
    assert work.running == {}
    assert soon(lambda: not alive(tmp_path))


@pytest.mark.parametrize("name", ["a[1]", "[a]", "what?", "a [b]*c"])
def test_only_stars_stand_for_other_names(tmp_path, name):
    """A representation may be a folder of any name."""
    for one in (name, "a1", "whatX"):
        (tmp_path / "dumps" / one).mkdir(parents=True)
        (tmp_path / "dumps" / one / "0.safetensors").write_text("")
    step = python("pass", outputs=(f"dumps/{name}/*", f"dumps/{name}/0.safetensors"))
    assert set(outputs(step, tmp_path)) == {f"dumps/{name}/0.safetensors"}
    step = python("pass", outputs=("dumps/*/0.safetensors",))
    assert len(outputs(step, tmp_path)) == 3


def test_a_folder_is_no_output(tmp_path):
    (tmp_path / "towers").mkdir()
    with pytest.raises(LawError, match=r"left no .*towers \(a folder; expected files"):
        outputs(python("pass", outputs=("towers",)), tmp_path)
