"""The report's sections on a sweep: what failed first, what was asked, what it cost."""

import json
import re
from html import unescape

import pytest
from made_table import names, rows, write

from AC_policy.report import sweep, sweep_section
from llava.__main__ import main
from llava.errors import UsageError

GIB = 2**30


def words(html: str) -> str:
    """The text of a page."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def step(kind, representation=None, state="done", seconds=None, **more):
    """A step as `law run` writes it."""
    name = f"{kind} {representation}" if representation else kind
    return {
        "name": name,
        "kind": kind,
        "representation": representation,
        "state": state,
        "seconds": seconds,
        "gpu_hours": 0.0,
        "gpus": 0,
        "peak_memory": GIB,
        "peak_gpu_memory": None,
        "started": "2026-01-01T00:00:00+00:00",
        "error": None,
    } | more


def summary(candidates=4, finetuned=2, **changes):
    """A sweep of which `finetuned` were finetuned: 100 s for all, 10 + 2 s, then 30 + 5 s each."""
    towers = names(candidates)
    steps = [step("prepare", seconds=100.0)]
    for name in towers:
        steps += [step("stage1", name, seconds=10.0), step("nll", name, seconds=2.0)]
    for name in towers[:finetuned]:
        steps += [step("stage2", name, seconds=30.0), step("evaluate", name, seconds=5.0)]
    steps.append(step("report", state="running"))
    counts = {}
    for entry in steps:
        counts[entry["state"]] = counts.get(entry["state"], 0) + 1
    rounds = [
        {
            "round": i + 1,
            "json": f"policy/{i + 1:03d}.json",
            "stage1": [],
            "stage2": [towers[i]] if i < finetuned else [],
            "stop": i == finetuned,
            "reason": "nothing is worth a run" if i == finetuned else "",
        }
        for i in range(finetuned + 1)
    ]
    totals = {"seconds": 200.0, "gpu_hours": 0.0, "steps": counts}
    return {
        "name": "small",
        "config": "small.yaml",
        "finished": False,
        "steps": steps,
        "totals": totals,
        "rounds": rounds,
        "plan": None,
    } | changes


def proposal(k):
    """What the policy said after k runs."""
    known = {
        "next": None,
        "stop": k == 2,
        "expected_regret": 0.3 / (k + 1),
        "trust": "not testable yet",
        "take": names(4)[k - 1] if k else None,
        "k": k,
        "n": 4,
    }
    return {
        "stage1": [],
        "stage2": [] if k == 2 else [names(4)[k]],
        "stop": k == 2,
        "reason": "nothing is worth a run",
        "finetuned": names(4)[:k],
        "benchmarks": {"lawful": known},
    }


def put(folder, value, proposals=3):
    """summary.json with its proposals, in a folder."""
    (folder / "policy").mkdir(parents=True)
    for k in range(proposals):
        (folder / "policy" / f"{k + 1:03d}.json").write_text(json.dumps(proposal(k)))
    (folder / "summary.json").write_text(json.dumps(value))
    return folder / "summary.json"


def test_costs_by_hand(tmp_path):
    """Two of four finetuned: 100 + 4 x 12 + 2 x 35 s; all of them, 2 x 35 s more."""
    found = sweep.read(put(tmp_path / "run", summary()))
    text = words(sweep_section.section(found, candidates=4))
    assert "2 of 4 representations were finetuned, for 3.63 min" in text  # 218 s
    assert "would have cost about 4.8 min" in text  # 288 s
    assert "24 % was spared" in text
    assert "stage1 4 40 s 1.00 GiB" in text
    assert "stage2 2 60 s 1.00 GiB" in text
    assert "GPU" not in text


def test_costs_of_candidates_without_stage1(tmp_path):
    """Twenty candidates of which four had stage 1: the others would have needed that, too."""
    found = sweep.read(put(tmp_path / "run", summary()))
    text = words(sweep_section.section(found, candidates=20))
    assert "would have cost about 17.3 min" in text  # 218 + 16 x 12 + 18 x 35 = 1,040 s


def test_gpu_hours_where_there_are_some(tmp_path):
    """Then they are what is counted, and the GPU's memory is shown."""
    value = summary()
    for entry in value["steps"]:
        if entry["kind"] == "stage2":
            entry |= {"gpu_hours": 8.0, "gpus": 8, "peak_gpu_memory": 70 * GIB}
    found = sweep.read(put(tmp_path / "run", value))
    text = words(sweep_section.section(found, candidates=4))
    assert "for 16.0 GPU hours" in text
    assert "about 32.0 GPU hours" in text
    assert "stage2 2 60 s 16.00 1.00 GiB 70.00 GiB" in text


