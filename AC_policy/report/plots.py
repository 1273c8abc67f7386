"""Figures of the report, as SVG text. Colours are Okabe and Ito's, safe for colour blindness."""

import io

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from AC_policy.backtest import Backtest
from AC_policy.estimators import ACRegressor
from AC_policy.law import LawFit
from AC_policy.recommend import Recommendation
from AC_policy.study import Task
from llava import catalog

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#767676",
)
POLICY_COLOURS = {"bayes": BLUE, "paper": ORANGE, "random": GREY}
BASELINE_COLOURS = {"A+C": GREEN, "A": RED, "C": PURPLE}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "law",  # element names that do not change from run to run
}
MOST_RUNS = 9


def as_svg(figure: Figure) -> str:
    """The figure as SVG text, the same for the same figure."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return text.getvalue()


def plane(task: Task) -> str:
    """The A-C plane of one task: the law's surface, the regions of level 1 and 2, every setting."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 5.4))
        axes = figure.subplots()
        filled = _surface(axes, task, fine=True)
        figure.colorbar(filled, ax=axes, label=f"{_name(task)}, {task.unit}", fraction=0.045)
        points = task.points()
        below = _labels_below(points)
        for index, (point, name) in enumerate(zip(points, task.representations, strict=True)):
            axes.annotate(
                _label(name),
                point,
                xytext=(0, -12 if below[index] else 7),
                textcoords="offset points",
                ha="left" if point[0] < 0.06 else "right" if point[0] > 0.94 else "center",
                fontsize=8,
            )
        axes.set_xlabel("A, min-max over the candidates")
        axes.set_ylabel("C, min-max over the candidates")
        axes.set_title(f"{_name(task)}: the law's surface, regions of level 1 and 2", pad=10)
        return as_svg(figure)


