"""`law run` on a list of steps: in order, each in the ledger, and a clear end where one fails."""

import hashlib
import json

import pytest

from llava.config import read_yaml
from llava.errors import ConfigError, LawError, UsageError
from llava.provenance import environment
from llava.sweep.plan import load_run
from llava.sweep.run import main, run

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
    entries = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["state"]) for entry in entries] == [
        ("version", "running"),
        ("version", "done"),
        ("fit", "running"),
        ("fit", "done"),
    ]
    size, _, digest = entries[3]["outputs"]["fit.json"]
    assert size == (folder / "fit.json").stat().st_size
    assert digest == hashlib.sha256((folder / "fit.json").read_bytes()).hexdigest()
    assert entries[3]["seconds"] > 0
    assert entries[3]["peak_memory"] > 10_000_000
    assert load_run(folder / "config.yaml") == load_run(config)
    assert json.loads((folder / "environment.json").read_text())["packages"]["numpy"]
    assert (folder / "steps/version/stdout.txt").read_text().startswith("law ")
    assert "R²" in (folder / "steps/fit/stdout.txt").read_text()
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
    with pytest.raises(LawError, match=r"(?s)bad: exit code 1; what .* not run because of it: nev"):
        run(load_run(path))
    told = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert [step["state"] for step in told["steps"]] == ["failed", "blocked"]


def test_a_step_that_names_what_it_waits_for_survives_others(tmp_path, capfd):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: x\nrun_dir: {tmp_path / 'r'}\nsteps:\n"
        "  - {name: bad, command: policy fit --a nll}\n"
        "  - {name: alone, command: --version, after: []}\n"
    )
    with pytest.raises(LawError, match="1 step failed"):
        run(load_run(path))
    assert "law 0" in capfd.readouterr().out


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
        ("name: x\nrun_dir: r\nsteps: [{name: a}]\n", "one of `command` and `script`"),
        ('name: x\nrun_dir: r\nsteps: [{name: a, command: "\'"}]\n', "No closing quotation"),
        (
            "name: x\nrun_dir: r\nsteps: [{name: one, command: b}, "
            "{name: a, command: b, after: [on]}]\n",
            "after: unknown step above 'on'; did you mean 'one'",
        ),
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
            assert step.words()[0] in COMMANDS


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
    lines = (tmp_path / "r" / "ledger.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} == {"has"}


def test_json_without_a_plan_of_a_sweep_is_refused(config, tmp_path):
    for words in (["--plan"], []):
        with pytest.raises(UsageError, match="give it with --plan and a sweep's YAML"):
            main([str(config), *words, "--json", str(tmp_path / "plan.json")])
    assert not (tmp_path / "a folder").exists()
