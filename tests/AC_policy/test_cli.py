"""`law policy`: what it prints, what it writes, how it refuses."""

import json

import pytest

TABLE = """representation,quantity,benchmark,value,unit,protocol
a,C_pck,spair71k,10,percent,mine
b,C_pck,spair71k,20,percent,mine
c,C_pck,spair71k,30,percent,mine
a,A_cosine,MME,0.4,fraction,mine
b,A_cosine,MME,0.7,fraction,mine
c,A_cosine,MME,0.5,fraction,mine
a,performance,MME,1200,points,mine
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(TABLE)
    return path


def test_fit_reproduces_table_3_in_json(law, tmp_path):
    code, out, _ = law("policy", "fit", "--draws", 50, "--json", tmp_path / "fit.json")
    answer = json.loads((tmp_path / "fit.json").read_text())
    assert code == 0
    assert "published/table5" in out
    assert answer["groups"]["vision"]["AC_degree2"]["r2"] == pytest.approx(0.9572, abs=0.001)
    assert answer["groups"]["ocr"]["AC_degree2"]["r2_loo"] == pytest.approx(0.536, abs=0.005)
    entry = answer["benchmarks"]["mmbench_en_dev"]["AC_degree2"]
    assert set(entry) >= {"r2", "r2_loo", "null_p95"}
    assert answer["scale"] == "candidates"


def test_scale_is_recorded_and_does_not_move_a_full_rank_fit(law, tmp_path):
    for scale in ("candidates", "finetuned"):
        law("policy", "fit", "--draws", 20, "--scale", scale, "--json", tmp_path / f"{scale}.json")
    one, other = (
        json.loads((tmp_path / f"{scale}.json").read_text())
        for scale in ("candidates", "finetuned")
    )
    assert (one["scale"], other["scale"]) == ("candidates", "finetuned")
    assert one["groups"]["ocr"]["AC_degree2"]["r2"] == pytest.approx(
        other["groups"]["ocr"]["AC_degree2"]["r2"], abs=1e-9
    )


@pytest.mark.parametrize("policy", ["paper", "random", "bayes"])
def test_backtest_prints_and_writes(law, tmp_path, policy):
    code, out, _ = law(
        "policy", "backtest", "--policy", policy, "--trials", 30, "--json", tmp_path / "b.json"
    )
    answer = json.loads((tmp_path / "b.json").read_text())
    assert code == 0
    assert f"policy {policy}" in out
    assert "A+C" in out
    assert ("Table 1" in out) is (policy != "bayes")
    assert len(answer["benchmarks"]) == 8
    assert len(answer["mean"]["recall_at_3"]) == 14


def test_recommend_prints_trust_first(law, tmp_path, table):
    code, out, _ = law(
        "policy", "recommend", "--table", table, "--benchmark", "MME", "--cost", "llava",
        "--json", tmp_path / "r.json",
    )  # fmt: skip
    answer = json.loads((tmp_path / "r.json").read_text())
    assert code == 0
    assert out.index("not testable yet") < out.index("representation")
    assert answer["trust"]["verdict"] == "not testable yet"
    assert answer["next"] in out
    assert answer["savings"]["note"] in out
    assert answer["k"] == 1


def test_several_tables_after_one_flag_or_several(law, tmp_path, table):
    other = tmp_path / "more.csv"
    other.write_text(
        "representation,quantity,benchmark,value,unit,protocol\nb,performance,MME,1400,points,mine\n"
    )
    shown = []
    for flags in (["--table", table, other], ["--table", table, "--table", other]):
        code, out, _ = law("policy", "recommend", *flags, "--benchmark", "MME")
        assert code == 0
        shown.append(out)
    assert shown[0] == shown[1]
    assert "MME: 2 of 3 finetuned" in shown[0]


def test_replay_ends_with_a_stop(law):
    code, out, _ = law("policy", "recommend", "--benchmark", "VizWiz", "--replay")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("  run ")]
    assert lines[0] == "  run 0: nothing yet"
    assert lines[-1].endswith("; stop")


def test_constants_come_from_yaml(law, tmp_path):
    path = tmp_path / "constants.yaml"
    path.write_text("tolerance: 5e-2\nridge: 0.1\n")
    law(
        "policy",
        "backtest",
        "--policy",
        "bayes",
        "--constants",
        path,
        "--json",
        tmp_path / "b.json",
    )
    answer = json.loads((tmp_path / "b.json").read_text())
    assert answer["constants"]["tolerance"] == 0.05
    assert answer["constants"]["ridge"] == 0.1
    path.write_text("scale_range: [3, 2]\n")
    code, _, err = law("policy", "backtest", "--policy", "bayes", "--constants", path)
    assert code == 2
    assert "scale_range is (3.0, 2.0); expected two growing numbers" in err
    path.write_text("tolerence: 5e-2\n")
    code, _, err = law("policy", "backtest", "--policy", "bayes", "--constants", path)
    assert code == 2
    assert "did you mean 'tolerance'" in err


def test_the_shipped_constants_are_the_defaults():
    from pathlib import Path

    from AC_policy.policies import BayesOptions
    from llava.config import load

    root = Path(__file__).parents[2]
    assert load(BayesOptions, root / "configs/policies/bayes.yaml") == BayesOptions()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["recommend", "--benchmark", "MMBnech"], 2, "did you mean 'MMBench'"),
        (["recommend"], 2, "--benchmark"),
        (["backtest", "--policy", "bayse"], 2, "did you mean 'bayes'"),
        (["backtest", "--policy", "paper", "--trials", "-1"], 2, "--trials"),
        (["backtest", "--policy", "paper", "--noise-band", "3"], 2, "--noise-band"),
        (["fit", "--draws", "3"], 2, "--draws"),
        (["fit", "--scale", "candidate"], 2, "did you mean 'candidates'"),
        (["fit", "--a", "nll"], 1, "no row of quantity 'A_nll'"),
        (["fit", "--a", "cosin"], 2, "did you mean 'cosine'"),
        (["fit", "--table", "nowhere.csv"], 1, "no such table"),
        (["fit", "--protocol", "C_pck"], 2, "QUANTITY=NAME"),
        (["fit", "--protocol", "C_pkc=x"], 2, "did you mean 'C_pck'"),
        (["fit", "--protocol", "C_pck=published/table4"], 2, "did you mean 'published/table5'"),
        (["recommend", "--benchmark", "MME", "--tolerance", "7"], 2, "tolerance is 7"),
        (["recommend", "--benchmark", "MME", "--cost", "lava"], 2, "did you mean 'llava'"),
    ],
)
def test_bad_usage(law, argv, code, message):
    got, out, err = law("policy", *argv)
    assert got == code
    assert message in err
    assert out == ""


def test_unwritable_json_says_so(law, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = law("policy", "fit", "--draws", 20, "--json", tmp_path / "file" / "fit.json")
    assert code == 1
    assert "cannot be written" in err


def test_outputs_that_cannot_be_written_end_before_the_work(law, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("the work began")

    monkeypatch.setattr("AC_policy.commands.sensitivity.read_study", never)
    monkeypatch.setattr("AC_policy.report.read_study", never)
    for argv in (["policy", "sensitivity", "--json", tmp_path], ["report", "--out", tmp_path]):
        code, _, err = law(*argv)
        assert code == 1
        assert "is a folder" in err


def test_own_table_joins_or_replaces_the_papers(law, tmp_path, table):
    code, _, err = law("policy", "fit", "--table", table)
    assert code == 1
    assert "at least 3 finetuned" in err
    table.write_text(table.read_text().replace("mine", "published/table5"))
    table.write_text(
        table.read_text().replace("points,published/table5", "points,published/table4")
    )
    code, _, _ = law("policy", "fit", "--table", table, "--paper", "join", "--draws", 20,
                     "--json", tmp_path / "fit.json")  # fmt: skip
    assert code == 0
    assert json.loads((tmp_path / "fit.json").read_text())["rows"]["mme"] == 14
