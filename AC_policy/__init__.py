"""The AC law and policy: which vision representation to finetune next, and when to stop.

`ACRegressor` is the paper's law (degree-2 polynomial of A and C), `BayesPolicy` the policy that
says how sure it is. Both are scikit-learn estimators, imported when first used. Functions that
share their name with a module are in it: `AC_policy.recommend.recommend`,
`AC_policy.backtest.backtest`, `AC_policy.propose.propose`.
"""

_HOMES = {
    "ACRegressor": "AC_policy.estimators",
    "BayesPolicy": "AC_policy.estimators",
    "Prior": "AC_policy.prior",
    "learn_prior": "AC_policy.prior",
    "Study": "AC_policy.study",
    "load_study": "AC_policy.study",
    "paper_study": "AC_policy.paper",
    "fit_law": "AC_policy.law",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'AC_policy' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])
