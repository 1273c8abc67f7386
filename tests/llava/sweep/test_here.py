"""GPUs of this machine: what is refused before anything runs, and what the summary says of them."""

import json

import pytest


@pytest.mark.parametrize("kind", ["stage2", "stage1", "evaluate"])
def test_too_few_gpus_are_seen_before_anything_runs(sweep, kind):
    sweep.change("gpus: 0}", f"gpus_per_step: {{{kind}: 3}}}}")
    refused = sweep.run(CUDA_VISIBLE_DEVICES="4,5")
    assert refused.returncode == 2
    assert f"{kind} takes 3 GPUs and 2 are here" in refused.stderr
    assert f"change launch.gpus_per_step.{kind} or launch.gpus" in refused.stderr
    assert sweep.commands() == []


def test_without_gpus_they_are_processes(sweep):
    sweep.change("gpus: 0}", "gpus: 0, gpus_per_step: {evaluate: 3}}")
    assert sweep.run().returncode == 0


def test_launchers_that_would_start_one_process_are_refused(sweep):
    sweep.change("gpus: 0}", "gpus: 0, launcher: accelerate, gpus_per_step: {stage1: 2}}")
    refused = sweep.run()
    assert refused.returncode == 2
    assert "accelerate starts one process where no GPU is, and stage1 takes 2" in refused.stderr


def test_the_summary_tells_the_gpus_that_steps_took(sweep):
    sweep.change("gpus: 0}", "gpus_per_step: {evaluate: 2}}")
    done = sweep.run(CUDA_VISIBLE_DEVICES="4,5,6")
    assert done.returncode == 0, done.stderr
    told = json.loads((sweep.run_dir / "summary.json").read_text())["steps"]
    taken = {step["kind"]: step["gpus"] for step in told}
    wanted = {"c-score": 0, "cosine": 0, "report": 0, "stage1": 1, "stage2": 1, "evaluate": 2}
    assert {kind: taken[kind] for kind in wanted} == wanted
    assert all((step["gpu_hours"] > 0) == (step["gpus"] > 0) for step in told)


def test_the_summary_tells_no_gpus_where_there_are_none(sweep):
    assert sweep.run().returncode == 0
    told = json.loads((sweep.run_dir / "summary.json").read_text())["steps"]
    assert {step["gpus"] for step in told} == {0}
