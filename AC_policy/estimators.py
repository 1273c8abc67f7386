"""The law and the policy as scikit-learn estimators."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from AC_policy.features import min_max, polynomial
from AC_policy.law import RANK_TOLERANCE
from AC_policy.paper import paper_study
from AC_policy.policies import DRAWS, TOLERANCE, may_stop, propose
from AC_policy.posterior import SCALE_RANGE, posterior
from AC_policy.prior import Prior, learn_prior
from llava.errors import UsageError


class ACRegressor(RegressorMixin, BaseEstimator):
    """The paper's law: least squares on the degree-2 polynomial of min-max scores (equation 4).

    Args:
        degree: 2 as published, or 1 for the scores themselves.

    Attributes:
        scaler_: the fitted MinMaxScaler.
        model_: the fitted LinearRegression.
        coef_: coefficients in the order of scikit-learn's PolynomialFeatures, without constant.
        intercept_: the constant.
    """

    def __init__(self, degree: int = 2):
        self.degree = degree

    def fit(self, X: ArrayLike, y: ArrayLike, candidates: ArrayLike | None = None):
        """Fits on scores X [k, d] and performance y [k].

        Args:
            candidates: [n, d] scores whose range is scaled to [0, 1]; default: X itself.
        """
        X, y = validate_data(self, X, y, y_numeric=True)
        if self.degree not in (1, 2):
            raise ValueError(f"degree is {self.degree}; expected 1 or 2")
        over = X if candidates is None else validate_data(self, candidates, reset=False)
        self.scaler_ = MinMaxScaler().fit(over)
        self.model_ = LinearRegression(tol=RANK_TOLERANCE).fit(self._features(X), y)
        self.coef_, self.intercept_ = self.model_.coef_, self.model_.intercept_
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """[m] performance at scores X [m, d]."""
        check_is_fitted(self)
        return self.model_.predict(self._features(validate_data(self, X, reset=False)))

    def _features(self, X):
        return polynomial(self.scaler_.transform(X), self.degree)


class BayesPolicy(RegressorMixin, BaseEstimator):
    """Ranks candidates by a law learned from other benchmarks and corrected by each finetuning run.

    Args:
        prior: a Prior (see `learn_prior`); None learns one from the paper's eight benchmarks.
        scale_range: limits of the performance scale, in units of the finetuned rows' spread.
        beta: next run by mean + beta standard deviations; None: by expected gain.
        tolerance: expected regret at which to stop, fraction of the candidates' range.
        top: m of P(in the top m).
        draws: samples behind the chances.
        random_state: of those samples; nothing else is random.

    Attributes, one entry per candidate given to `fit`:
        mean_, std_: of performance on the scale where the prior's benchmarks span [0, 1].
        ranking_: candidates by decreasing mean.
        p_best_, p_top_: chances of being the best, and among the best `top`.
        held_: the best finetuned candidate, None before the first run.
        expected_regret_: of stopping now with `held_`; NaN before the first run.
        next_: the candidate to finetune next, None where all are.
        stop_: whether the expected regret is within tolerance.
        posterior_: all of it, as a Posterior.
    """

    def __init__(
        self,
        prior: Prior | None = None,
        scale_range: tuple[float, float] = SCALE_RANGE,
        beta: float | None = None,
        tolerance: float = TOLERANCE,
        top: int = 3,
        draws: int = DRAWS,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.prior = prior
        self.scale_range = scale_range
        self.beta = beta
        self.tolerance = tolerance
        self.top = top
        self.draws = draws
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, noise: ArrayLike = 0.0):
        """Fits on all candidates.

        Args:
            X: [n, 2] A and C, higher is better.
            y: [n] performance, NaN where not finetuned.
            noise: standard deviation of one result, in the unit of y; one number or [n].
        """
        X = validate_data(self, X, ensure_min_samples=2)
        if X.shape[1] != 2:
            raise ValueError(f"X has {X.shape[1]} columns; expected 2, A and C")
        y = np.asarray(y, dtype=np.float64)
        if y.shape != (len(X),) or np.isinf(y).any():
            raise ValueError(f"y must hold {len(X)} numbers, NaN where not finetuned")
        self.scores_ = X
        self.performance_ = y
        self.noise_ = np.broadcast_to(np.asarray(noise, dtype=np.float64), y.shape)
        self.prior_ = self.prior or learn_prior(paper_study().tasks.values())
        self.posterior_ = self._posterior(min_max(X), y, self.noise_)
        self.mean_, self.std_ = self.posterior_.mean, self.posterior_.std
        self.ranking_ = np.argsort(-self.mean_, kind="stable")
        seed = check_random_state(self.random_state).randint(2**31)
        odds = self.posterior_.simulate(self.draws, np.random.default_rng(seed), self.top)
        self.p_best_, self.p_top_, self.expected_regret_ = odds.best, odds.among_top, odds.regret
        self.held_ = self.posterior_.incumbent()
        self.next_ = propose(self.posterior_, self.beta)
        self.stop_ = may_stop(self.posterior_, odds.regret, self.tolerance)
        return self

    def predict(
        self, X: ArrayLike, return_std: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """[m] performance that the law expects at scores X [m, 2], in the unit of y.

        A row of X counts as a new representation, also where the same scores were finetuned.

        Raises:
            UsageError: fewer than two different performances were fitted, so the unit's offset
                and scale are unknown; `mean_` and `ranking_` stand all the same.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        if not self.posterior_.scaled:
            raise UsageError(
                "performance cannot be predicted before two finetuned candidates differ in it; "
                "rank by mean_ and ranking_ until then"
            )
        both = np.concatenate([self.scores_, X])
        unknown = np.full(len(X), np.nan)
        state = self._posterior(
            min_max(both, self.scores_),
            np.concatenate([self.performance_, unknown]),
            np.concatenate([self.noise_, unknown]),
        )
        mean, std = (values[len(self.scores_) :] for values in state.performance())
        return (mean, std) if return_std else mean

    def _posterior(self, points, y, noise):
        return posterior(points, y, self.prior_, noise, self.scale_range)
