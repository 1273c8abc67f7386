"""The real `law report` and `law policy propose` on what a sweep of stand-ins has left."""

import json
import re
from html import unescape

import pytest

from AC_policy.report import sweep as reader
from llava.__main__ import main


def test_a_page_of_a_sweep(guided, capsys):
    """One step of stage 2 failed: that comes first, and the rest is told."""
    done = guided.run(STUB_FAIL="train stage2/facebook--dinov2-large", STUB_ROUNDS="3")
    assert done.returncode == 1
    summary = guided.run_dir / "summary.json"
    told = json.loads(summary.read_text())
    assert told["rounds"]
    for one in told["rounds"]:  # the stub's proposals say only what the sweep needs
        proposal = guided.run_dir / one["json"]
        words = ["policy", "propose", "--table", str(proposal.with_suffix(".csv")), "--a", "nll"]
        main([*words, "--benchmark", "quiz", "exam", "--json", str(proposal)])
    found = reader.read(summary)
    assert len(found.proposals) == len(told["rounds"])
    assert [step.name for step in found.of_state("failed")] == ["stage2 facebook/dinov2-large"]
    page = guided.run_dir / "real.html"
    table = str(guided.run_dir / "results.csv")
    words = ["report", "--table", table, "--a", "nll", "--sweep", str(summary)]
    main([*words, "--out", str(page), "--trials", "5"])
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", page.read_text())).split())
    assert text.index("What failed or was left out") < text.index("finetune next")
    assert "stage2 facebook/dinov2-large failed exit code 1: law: error: the stub was" in text
    assert "evaluate facebook/dinov2-large blocked" in text
    assert "representations were finetuned" in text
    for title in ("What the policy asked for", "What it cost", "What was measured"):
        assert title in text


@pytest.mark.parametrize("finished", [True, False])
def test_a_summary_is_read_at_any_time(sweep, finished):
    """Also of a sweep that was only begun, and of one that nobody asked the policy in."""
    assert sweep.run(**({} if finished else {"STUB_FAIL": "prepare"})).returncode == int(
        not finished
    )
    found = reader.read(sweep.run_dir / "summary.json")
    assert found.finished == finished
    assert found.rounds == []
    assert bool(found.of_state("failed")) != finished
