"""The published policy's backtest: ours beside a plain scikit-learn loop, in the same run.

    OMP_NUM_THREADS=1 python benchmarks/backtest.py

Both replay the same finetuning orders on the paper's eight benchmarks, all 13 steps, and must agree
on every hit. The plain loop fits MinMaxScaler, PolynomialFeatures and LinearRegression per step, as
one would write it; it runs fewer trials, and times are compared per trial.
"""

import argparse
import time

import numpy as np
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures

from AC_policy.backtest import backtest
from AC_policy.paper import paper_study
from AC_policy.policies import Setting, replay_paper


def plain(study, trials: int, seed: int) -> np.ndarray:
    """[benchmarks, trials, 14] whether the best setting is in the predicted top 3 after k runs."""
    hits = np.zeros((len(study.tasks), trials, 14), bool)
    for b, task in enumerate(study.tasks.values()):
        best = task.performance.argmax()
        orders = replay_paper(task, [], Setting(trials=trials, seed=seed)).orders
        for t, order in enumerate(orders):
            for k in range(2, 14):
                scaler = MinMaxScaler().fit(task.scores)
                expand = PolynomialFeatures(2)
                rows = order[:k]
                x = expand.fit_transform(scaler.transform(task.scores[rows]))
                model = LinearRegression().fit(x, task.performance[rows])
                predicted = model.predict(expand.transform(scaler.transform(task.scores)))
                hits[b, t, k] = best in np.argsort(-predicted, kind="stable")[:3]
    return hits


def main() -> None:
    """Prints both times, their ratio, and whether the hits agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--plain-trials", type=int, default=20)
    arguments = parser.parse_args()
    study = paper_study()
    backtest(study, "paper", Setting(trials=2))  # imports and caches, outside of the timing

    start = time.perf_counter()
    backtest(study, "paper", Setting(trials=arguments.trials))
    ours = time.perf_counter() - start

    start = time.perf_counter()
    hits = plain(study, arguments.plain_trials, seed=0)
    slow = time.perf_counter() - start
    small = backtest(study, "paper", Setting(trials=arguments.plain_trials))
    curves = [entry.curves["recall_at_3"][2:] for entry in small.benchmarks.values()]
    agree = np.allclose(hits.mean(1)[:, 2:], curves)

    ratio = (slow / arguments.plain_trials) / (ours / arguments.trials)
    print(f"ours   {arguments.trials} trials x 8 benchmarks x 13 steps: {ours:.2f} s")
    print(f"plain  {arguments.plain_trials} trials: {slow:.2f} s")
    print(f"ratio per trial {ratio:.0f}; recall agrees: {agree}")


if __name__ == "__main__":
    main()