def test_plan_beside_it(tmp_path):
    """Both ways as the plan counted them; what else a plan says is passed over."""
    saving = {
        "runs": 5.1,
        "all_stage1": 10.0,
        "all_stage2": 90.0,
        "all_evaluate": 20.0,
        "scores": 3.0,
        "stage1_runs": 4,
        "stage1": 10.0,
        "stage2": 36.0,
        "evaluate": 8.0,
        "further": 11.0,
    }
    plan = {"candidates": 13, "cost_model": "flops", "gpu": "A100-80GB", "saving": saving}
    found = sweep.read(put(tmp_path / "run", summary(plan=plan | {"notes": []})))
    text = words(sweep_section.section(found, candidates=4))
    assert "counted 120 GPU hours for finetuning all 13, and 57 for the policy's way" in text
    assert "with 5.1 runs (flops on A100-80GB)" in text
    saving["partial"] = True  # hours were missing that nobody knew
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary(plan=plan)))
    found = sweep.read(tmp_path / "run" / "summary.json")
    assert "The plan" not in words(sweep_section.section(found, candidates=4))
    del saving["scores"]
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary(plan=plan)))
    with pytest.raises(UsageError, match=r"plan\.saving\.scores: this key is required"):
        sweep.read(tmp_path / "run" / "summary.json")


def test_rounds(tmp_path):
    """What was asked for, what was known; a file that is gone is said."""
    path = put(tmp_path / "run", summary(), proposals=3)
    (path.parent / "policy" / "002.json").unlink()
    text = words(sweep_section.section(sweep.read(path), candidates=4))
    assert "The policy was asked 3 times; 2 were finetuned. It stopped: nothing is worth" in text
    assert "1 0 one lawful not testable yet - 30.0 %" in text
    assert "2 - two - - - -" in text
    assert "3 2 stop lawful not testable yet two 10.0 %" in text
    assert "policy/002.json is not there" in text
    assert "stage 1" not in text.split("What it cost")[0]


def test_without_policy(tmp_path):
    """Everything was run."""
    found = sweep.read(put(tmp_path / "run", summary(finetuned=4, rounds=[])))
    text = words(sweep_section.section(found, candidates=4))
    assert "The policy was not asked" in text
    assert "spared" not in text
    text = words(sweep_section.section(found, candidates=4, replayed=3))
    # 100 + 4 x (12 + 35) = 288 s; one run of stage 2 and its benchmarks less
    assert "Everything was finetuned, for 4.8 min." in text
    assert "stops after 3 of 4 runs, and spares 35 s of stage 2 and benchmarks: 12 %" in text


def test_what_failed_comes_with_its_reason(tmp_path):
    """Failed, blocked, left out, in that order; what is still to come."""
    value = summary()
    value["steps"] += [
        step("pictures", state="left out", error="scikit-image is not installed"),
        step("evaluate", "three", "blocked", error="stage2 three failed"),
        step("stage2", "three", "failed", 1.0, error="exit code 1: <b>out of memory</b>\nmore"),
        step("stage2", "four", "waiting"),
    ]
    found = sweep.read(put(tmp_path / "run", value))
    html = sweep_section.problems(found)
    text = words(html)
    assert "1 failed, 1 blocked, 1 left out" in text
    assert text.index("stage2 three failed exit code 1") < text.index("evaluate three blocked")
    assert text.index("evaluate three blocked") < text.index("pictures left out scikit-image")
    assert "&lt;b&gt;" in html
    assert "more" not in text.replace("more,", "")
    assert "1 steps were still to come" in text