def planes(tasks: list[Task]) -> str:
    """Small A-C planes of every benchmark."""
    with rc_context(STYLE):
        rows = -(-len(tasks) // 4)
        figure = Figure(figsize=(10, 2.6 * rows), layout="constrained")
        grid = figure.subplots(rows, min(4, len(tasks)), squeeze=False, sharex=True, sharey=True)
        for axes, task in zip(grid.flat, tasks, strict=False):
            _surface(axes, task, fine=False)
            axes.set_title(_name(task))
        for axes in grid.flat[len(tasks) :]:
            axes.set_visible(False)
        figure.supxlabel("A", fontsize=9)
        figure.supylabel("C", fontsize=9)
        return as_svg(figure)


def _surface(axes, task: Task, fine: bool):
    """Contours of the fitted law, region lines, and the settings coloured by performance."""
    known, points = task.finetuned, task.points()
    side = np.linspace(0, 1, 81 if fine else 41)
    a, c = np.meshgrid(side, side)
    low, high = task.scores.min(0), task.scores.max(0)
    y = task.sign * task.performance
    model = ACRegressor().fit(task.scores[known], y[known], candidates=task.scores)
    inputs = low + np.stack([a.ravel(), c.ravel()], 1) * (high - low)
    surface = model.predict(inputs).reshape(a.shape)
    bottom, top = np.nanmin(y), np.nanmax(y)
    levels = np.linspace(bottom, top, 15)
    filled = axes.contourf(a, c, surface, levels=levels, cmap="cividis", alpha=0.55, extend="both")
    for cut in (0.25, 0.5, 0.75):
        width = 0.9 if cut == 0.5 else 0.5
        axes.axvline(cut, color="white", lw=width)
        axes.axhline(cut, color="white", lw=width)
    style = {"cmap": "cividis", "vmin": bottom, "vmax": top, "edgecolors": "black", "zorder": 3}
    size = 42 if fine else 18
    axes.scatter(*points[known].T, c=y[known], s=size, linewidths=0.7, clip_on=False, **style)
    if not known.all():
        axes.scatter(*points[~known].T, s=size, facecolors="white", edgecolors="black", zorder=3)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return filled


def _labels_below(points: np.ndarray) -> np.ndarray:
    """bool [n]: labels that go below, since another point stands closely above or beside."""
    below = np.zeros(len(points), bool)
    for i, point in enumerate(points):
        offset = points - point
        near = (abs(offset[:, 0]) < 0.12) & (abs(offset[:, 1]) < 0.07)
        near[i] = False
        below[i] = any(
            offset[j, 1] > 0 or (offset[j, 1] == 0 and j < i) for j in np.flatnonzero(near)
        )
    return below


def ranking(answer: Recommendation, task: Task) -> str:
    """Measured and predicted performance with 80 % intervals, and the truth where it is known."""
    rows = answer.ranking[:20][::-1]
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.32 * len(rows) + 1.3))
        axes = figure.subplots()
        truth = dict(zip(task.representations, task.sign * task.performance, strict=True))
        for place, row in enumerate(rows):
            colour = BLUE if row.finetuned else ORANGE
            if row.low is not None:
                axes.plot([row.low, row.high], [place, place], color=colour, lw=4, alpha=0.35)
                axes.plot(row.predicted, place, "o", color=colour, ms=5)
            if not row.finetuned and np.isfinite(truth[row.representation]):
                axes.plot(truth[row.representation], place, "x", color="black", ms=6)
        axes.set_yticks(range(len(rows)), [_label(row.representation) for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        for place, row in enumerate(rows):
            axes.annotate(
                f"{100 * row.p_best:.0f} %",
                (1.01, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=8,
            )
        axes.annotate("P best", (1.01, len(rows) - 0.3), xycoords=("axes fraction", "data"))
        known = [value for value in truth.values() if np.isfinite(value)]
        if known and rows[0].low is not None:
            pad = 0.6 * (max(known) - min(known))
            axes.set_xlim(min(known) - pad, max(known) + pad)
        axes.set_xlabel(f"{_name(task)}, {task.unit}")
        handles = [
            axes.plot([], [], "o-", color=BLUE, label="finetuned")[0],
            axes.plot([], [], "o-", color=ORANGE, label="predicted, 80 % interval")[0],
        ]
        if task.finished and answer.k < answer.n:
            handles.append(axes.plot([], [], "x", color="black", label="truth, not seen")[0])
        below = (0.5, -0.5 / (0.32 * len(rows) + 0.3))  # half an inch under the axis
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=below, ncols=3, fontsize=8)
        axes.set_title(f"after {answer.k} finetuning runs")
        return as_svg(figure)


def r_squared(fit: LawFit) -> str:
    """R² in sample beside left out, A, C and both, with the null's 95th percentile."""
    sets = {"A_degree2": (RED, "A"), "C_degree2": (PURPLE, "C"), "AC_degree2": (BLUE, "A and C")}
    names = list(fit.benchmarks)
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        axes = figure.subplots()
        width = 0.25
        for shift, (key, (colour, label)) in enumerate(sets.items()):
            x = np.arange(len(names)) + (shift - 1) * width
            fits = [fit.benchmarks[name][key] for name in names]
            inside = [entry.r2 for entry in fits]
            axes.bar(x, inside, width * 0.92, color=colour, alpha=0.3)
            left_out = [max(entry.r2_loo, -0.35) for entry in fits]
            axes.bar(x, left_out, width * 0.92, color=colour, label=label)
            for place, entry in zip(x, fits, strict=True):
                axes.plot([place - width * 0.46, place + width * 0.46], [entry.null_p95] * 2, "k-")
        axes.plot([], [], "k-", label="in sample, shuffled: 95th percentile")
        axes.bar(0, 0, color=GREY, alpha=0.3, label="pale: in sample")
        axes.bar(0, 0, color=GREY, label="full: left out")
        axes.axhline(0, color="black", lw=0.6)
        axes.set_xticks(
            range(len(names)), [_text(catalog.display_benchmark(name)) for name in names]
        )
        axes.set_ylabel("R²")
        axes.set_ylim(-0.36, 1.02)
        axes.legend(ncols=6, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.17))
        return as_svg(figure)


def curves(results: dict[str, Backtest]) -> str:
    """Recall@3 and regret against the number of finetuning runs, all policies and baselines."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        for policy in ("paper", "bayes", "random"):
            if policy not in results:
                continue
            colour = POLICY_COLOURS[policy]
            for axes, curve in ((left, "recall_at_3"), (right, "regret_top3")):
                values = results[policy].mean(curve)[: MOST_RUNS + 1]
                axes.plot(values, "o-", color=colour, ms=4, label=f"{policy}, fixed k")
        if "paper" in results:
            first = results["paper"].mean("first_hit")[: MOST_RUNS + 1]
            left.plot(first, ":", color=ORANGE, label="paper, first hit (as published)")
        any_result = next(iter(results.values()))
        for name, colour in BASELINE_COLOURS.items():
            rows = any_result.baselines[name].values()
            recall = np.mean([row["recall_at_3"] for row in rows])
            regret = np.mean([row["regret_top3"] for row in rows])
            dashes = (6 * list(BASELINE_COLOURS).index(name), (5, 13))  # side by side on one line
            left.axhline(recall, color=colour, lw=1.4, ls=dashes)
            left.plot([], [], color=colour, lw=1.4, ls="--", label=f"{name}, no finetuning")
            right.axhline(regret, color=colour, lw=1.4, ls=dashes)
        left.set(xlabel="finetuning runs k", title="best setting in the top 3", ylim=(0, 1.03))
        right.set(xlabel="finetuning runs k", title="regret of the best of the top 3, of the range")
        right.set_yscale("symlog", linthresh=0.005)
        right.set_ylim(-0.0005, 0.2)
        ticks = [0, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]
        right.set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
        right.minorticks_off()
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return as_svg(figure)


def stopping(result: Backtest, tolerance: float) -> str:
    """Expected regret as `bayes` sees it and the true regret of what is held, run by run."""
    with rc_context(STYLE):
        names = list(result.benchmarks)
        rows = -(-len(names) // 4)
        figure = Figure(figsize=(10, 2.2 * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, min(4, len(names)), squeeze=False, sharex=True, sharey=True)
        for axes, name in zip(grid.flat, names, strict=False):
            entry = result.benchmarks[name]
            k = np.arange(1, min(MOST_RUNS, len(entry.expected_regret) - 1) + 1)
            axes.plot(k, entry.expected_regret[k], "o-", color=BLUE, ms=3, label="expected")
            axes.plot(k, entry.curves["regret_held"][k], "x--", color=RED, ms=4, label="true")
            axes.axhline(tolerance, color=GREY, lw=0.8, ls=":", label="tolerance")
            axes.axvline(entry.stopped[0], color=GREEN, lw=1.2, label="stops")
            axes.set_yscale("symlog", linthresh=0.01)
            axes.set_ylim(-0.001, 0.6)
            axes.set_yticks([0, 0.01, 0.1, 0.5], ["0", "1 %", "10 %", "50 %"])
            axes.minorticks_off()
            axes.set_title(_text(catalog.display_benchmark(name)))
        for axes in grid.flat[len(names) :]:
            axes.set_visible(False)
        figure.supxlabel("finetuning runs", fontsize=9)
        handles = grid.flat[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=4)
        return as_svg(figure)


def _name(task: Task) -> str:
    return _text(catalog.display_benchmark(task.benchmark))


def _label(representation: str) -> str:
    return _text(catalog.display_representation(representation))


def _text(name: str) -> str:
    """A name from a table, without the dollars that would start a formula."""
    return name.replace("$", r"\$")
