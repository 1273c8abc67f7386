"""The shipped tables against the paper's, and the paper's published figures from them."""

import csv
from pathlib import Path

import numpy as np
import plain
import pytest

from AC_policy.backtest import backtest
from AC_policy.law import fit_law
from AC_policy.paper import TABLES, paper_study, published_policy, published_r2
from AC_policy.policies import Setting

GOLDEN = Path(__file__).parents[1] / "golden" / "paper"

BENCHMARKS = {
    "MMBench": "mmbench_en_dev",
    "MME": "mme",
    "OKVQA": "ok_vqa_val2014",
    "SEED-Bench (Img)": "seedbench",
    "MMMU": "mmmu_val",
    "TextVQA": "textvqa_val",
    "VizWiz": "vizwiz_vqa_val",
    "ScienceQA (Img)": "scienceqa_img",
}
"""The law's eight, by the name in the paper."""
FURTHER = {
    "ScienceQA (Full)": "scienceqa_full",
    "ScienceQA": "scienceqa",
    "SEED-Bench": "seedbench:seed_all",
    "SEED-Bench (Video)": "seedbench:seed_video",
}
SETTINGS = {
    "CLIP@336": "openai/clip-vit-large-patch14-336",
    "CLIP@224": "openai/clip-vit-large-patch14",
    "OpenCLIP": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    "DINOv2": "facebook/dinov2-large",
    "SDim": "lambdalabs/sd-image-variations-diffusers",
    "SD1.5": "runwayml/stable-diffusion-v1-5",
    "SDXL": "stabilityai/stable-diffusion-xl-base-1.0",
    "DiT": "facebook/DiT-XL-2-512",
    "SD3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "SD2.1": "stabilityai/stable-diffusion-2-1",
    "SigLIP": "google/siglip-base-patch16-224",
    "C+D@224": "openai/clip-vit-large-patch14.facebook/dinov2-large",
    "C+D@336": "openai/clip-vit-large-patch14-336.facebook/dinov2-large",
}


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shipped(number):
    """(representation, quantity, benchmark, protocol) -> row, every row once."""
    found = {}
    for row in rows(TABLES[number]):
        key = (row["representation"], row["quantity"], row["benchmark"], row["protocol"])
        assert key not in found
        found[key] = row
    return found


@pytest.fixture(scope="module")
def law():
    return fit_law(paper_study(), draws=2000)


@pytest.fixture(scope="module")
def published():
    """The published policy over 10,000 trials; benchmark by the paper's name -> curves."""
    result = backtest(paper_study(), "paper", Setting(trials=10_000))
    return {name: result.benchmarks[task].curves for name, task in BENCHMARKS.items()}


@pytest.fixture(scope="module")
def bayes():
    return backtest(paper_study(), "bayes")


# ------------------------------------------------------------------------------ number by number


def test_table_4_number_by_number():
    table, seen = shipped(4), 0
    for row in rows(GOLDEN / "table4_benchmark_performance.csv"):
        setting = SETTINGS[row.pop("vision_representation")]
        for name, value in row.items():
            task = (BENCHMARKS | FURTHER)[name]
            ours = table[setting, "performance", task, "published/table4"]
            assert float(ours["value"]) == float(value)
            assert ours["unit"] == ("points" if name == "MME" else "percent")
            assert ours["higher_is_better"] == "true"
            seen += 1
    assert seen == len(table) == 13 * 12


def test_table_5_number_by_number():
    table, seen = shipped(5), 0
    for row in rows(GOLDEN / "table5_ac_scores.csv"):
        setting = SETTINGS[row.pop("vision_representation")]
        c = table[setting, "C_pck", "spair71k", "published/table5"]
        assert float(c["value"]) == float(row.pop("C_PCK@0.10"))
        assert c["unit"] == "percent"
        seen += 1
        for name, value in row.items():
            a = table[setting, "A_cosine", BENCHMARKS[name], "published/table5"]
            assert float(a["value"]) == float(value)
            assert (a["unit"], a["n"], a["higher_is_better"]) == ("fraction", "100", "true")
            seen += 1
    assert seen == len(table) == 13 * 9


