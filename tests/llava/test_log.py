"""Log lines: stderr only, rank zero only below a warning, progress that reads well in a file."""

import io
import logging
import sys

import pytest

from llava import log


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Whatever started the tests, each begins as rank 0 at the usual level."""
    for name in ("RANK", "SLURM_PROCID", "LAW_LOG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def fresh_root():
    """The `law` logger as in a new process; afterwards as it was, less what pytest had added."""
    root = logging.getLogger("law")
    ours = [handler for handler in root.handlers if isinstance(handler.formatter, log._Formatter)]
    level, propagate = root.level, root.propagate
    root.handlers[:] = []
    root.setLevel(logging.NOTSET)
    root.propagate = True
    yield root
    root.handlers[:] = ours
    root.setLevel(level)
    root.propagate = propagate


class Clock:
    """Stands in for the module `time`: every look at it moves it on by `step` seconds."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def monotonic(self):
        self.now += self.step
        return self.now


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"RANK": "3"}, 3),
        ({"SLURM_PROCID": "2"}, 2),
        ({"RANK": "1", "SLURM_PROCID": "2"}, 1),
        ({"RANK": "0", "SLURM_PROCID": "2"}, 0),
        ({"RANK": "", "SLURM_PROCID": "2"}, 2),
        ({"RANK": "", "SLURM_PROCID": ""}, 0),
    ],
)
def test_rank(monkeypatch, environment, rank):
    """torchrun and accelerate set RANK, srun alone SLURM_PROCID; torchrun inside srun wins."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert log.rank() == rank


def test_lines_go_to_stderr(capsys):
    """stdout belongs to results."""
    log.get_logger("x").info("%d of %s", 1, "two")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "law: 1 of two\n"


def test_warnings_say_so(capsys):
    """The level stands in the line from a warning on."""
    logger = log.get_logger("x")
    logger.warning("a")
    logger.error("b")
    assert capsys.readouterr().err == "law: warning: a\nlaw: error: b\n"


def test_other_ranks_only_warn(capsys, monkeypatch):
    """Eight processes print a line once; a warning of any rank passes and names its rank."""
    monkeypatch.setenv("RANK", "3")
    logger = log.get_logger("x")
    logger.info("quiet")
    logger.warning("loud")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "law [3]: warning: loud\n"


def test_rank_is_looked_up_at_each_line(capsys, monkeypatch):
    """A launcher may set the rank after the first import."""
    logger = log.get_logger("x")
    logger.info("a")
    monkeypatch.setenv("RANK", "1")
    logger.info("b")
    assert capsys.readouterr().err == "law: a\n"


def test_one_handler_for_all_loggers(capsys, fresh_root):
    """A line is printed once, however many loggers exist, and root loggers see nothing."""
    for name in ("x", "y", "x"):
        logger = log.get_logger(name)
    logger.info("once")
    assert len(fresh_root.handlers) == 1
    assert fresh_root.propagate is False
    assert capsys.readouterr().err == "law: once\n"


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("DEBUG", "dbg inf wrn"),
        ("debug", "dbg inf wrn"),
        ("INFO", "inf wrn"),
        (None, "inf wrn"),
        ("WARNING", "wrn"),
    ],
)
def test_level_from_the_environment(capsys, monkeypatch, level, shown):
    """`LAW_LOG` chooses, INFO is the default."""
    if level:
        monkeypatch.setenv("LAW_LOG", level)
    logger = log.get_logger("x")
    logger.debug("dbg")
    logger.info("inf")
    logger.warning("wrn")
    assert " ".join(line[-3:] for line in capsys.readouterr().err.splitlines()) == shown


@pytest.mark.parametrize("level", ["", "verbose", "10"])
def test_a_level_that_is_none_stops_no_command(monkeypatch, level):
    """A wrong `LAW_LOG` must not end every command with a traceback at its first import."""
    monkeypatch.setenv("LAW_LOG", level)
    assert log.get_logger("x").isEnabledFor(logging.WARNING)


def test_the_stream_is_the_stderr_of_the_moment(capsys, monkeypatch):
    """A stderr that is replaced after the first line gets the next one."""
    logger = log.get_logger("x")
    later = io.StringIO()
    monkeypatch.setattr(sys, "stderr", later)
    logger.info("here")
    assert later.getvalue() == "law: here\n"


def test_a_traceback_is_shown(capsys):
    """`logger.exception` keeps where it came from."""
    logger = log.get_logger("x")
    try:
        raise ValueError("the reason")
    except ValueError:
        logger.exception("failed")
    err = capsys.readouterr().err
    assert "law: error: failed" in err
    assert "ValueError: the reason" in err


@pytest.mark.parametrize("kind", ["list", "iterator", "terminal", "rank 1"])
def test_progress_yields_every_item_once(capsys, monkeypatch, kind):
    """In order, in each of the ways of showing it."""
    items = [3, 1, 2]
    if kind == "terminal":
        monkeypatch.setattr(sys, "stderr", Terminal())
    if kind == "rank 1":
        monkeypatch.setenv("RANK", "1")
    assert list(log.progress(iter(items) if kind == "iterator" else items, "work")) == items
    assert capsys.readouterr().out == ""


def test_progress_is_lazy():
    """An item is fetched when it is asked for, not before."""
    fetched = []
    work = log.progress((fetched.append(i) or i for i in range(5)), "work", total=5)
    assert next(work) == 0
    assert len(fetched) == 1


def test_progress_lines(capsys, monkeypatch):
    """What is done, of how many, since when, and an estimate from the pace so far."""
    monkeypatch.setattr(log, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(log, "time", Clock(10))
    assert list(log.progress("abcd", "work")) == list("abcd")
    out, err = capsys.readouterr()
    assert out == ""
    # The clock stands at 20 s after the start when one is done: 20 s each, three are left.
    assert err.splitlines() == [
        "law: work: 1 of 4, 20 s, about 60 s left",
        "law: work: 2 of 4, 30 s, about 30 s left",
        "law: work: 3 of 4, 40 s, about 13 s left",
    ]


def test_progress_lines_are_seldom(capsys, monkeypatch):
    """A line at most every LINE_SECONDS: a day-long log stays short."""
    monkeypatch.setattr(log, "LINE_SECONDS", 30.0)
    monkeypatch.setattr(log, "time", Clock(1))
    list(log.progress(range(100), "work"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert [line.split()[2] for line in lines] == ["29", "59", "89"]


def test_progress_without_a_total(capsys, monkeypatch):
    """An iterator has no length: no estimate is made up."""
    monkeypatch.setattr(log, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(log, "time", Clock(10))
    list(log.progress(iter("ab"), "work"))
    assert capsys.readouterr().err == "law: work: 1 of ?, 20 s\n"


def test_progress_with_a_total_given(capsys, monkeypatch):
    """`total` serves what has no length of its own."""
    monkeypatch.setattr(log, "LINE_SECONDS", 0.0)
    list(log.progress(iter("ab"), "work", total=2))
    assert "1 of 2" in capsys.readouterr().err


def test_progress_where_the_length_is_refused():
    """A loader over a stream has `__len__` and raises TypeError there."""

    class Stream:
        def __iter__(self):
            return iter("ab")

        def __len__(self):
            raise TypeError("object of type 'Stream' has no len()")

    assert list(log.progress(Stream(), "work")) == ["a", "b"]


def test_progress_is_silent_on_other_ranks(capsys, monkeypatch):
    """Only rank zero shows anything, on a terminal too."""
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setattr(log, "LINE_SECONDS", 0.0)
    list(log.progress(range(3), "work"))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(log.progress(range(3), "work"))
    assert sys.stderr.getvalue() == ""


def test_progress_bar_on_a_terminal(capsys, monkeypatch):
    """A bar with its name and its count, no lines."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(log, "LINE_SECONDS", 0.0)
    list(log.progress(iter("abc"), "work", total=3))
    shown = sys.stderr.getvalue()
    assert "\rwork: " in shown
    assert "3/3" in shown
    assert "law:" not in shown
    assert capsys.readouterr().out == ""


def test_no_bar_in_a_file(capsys):
    """Where stderr is no terminal, short work leaves no trace at all."""
    list(log.progress("abc", "work"))
    assert capsys.readouterr() == ("", "")
