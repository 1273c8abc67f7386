"""The law and the policy as scikit-learn estimators."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures
from sklearn.utils.estimator_checks import parametrize_with_checks

from AC_policy import ACRegressor, BayesPolicy, learn_prior
from AC_policy.law import fit_law
from AC_policy.paper import paper_study
from llava.errors import UsageError


@pytest.fixture(scope="module")
def study():
    return paper_study()


@parametrize_with_checks([ACRegressor(), ACRegressor(degree=1)])
def test_acregressor_follows_scikit_learns_rules(estimator, check):
    check(estimator)


def test_acregressor_is_the_pipeline_of_the_paper(study):
    task = study.task("MME")
    plain = make_pipeline(MinMaxScaler(), PolynomialFeatures(2), LinearRegression())
    plain.fit(task.scores, task.performance)
    ours = ACRegressor().fit(task.scores, task.performance)
    inputs = task.scores + 0.01
    np.testing.assert_allclose(ours.predict(inputs), plain.predict(inputs), rtol=1e-10)


def test_acregressor_cross_validates_to_the_left_out_r2(study):
    task = study.task("OKVQA")
    left_out = cross_val_predict(ACRegressor(), task.scores, task.performance, cv=LeaveOneOut())
    y = task.performance
    r2 = 1 - ((y - left_out) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    expected = fit_law(study, draws=20).benchmarks["ok_vqa_val2014"]["AC_degree2"].r2_loo
    assert r2 == pytest.approx(expected, abs=1e-9)


def test_scaling_over_the_candidates_matters_only_below_six_rows(study):
    """Minimum-norm solutions depend on the scaler; from full rank on they do not."""
    task = study.task("MME")
    few, many = slice(0, 4), slice(0, 9)
    for rows, same in ((few, False), (many, True)):
        own = ACRegressor().fit(task.scores[rows], task.performance[rows])
        over = ACRegressor().fit(task.scores[rows], task.performance[rows], candidates=task.scores)
        equal = np.allclose(own.predict(task.scores), over.predict(task.scores), rtol=1e-6)
        assert equal is same


def partial(task, keep):
    return np.where(np.isin(np.arange(len(task.performance)), keep), task.performance, np.nan)


def test_bayes_policy_keeps_its_parameters_and_clones(study):
    prior = learn_prior(study.tasks.values())
    policy = BayesPolicy(prior=prior, tolerance=0.02, top=2, random_state=3)
    assert clone(policy).get_params()["tolerance"] == 0.02
    task = study.task("MME")
    before = dict(policy.get_params())
    policy.fit(task.scores, partial(task, [0, 3, 5]))
    assert policy.get_params() == before
    assert policy.prior_ is prior


def test_bayes_policy_gives_chances(study):
    task = study.task("MMBench")
    policy = BayesPolicy(random_state=0).fit(task.scores, partial(task, [0, 3, 11]))
    assert policy.p_best_.sum() == pytest.approx(1)
    assert policy.p_top_.sum() == pytest.approx(3)
    assert (policy.p_top_ >= policy.p_best_).all()
    assert policy.held_ == 11
    assert policy.next_ not in (0, 3, 11)
    assert policy.expected_regret_ > policy.tolerance
    assert not policy.stop_
    np.testing.assert_array_equal(policy.ranking_, np.argsort(-policy.mean_, kind="stable"))


def test_random_state_fixes_the_chances(study):
    task = study.task("MMBench")
    y = partial(task, [0, 3, 11])
    one, same = (BayesPolicy(random_state=5).fit(task.scores, y).p_best_ for _ in range(2))
    other = BayesPolicy(random_state=6).fit(task.scores, y).p_best_
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    np.testing.assert_allclose(one, other, atol=0.02)  # 20,000 draws: s.e. 0.0035 each


def test_predict_is_affine_in_the_unit_of_performance(study):
    """Offset and scale are learned, so points and percent give the same answer."""
    task = study.task("MMBench")
    y = partial(task, [0, 3, 5, 11])
    policy = BayesPolicy(random_state=0).fit(task.scores, y)
    moved = BayesPolicy(random_state=0).fit(task.scores, 10 * y + 300)
    mean, std = policy.predict(task.scores[:5], return_std=True)
    mean_moved, std_moved = moved.predict(task.scores[:5], return_std=True)
    np.testing.assert_allclose(mean_moved, 10 * mean + 300, rtol=1e-9)
    np.testing.assert_allclose(std_moved, 10 * std, rtol=1e-9)
    np.testing.assert_allclose(policy.predict(task.scores[:5]), mean)


def test_a_new_representation_is_predicted_as_a_candidate_would_be(study):
    task = study.task("MMBench")
    y = partial(task, [0, 3, 5, 11])
    without = np.arange(13) != 8  # DiT: inside the range, so the scaling stays
    policy = BayesPolicy(random_state=0).fit(task.scores, y)
    new = policy.predict(task.scores[[8]])
    inside, _ = policy.posterior_.performance()
    np.testing.assert_allclose(new, inside[[8]], rtol=1e-9)
    assert without.sum() == 12


def test_prediction_before_two_runs_is_refused_with_the_way_out(study):
    task = study.task("MMBench")
    for keep in ([], [4]):
        policy = BayesPolicy().fit(task.scores, partial(task, keep))
        with pytest.raises(UsageError, match="ranking_"):
            policy.predict(task.scores)
        assert policy.next_ is not None
        assert not policy.stop_
        assert len(policy.ranking_) == 13


def test_two_equal_results_count_as_unknown_scale(study):
    task = study.task("MMBench")
    y = np.full(13, np.nan)
    y[[2, 7]] = 50.0
    assert not BayesPolicy().fit(task.scores, y).posterior_.scaled


def test_all_finetuned_stops_and_holds_the_best(study):
    for task in study.tasks.values():
        policy = BayesPolicy(random_state=0).fit(task.scores, task.performance)
        assert policy.stop_
        assert policy.next_ is None
        assert policy.expected_regret_ == 0
        assert policy.held_ == task.performance.argmax()


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.ones((3, 3)), np.ones(3)),
        (np.ones((3, 2)), np.ones(2)),
        (np.ones((3, 2)), [1.0, np.inf, 2.0]),
        (np.array([[1.0, np.nan], [2.0, 3.0]]), np.ones(2)),
        (np.ones((1, 2)), np.ones(1)),
    ],
)
def test_bad_arrays_are_refused(x, y):
    with pytest.raises(ValueError, match=r"column|numbers|NaN|minimum"):
        BayesPolicy().fit(x, y)


def test_noise_of_results_makes_near_ties_uncertain(study):
    task = study.task("MMBench")  # 65.72 against 65.12 at the top
    exact = BayesPolicy(random_state=0).fit(task.scores, task.performance)
    noisy = BayesPolicy(random_state=0).fit(task.scores, task.performance, noise=0.7)
    assert exact.p_best_.max() == 1
    assert 0.4 < noisy.p_best_.max() < 0.8
    assert noisy.expected_regret_ == 0  # finetuning more would not remove it


def test_what_the_package_offers_is_what_it_says():
    """No name leads to a module that another import has put in its place."""
    import AC_policy

    for name in AC_policy.__all__:
        for _ in range(2):
            assert callable(getattr(AC_policy, name)), name