def test_nothing_failed(tmp_path):
    """Then nothing is said; the report itself is always running while it is made."""
    assert sweep_section.problems(sweep.read(put(tmp_path / "run", summary()))) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("steps"), "steps: this key is required"),
        (lambda s: s.update(finished="yes"), "finished: expected true or false, got 'yes'"),
        (lambda s: s["steps"][1].pop("kind"), r"steps\[1\].kind: this key is required"),
        (lambda s: s["steps"][0].update(seconds="1"), r"steps\[0\].seconds: expected a number"),
        (lambda s: s["steps"][0].update(state="dnoe"), r"steps\[0\].state: .*done"),
        (lambda s: s["rounds"][2].update(stage2="x"), r"rounds\[2\].stage2: expected a list"),
        (lambda s: s.update(stpes=[]), "unknown key .stpes.*steps"),
    ],
)
def test_another_file_is_refused(tmp_path, change, said):
    """With its name, the key and what was expected."""
    value = summary()
    change(value)
    path = put(tmp_path / "run", value)
    with pytest.raises(UsageError, match=rf"(?s)summary\.json: {said}.*`law run` writes"):
        sweep.read(path)


def test_another_proposal_is_refused(tmp_path):
    """Of a round whose file is there."""
    path = put(tmp_path / "run", summary())
    (path.parent / "policy" / "001.json").write_text('{"stage1": []}')
    with pytest.raises(UsageError, match=r"001\.json: stage2: this key is required"):
        sweep.read(path)
    (path.parent / "policy" / "001.json").write_text("{")
    with pytest.raises(UsageError, match=r"001\.json: cannot be read as JSON"):
        sweep.read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        sweep.read(tmp_path / "none.json")


@pytest.mark.slow
@pytest.mark.parametrize("finetuned", [0, 3])
def test_page_of_a_small_sweep(tmp_path, finetuned, capsys):
    """Three representations and one benchmark, all or none of them finetuned, without a prior."""
    lines = rows(3, ("lawful",), finetuned)
    table = write(tmp_path / "t.csv", lines)
    path = put(tmp_path / "run", summary(3, finetuned, rounds=[]))
    out = tmp_path / "r.html"
    flags = ["--table", str(table), "--sweep", str(path), "--paper", "off", "--trials", "5"]
    main(["report", *flags, "--out", str(out)])
    text = words(out.read_text())
    assert "What was measured" in text
    assert "What it cost" in text
    assert "not to be said" in text
    if finetuned:
        assert "lawful is not ranked: the law's prior needs" in text
        assert "Too few rows: 3 finetuned" in text
    else:
        assert "Nothing can be ranked" in text
    assert "GPU hours spared" not in text


@pytest.mark.slow
def test_page_leaves_out_a_benchmark_aloud(tmp_path, capsys):
    """One without A: the other is ranked all the same; without a sweep it is an error."""
    lines = [row for row in rows(9) if (row[1], row[2]) != ("A_cosine", "random")]
    table = write(tmp_path / "t.csv", lines)
    path = put(tmp_path / "run", summary())
    flags = ["--table", str(table), "--trials", "5", "--out", str(tmp_path / "r.html")]
    main(["report", *flags, "--sweep", str(path)])
    text = words((tmp_path / "r.html").read_text())
    assert "Left out: random: no A cosine was measured for it." in text
    assert "9 candidates on 1 benchmark," in text
    assert "left out of the report: random" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["report", *flags])
    assert ended.value.code