def test_table_1_number_by_number():
    ours = published_policy()
    golden = rows(GOLDEN / "table1_policy.csv")
    names = BENCHMARKS | {"Random": "random", "Average": "average"}
    assert set(ours) == set(names.values())
    assert len(golden) == 10
    for row in golden:
        expected = float(row["finetunings"]), float(row["recall_at_3_percent"])
        assert ours[names[row["benchmark"]]] == expected


def test_table_2_number_by_number():
    table = shipped(2)
    golden = rows(GOLDEN / "table2_settings.csv")
    assert len(golden) == len(table) == 13
    for row in golden:
        setting = SETTINGS[row["vision_representation"]]
        ours = table[setting, "resolution", "", "published/table2"]
        assert float(ours["value"]) == float(row["resolution"])


def test_table_3_number_by_number():
    ours = published_r2()
    golden = rows(GOLDEN / "table3_r2.csv")
    assert len(ours) == 2 * len(golden) == 16
    for row in golden:
        scores = {"Random": "random", "A Score": "A", "C Score": "C", "AC Score": "AC"}
        degree = {"none": "linear", "polynomial": "degree2"}[row["transformation"]]
        key = f"{scores[row['fitting_data']]}_{degree}"
        assert ours[key, "vision"] == float(row["r2_vision_percent"])
        assert ours[key, "ocr"] == float(row["r2_ocr_percent"])


def test_the_study_holds_the_tables_raw_numbers():
    """A as it is, C as a fraction, performance in the paper's unit, benchmark by benchmark."""
    study = paper_study()
    performance = {
        row["vision_representation"]: row
        for row in rows(GOLDEN / "table4_benchmark_performance.csv")
    }
    scores = {row["vision_representation"]: row for row in rows(GOLDEN / "table5_ac_scores.csv")}
    assert list(study.tasks) == list(BENCHMARKS.values())
    for name, benchmark in BENCHMARKS.items():
        task = study.tasks[benchmark]
        assert task.finished
        assert len(task.representations) == 13
        for setting, representation in SETTINGS.items():
            i = task.representations.index(representation)
            assert task.performance[i] == float(performance[setting][name])
            assert task.scores[i, 0] == float(scores[setting][name])
            c = float(scores[setting]["C_PCK@0.10"]) / 100
            assert task.scores[i, 1] == pytest.approx(c, rel=1e-15)
        np.testing.assert_allclose(task.points(), plain.unit_square(task.scores), atol=1e-15)


# ----------------------------------------------------------------------------------- the law


@pytest.mark.parametrize("scores", ["A", "C", "AC"])
@pytest.mark.parametrize("degree", ["linear", "degree2"])
@pytest.mark.parametrize("group", ["vision", "ocr"])
def test_table_3_within_a_tenth_of_a_point(law, scores, degree, group):
    """The paper prints two decimals, from raw scores that it prints with three."""
    key = f"{scores}_{degree}"
    assert 100 * law.groups[group][key].r2 == pytest.approx(published_r2()[key, group], abs=0.1)


@pytest.mark.parametrize("degree", ["linear", "degree2"])
@pytest.mark.parametrize("group", ["vision", "ocr"])
def test_table_3s_random_rows(law, degree, group):
    """The published ones are single draws; means over draws lie within their scatter."""
    key = f"random_{degree}"
    assert 100 * law.groups[group][key].r2 == pytest.approx(published_r2()[key, group], abs=10)


def test_left_out_r2_of_the_groups(law):
    """Three digits were written down."""
    expected = {"AC": (0.848, 0.536), "A": (0.654, 0.633), "C": (0.336, -0.133)}
    for scores, pair in expected.items():
        found = [law.groups[group][f"{scores}_degree2"].r2_loo for group in ("vision", "ocr")]
        assert found == pytest.approx(pair, abs=0.005)


def test_left_out_r2_of_every_benchmark(law):
    expected = {
        "MMBench": 0.895,
        "MME": 0.918,
        "OKVQA": 0.834,
        "SEED-Bench (Img)": 0.747,
        "MMMU": 0.433,
        "TextVQA": 0.747,
        "VizWiz": 0.346,
        "ScienceQA (Img)": 0.616,
    }
    for name, value in expected.items():
        # Three digits were written down.
        found = law.benchmarks[BENCHMARKS[name]]["AC_degree2"].r2_loo
        assert found == pytest.approx(value, abs=0.001)


