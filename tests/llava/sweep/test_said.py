"""The error of a failed step is that of who failed, whatever its launcher says afterwards."""

import signal

import pytest

from llava.sweep.said import LONGEST, TAIL, why

TORCHRUN = """
E1121 21:00:00.000000 7 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: 1)
Traceback (most recent call last):
  File "torch/distributed/run.py", line 892, in <module>
    main()
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
llava FAILED
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-21_21:00:00
  exitcode  : {code} (pid: 12)
  error_file: <N/A>
  traceback : {traceback}
============================================================
"""
ENABLE = "To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html"
AFTER = TORCHRUN.format(code=1, traceback=ENABLE)
MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Traceback:\nKeyError: 'x'\n", "KeyError: 'x'"),
        ("  assert a\nAssertionError\n", "AssertionError"),
        ("KeyError: 'x'\nlaw: error: no such tower\n", "law: error: no such tower"),
        ("usage: law train\nlaw train: error: unknown --x\n", "law train: error: unknown --x"),
        (f"{MEMORY}{AFTER}", MEMORY),
        (f"[rank0]: {MEMORY}\n[rank0]:[W1121] process group{AFTER}", f"[rank0]: {MEMORY}"),
        (f"law: error: a.json: no such file\n{AFTER}", "law: error: a.json: no such file"),
        (
            f"[rank1]: {MEMORY}\n[rank0]: torch.distributed.DistBackendError: NCCL error in: x"
            "\n[rank2]: RuntimeError: [../gloo/pair.cc:598] Connection closed by peer [::1]:1\n",
            f"[rank1]: {MEMORY}",
        ),
        (
            "ValueError: bad\nsubprocess.CalledProcessError: Command '['python']' returned 1\n",
            "ValueError: bad",
        ),
        (
            TORCHRUN.format(code=-9, traceback="Signal 9 (SIGKILL) received by PID 12"),
            "Signal 9 (SIGKILL) received by PID 12",
        ),
        ("Fatal Python error: Segmentation fault\nmore\n", "Fatal Python error: Segmentation"),
        ("10%\r20%\nthe last words\n\n", "the last words"),
        ("", "it said nothing"),
    ],
)
def test_the_words_of_who_failed(tmp_path, text, words):
    log = tmp_path / "log.txt"
    log.write_text(text)
    told = why(1, log)
    assert told.startswith(f"exit code 1: {words}")
    assert told.endswith(f" ({log})")


def test_an_earlier_attempt_is_not_quoted(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text(f"{MEMORY}\n")
    since = log.stat().st_size
    with open(log, "a") as handle:
        handle.write("loading\nno space left\n")
    assert why(1, log, since).startswith("exit code 1: no space left")


def test_a_long_log_is_read_at_its_end(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text(f"law: error: early\n{'x' * TAIL}\nValueError: {'y' * 9999}\n{'z' * 9000}\n")
    told = why(1, log)
    assert told.startswith("exit code 1: ValueError: yyy")
    assert len(told) < LONGEST + 200


def test_every_signal_has_a_name(tmp_path):
    assert (
        why(-signal.SIGKILL, None) == "killed by SIGKILL; the machine may have been out of memory"
    )
    assert why(-signal.SIGSEGV, tmp_path / "log.txt").startswith("killed by SIGSEGV (")
    assert why(-40, None) == "killed by signal 40"


def test_what_went_to_our_own_stderr_is_not_quoted():
    assert why(3, None) == "exit code 3; what it printed stands above"
    assert why(0, None) == ""
