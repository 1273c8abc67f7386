"""`law run`: steps in order, a log of each, and a clear end where one fails."""

import json

import pytest

from llava.config import load, read_yaml
from llava.errors import ConfigError, LawError
from llava.sweep.plan import RunConfig, load_run
from llava.sweep.run import environment, main, run

QUICK = """
name: quick
run_dir: {folder}
steps:
  - name: version
    command: "--version"
  - name: fit
    command: policy fit --draws 20 --json '{{run_dir}}/fit.json'
    outputs: [fit.json]
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(QUICK.format(folder=tmp_path / "a folder"))
    return path


def test_a_run_leaves_config_environment_log_and_outputs(config, tmp_path, capfd):
    main([str(config)])
    folder = tmp_path / "a folder"
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == ["version", "fit"]
    assert entries[1]["command"][:3] == ["law", "policy", "fit"]
    assert len(entries[1]["outputs"]["fit.json"]) == 64
    assert entries[1]["seconds"] > 0
    assert load(RunConfig, folder / "config.yaml") == load_run(config)
    assert json.loads((folder / "environment.json").read_text())["packages"]["numpy"]
    assert (folder / "version.txt").read_text().startswith("law ")
    assert "R²" in (folder / "fit.txt").read_text()
    assert "quick: 2 of 2 steps done" in capfd.readouterr().out


def test_the_plan_runs_nothing(config, tmp_path, capsys):
    main([str(config), "--plan", "--run-dir", str(tmp_path / "elsewhere")])
    assert f"--json {tmp_path / 'elsewhere'}/fit.json" in capsys.readouterr().out
    assert not (tmp_path / "elsewhere").exists()


def test_a_failing_step_ends_the_run(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: x\nrun_dir: {tmp_path / 'r'}\nsteps:\n"
        "  - {name: bad, command: policy fit --a nll}\n  - {name: never, command: --version}\n"
    )
    with pytest.raises(LawError, match="step 'bad' failed: exit code 1"):
        run(load_run(path))
    entries = (tmp_path / "r" / "log.jsonl").read_text().splitlines()
    assert len(entries) == 1
    assert json.loads(entries[0])["exit_code"] == 1


def test_a_step_that_leaves_no_output_fails(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: x\nrun_dir: {tmp_path / 'r'}\nsteps:\n"
        "  - {name: lazy, command: --version, outputs: [result.json]}\n"
    )
    with pytest.raises(LawError, match=r"left no .*result\.json"):
        run(load_run(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nrun_dir: r\nsteps: []\n", "at least one step"),
        ("name: x\nrun_dir: r\nsteps: [{name: a, command: b, output: [c]}]\n", "'outputs'"),
        ("name: x\nrun_dir: r\nsteps: [{name: a, command: b}, {name: a, command: b}]\n", "two are"),
        ("name: x\nrun_dir: r\nsteps: [{name: ../a, command: b}]\n", "letters, digits"),
        ("name: x\nrun_dir: r\nsteps: [{name: a, command: b, outputs: [../c]}]\n", "run folder"),
        ("name: x\nrun_dir: r\nsteps: [{name: a, command: b, outputs: [/c]}]\n", "run folder"),
        ("name: x\nsteps: [{name: a, command: b}]\n", "run_dir: this key is required"),
        ("name: x\nrun_dir: r\nsteps: [{name: a, command: 3}]\n", r"steps\[0\].command"),
    ],
)
def test_bad_runs_are_refused_before_anything_starts(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_run(path)


def test_environment_names_versions_and_commit():
    found = environment()
    assert found["packages"]["PyYAML"]
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 40


def test_every_shipped_run_parses_and_names_real_commands():
    from pathlib import Path

    from llava.__main__ import COMMANDS

    root = Path(__file__).parents[3]
    runs = [p for p in sorted((root / "configs").glob("*.yaml")) if "steps" in read_yaml(p)]
    assert root / "configs/quickstart.yaml" in runs
    for path in runs:
        for step in load_run(path).steps:
            assert step.arguments(Path("r"))[0] in COMMANDS


def test_a_step_without_its_package_is_left_out_aloud(tmp_path, capfd):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: x\nrun_dir: {tmp_path / 'r'}\nsteps:\n"
        "  - {name: lacks, needs: [numpy, no-such-package], command: --version, outputs: [a]}\n"
        "  - {name: has, needs: [numpy], command: --version}\n"
    )
    main([str(path)])
    shown = capfd.readouterr()
    assert "step lacks is left out: no-such-package is not installed" in shown.err
    assert "x: 1 of 2 steps done" in shown.out
    assert "left out: lacks, no-such-package is not installed" in shown.out
    first, second = (tmp_path / "r" / "log.jsonl").read_text().splitlines()
    assert json.loads(first) == {
        "step": "lacks",
        "left_out": "no-such-package is not installed",
    }
    assert json.loads(second)["exit_code"] == 0
