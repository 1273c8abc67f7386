"""The `law` command: quick help, exit codes, results on stdout and everything else on stderr."""

import ast
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

import llava.__main__ as cli
from llava import __version__
from llava.errors import LawError, MissingPackageError, TableError, UsageError

HEAVY = ("numpy", "torch", "yaml", "sklearn", "scipy", "matplotlib", "transformers", "tqdm")
HELP_SECONDS = 0.5
"""What the design promises for `law --help`."""


def law(*arguments: str, **options) -> subprocess.CompletedProcess:
    """`law` in a process of its own."""
    command = [sys.executable, "-m", "llava", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def command(monkeypatch):
    """Makes `law boom` run a function."""

    def install(function):
        module = ModuleType("law_command_for_a_test")
        module.main = function
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "boom", cli.Command(module.__name__, "for a test"))

    return install


def exit_code(argv: list[str]) -> int:
    """What `law argv` exits with."""
    try:
        cli.main(argv)
    except SystemExit as exit_:
        return exit_.code
    return 0


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help(flag, capsys):
    """Every command with its line, on stdout, exit code 0."""
    assert exit_code([flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name, entry in cli.COMMANDS.items():
        assert any(
            line.split()[:1] == [name] and line.endswith(entry.help) for line in out.splitlines()
        )
    assert max(map(len, out.splitlines())) <= 100


def test_no_command(capsys):
    """`law` alone is bad usage and shows the help."""
    assert exit_code([]) == 2
    assert "usage: law COMMAND" in "".join(capsys.readouterr())


def test_version(capsys):
    """The version that is installed."""
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out == f"law {__version__}\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("doctr", "unknown command 'doctr'; did you mean 'doctor'?"),
        ("Policy", "did you mean 'policy'?"),
        ("zzzz", "known: towers, features"),
        ("", "unknown command ''"),
        ("--verbose", "unknown command '--verbose'"),
    ],
)
def test_unknown_command(name, message, capsys):
    """Exit code 2 with the nearest command, on stderr."""
    assert exit_code([name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("law: ")
    assert message in err


@pytest.mark.parametrize(
    ("error", "code"),
    [(LawError, 1), (TableError, 1), (MissingPackageError, 1), (UsageError, 2)],
)
def test_errors_become_exit_codes(command, capsys, error, code):
    """One line on stderr, no traceback; what was printed before stays on stdout."""

    def fail(_):
        print("a result")
        raise error("what was wrong")

    command(fail)
    assert exit_code(["boom"]) == code
    assert capsys.readouterr() == ("a result\n", "law: error: what was wrong\n")


def test_other_errors_keep_their_traceback(command):
    """What nobody foresaw is a bug and is not made to look like bad usage."""

    def fail(_):
        raise ZeroDivisionError

    command(fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["boom"])


def test_interrupt(command, capsys):
    """Ctrl-C ends with 130, as a shell has it."""

    def fail(_):
        raise KeyboardInterrupt

    command(fail)
    assert exit_code(["boom"]) == 130
    assert capsys.readouterr().err == "law: interrupted\n"


def test_arguments_are_passed_on(command):
    """All after the command's name, `--help` included."""
    seen = []
    command(seen.append)
    assert exit_code(["boom", "--help", "a b"]) == 0
    assert seen == [["--help", "a b"]]


def test_arguments_of_the_shell(command, monkeypatch):
    """Without a list, those of the process."""
    seen = []
    command(seen.append)
    monkeypatch.setattr(sys, "argv", ["law", "boom", "x"])
    cli.main()
    assert seen == [["x"]]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_exists(name):
    """Its module is there, has a docstring and `main(argv)`, and need not be imported for that."""
    spec = importlib.util.find_spec(cli.COMMANDS[name].module)
    assert spec is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    mains = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main"]
    assert len(mains) == 1
    assert [argument.arg for argument in mains[0].args.args] == ["argv"]
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    """`law COMMAND --help` names itself, on stdout, exit code 0."""
    assert exit_code([name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: law {name}")
    assert err == ""


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_refuses_an_unknown_flag(name, capsys):
    """Exit code 2 and nothing on stdout."""
    assert exit_code([name, "--no-such-flag"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"law {name}" in err


def test_help_in_a_process():
    """stdout, stderr and the code as a shell sees them."""
    done = law("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: law COMMAND")
    done = law("doctr")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'doctor'?" in done.stderr


def test_help_is_quick():
    """Best of three, interpreter included: a busy machine makes a run slower, never quicker."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert law("--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < HELP_SECONDS


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_imports_nothing_heavy(flag):
    """Not even tries to: an import that fails would be slow where the package is there."""
    script = f"""
import sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY}:
            sys.stderr.write(name + "\\n")

sys.meta_path.insert(0, Watch())
from llava.__main__ import main
try:
    main(["{flag}"])
except SystemExit:
    pass
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--no-import"]])
def test_a_closed_pipe_is_no_error(arguments, unbuffered):
    """`law ... | head -1`: the reader has what it wanted, nobody wants a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "llava", *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(writing)
    assert done.stderr == ""


def test_a_missing_package_is_told(capsys, monkeypatch):
    """A command whose package is not installed says so and what to type, without a traceback."""
    name = "law_package_that_is_not_there"

    def import_module(_):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(cli.importlib, "import_module", import_module)
    assert exit_code(["policy"]) == 1
    err = capsys.readouterr().err
    assert name in err
    assert "law doctor" in err