# ----------------------------------------------------------------------------- published policy


def test_table_1s_first_hits(published):
    """Table 1 rests on 1,000 runs (s.e. up to 1.3 points) of code that is not published."""
    differences = []
    for name, task in BENCHMARKS.items():
        k, percent = published_policy()[task]
        found = 100 * published[name]["first_hit"][int(k)]
        differences.append(found - percent)
        assert abs(differences[-1]) < 5, name
    assert abs(sum(differences) / 8) < 1.5


def test_recall_at_table_1s_k(published):
    """What a user gets who stops at k', against a separate measurement over 5,000 trials."""
    expected = {
        "MMBench": 78.7,
        "MME": 64.2,
        "OKVQA": 88.9,
        "SEED-Bench (Img)": 85.8,
        "MMMU": 83.6,
        "TextVQA": 39.2,
        "VizWiz": 63.6,
        "ScienceQA (Img)": 82.7,
    }
    for name, percent in expected.items():
        k, _ = published_policy()[BENCHMARKS[name]]
        # Standard errors of .7 and .5 points: 2 points are 2.3 of both together.
        found = 100 * published[name]["recall_at_3"][int(k)]
        assert found == pytest.approx(percent, abs=2), name


def test_means_over_benchmarks_for_two_to_eight_runs(published):
    hit = np.mean([curves["first_hit"] for curves in published.values()], axis=0)
    fixed = np.mean([curves["recall_at_3"] for curves in published.values()], axis=0)
    # Two digits were written down, of means over eight benchmarks with s.e. below .003.
    np.testing.assert_allclose(hit[2:9], [0.54, 0.73, 0.85, 0.91, 0.93, 0.95, 0.96], atol=0.02)
    np.testing.assert_allclose(fixed[2:9], [0.53, 0.59, 0.67, 0.63, 0.62, 0.64, 0.64], atol=0.02)
    assert (fixed[2:13] < 0.9).all()


def test_the_first_hit_is_not_what_a_user_gets(published):
    """At Table 1's k' the best is in the predicted top 3 far less often than it has ever been."""
    gaps = []
    for name, task in BENCHMARKS.items():
        k = int(published_policy()[task][0])
        gaps.append(published[name]["first_hit"][k] - published[name]["recall_at_3"][k])
        assert gaps[-1] >= -1e-12
    assert np.mean(gaps) > 0.1


# --------------------------------------------------------------------------------------- bayes


def test_bayes_reaches_its_figures(bayes):
    """Recall of the best in the top 3 over eight benchmarks: 5, 7 and 8 of them."""
    recall = bayes.mean("recall_at_3")
    assert recall[3] >= 0.62
    assert recall[4] >= 0.87
    assert recall[5] == 1
    assert bayes.mean("regret_top3")[4] <= 0.009


def test_before_any_run_bayes_ranks_by_the_transferred_law(bayes):
    """Half of the benchmarks' best in the top 3, with regrets up to .063."""
    transferred = bayes.baselines["transferred law"].values()
    assert np.mean([row["recall_at_3"] for row in transferred]) == 0.5
    assert bayes.mean("recall_at_3")[0] == 0.5
    largest = max(row["regret_top3"] for row in transferred)
    assert largest == pytest.approx(0.063, abs=0.0005)  # three digits were written down


def test_baselines_without_finetuning(bayes):
    recall = {
        name: sum(row["recall_at_3"] for row in found.values())
        for name, found in bayes.baselines.items()
    }
    assert recall["A+C"] == 6
    assert recall["A"] == 4
    assert recall["chance"] / 8 == pytest.approx(3 / 13)
    for name, benchmark in BENCHMARKS.items():
        task = paper_study().tasks[benchmark]
        a, c = plain.unit_square(task.scores).T
        regret = plain.plain_regret(task.performance)
        for key, score in (("A+C", a + c), ("A", a), ("C", c)):
            found = bayes.baselines[key][benchmark]
            expected = min(regret[i] for i in plain.ranked(score)[:3])
            assert found["regret_top3"] == pytest.approx(expected, abs=1e-12), name
            tau = plain.plain_tau(task.performance, score)
            assert found["weighted_tau"] == pytest.approx(tau, abs=1e-12), name
