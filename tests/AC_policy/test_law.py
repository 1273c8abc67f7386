"""R² in sample, left out and under shuffles, against explicit refits with scikit-learn."""

import numpy as np
import plain
import pytest

from AC_policy.features import polynomial
from AC_policy.law import fit_law, r_squared
from AC_policy.paper import paper_study

SETS = [(which, degree) for which in ("A", "C", "AC") for degree in (1, 2)]


@pytest.fixture(scope="module")
def study():
    return paper_study()


@pytest.fixture(scope="module")
def law(study):
    return fit_law(study, draws=2000)


def key(which, degree):
    return f"{which}_{'linear' if degree == 1 else 'degree2'}"


@pytest.mark.parametrize(("which", "degree"), SETS)
def test_r2_in_sample_and_left_out_are_those_of_explicit_refits(study, law, which, degree):
    for name, task in study.tasks.items():
        X = plain.columns(plain.unit_square(task.scores), which, degree)
        fit = law.benchmarks[name][key(which, degree)]
        # Both are the same least squares in double precision; condition numbers stay below 1e4.
        assert fit.r2 == pytest.approx(plain.r2_in_sample(X, task.performance), abs=1e-9)
        assert fit.r2_loo == pytest.approx(plain.r2_left_out(X, task.performance), abs=1e-8)


@pytest.mark.parametrize(("which", "degree"), SETS)
def test_columns_are_scikit_learns_polynomial(study, which, degree):
    """A alone of degree 2 gives A and A², A and C give A, C, A², AC and C²."""
    points = plain.unit_square(study.task("mme").scores)
    X = plain.columns(points, which, degree)
    assert X.shape[1] == {1: len(which), 2: {1: 2, 2: 5}[len(which)]}[degree]
    chosen = points[:, ["AC".index(letter) for letter in which]]
    np.testing.assert_allclose(polynomial(chosen, degree), X, rtol=1e-15)


def test_a_row_that_alone_carries_a_direction_is_refitted_without_it():
    """Leverage 1: its left-out error cannot come from a division by 1 - leverage."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.random(9), np.eye(9)[4], rng.random(9)])
    y = rng.random(9)
    r2, loo = r_squared(X, y)
    assert float(r2) == pytest.approx(plain.r2_in_sample(X, y), abs=1e-9)
    assert float(loo) == pytest.approx(plain.r2_left_out(X, y), abs=1e-9)


@pytest.mark.parametrize("rows", [3, 4, 5, 6, 7])
def test_fewer_rows_than_columns_take_the_minimum_norm(study, rows):
    """Five columns on three to seven rows: in sample, and when one more row is left out."""
    task = study.task("vizwiz")
    X = plain.columns(plain.unit_square(task.scores), "AC", 2)
    for seed in range(10):
        some = np.random.default_rng(seed).permutation(13)[:rows]
        r2, loo = r_squared(X[some], task.performance[some])
        # Six nearly collinear rows have condition numbers up to 1e6, and left-out errors hundreds
        # of times the range; relative agreement is what double precision leaves of that.
        expected = plain.r2_left_out(X[some], task.performance[some])
        assert float(loo) == pytest.approx(expected, rel=1e-6, abs=1e-6)
        expected = plain.r2_in_sample(X[some], task.performance[some])
        assert float(r2) == pytest.approx(expected, abs=1e-6)


def test_doubled_columns_change_nothing(study):
    """A rank-deficient fit is the fit on the columns that are left."""
    task = study.task("ok_vqa")
    X = plain.columns(plain.unit_square(task.scores), "AC", 2)
    once = r_squared(X, task.performance)
    twice = r_squared(np.column_stack([X, X[:, 0], 2 * X[:, 1]]), task.performance)
    np.testing.assert_allclose(twice, once, atol=1e-9)


def test_null_of_a_benchmark_is_the_95th_percentile_over_shuffles(study, law):
    task = study.task("mmmu")
    X = plain.columns(plain.unit_square(task.scores), "AC", 2)
    rng = np.random.default_rng(3)
    drawn = [plain.r2_in_sample(X, rng.permutation(task.performance)) for _ in range(1000)]
    # Standard error of a 95th percentile over 1000 and 2000 draws at a density near 1.2: .007.
    expected = np.quantile(drawn, 0.95)
    assert law.benchmarks["mmmu_val"]["AC_degree2"].null_p95 == pytest.approx(expected, abs=0.025)


def test_null_of_random_columns(study, law):
    """Rows that could as well be swapped have R² columns / (rows - 1) in expectation."""
    for fits in law.benchmarks.values():
        # Over 2000 draws with standard deviations of .11 and .17: 5 standard errors.
        assert fits["random_linear"].r2 == pytest.approx(1 / 12, abs=0.0125)
        assert fits["random_degree2"].r2 == pytest.approx(5 / 12, abs=0.02)
        assert fits["random_linear"].r2_loo < 0


def test_groups_are_means_over_their_benchmarks(law):
    vision = ["mmbench_en_dev", "mme", "ok_vqa_val2014", "seedbench"]
    ocr = ["mmmu_val", "textvqa_val", "vizwiz_vqa_val", "scienceqa_img"]
    for group, names in (("vision", vision), ("ocr", ocr)):
        for which, degree in SETS:
            fits = [law.benchmarks[name][key(which, degree)] for name in names]
            found = law.groups[group][key(which, degree)]
            assert found.r2 == pytest.approx(sum(fit.r2 for fit in fits) / 4, abs=1e-12)
            assert found.r2_loo == pytest.approx(sum(fit.r2_loo for fit in fits) / 4, abs=1e-12)
