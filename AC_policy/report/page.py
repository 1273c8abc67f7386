"""The report's HTML, section by section; style and figures are inside, so one file travels."""

from html import escape
from pathlib import Path

import numpy as np

from AC_policy.backtest import Backtest
from AC_policy.law import FEATURE_SETS
from AC_policy.paper import is_paper, published_r2
from AC_policy.report import correspondence, example, own_section, plots, sweep_section
from AC_policy.report.content import Content, constants, display
from AC_policy.report.markup import figure, number, paragraph, percent, soft, table, warning
from AC_policy.report.own import Own
from AC_policy.report.sweep import Sweep
from llava import catalog

MOST_NAMES = 20
REPORTED_RUNS = (2, 3, 4, 5, 6)
CHOSEN_HEAD = ["recall@3 at 3", "at 4", "at 5", "regret at 3", "at 4", "at 5"]


def render(content: Content | str, own: Own | None = None, sweep: Sweep | None = None) -> str:
    """The page as HTML text.

    Args:
        content: what a study gives, or why there is none.
        own: what one's own table holds.
        sweep: the run that filled it.
    """
    known = isinstance(content, Content)
    sections = [
        sweep_section.problems(sweep) if sweep else "",
        _decisions(content, priced=sweep is None)
        if known
        else warning(f"Nothing can be ranked: {content}."),
        own_section.verdicts(own) if own else "",
        _ranking(content) if known else "",
        _sweep(content, own, sweep) if sweep else "",
        own_section.measured(own) if own else "",
        *(_rest(content) if known else []),
    ]
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<title>Which vision representation?</title>",
            f"<style>{style}</style></head><body>",
            "<h1>Which vision representation should the model take?</h1>",
            *filter(None, sections),
            "</body></html>",
            "",
        ]
    )


def _sweep(content: Content | str, own: Own | None, sweep: Sweep) -> str:
    """With how long the policy would have gone on, where everything was finetuned."""
    answers = content.recommendations if isinstance(content, Content) else []
    stops = [answer.replay[-1].k for answer in answers if answer.replay]
    all_finetuned = bool(stops) and len(stops) == len(answers) and not sweep.rounds
    candidates = len(own.candidates) if own else 0
    return sweep_section.section(sweep, candidates, max(stops) if all_finetuned else None)


def _rest(content: Content) -> list[str]:
    """What the decisions rest on."""
    return [
        _policies(content),
        _stopping(content),
        _law(content),
        _sensitivity(content),
        correspondence.section(content.correspondence) if content.correspondence else "",
        _example(content),
        _protocols(content),
    ]


def _decisions(content: Content, priced: bool) -> str:
    """What to take; `priced`: with the cost model's hours, where nothing was measured."""
    finished = sum(task.finished for task in content.study.tasks.values())
    count = max(len(task.performance) for task in content.study.tasks.values())
    lead = (
        f"{count} candidates on {_counted(len(content.study.tasks), 'benchmark')}"
        f"{', ' + str(finished) + ' of them finished' if finished else ''}. For each: what to "
        "take, how sure that is, what to finetune next, and when the policy would have stopped."
    )
    rows = []
    for answer in content.recommendations:
        held = next((r for r in answer.ranking or [] if r.representation == answer.take), None)
        ties = ", ".join(map(display, answer.take_ties))
        following = display(answer.next) if answer.next else "nothing, stop"
        rows.append(
            [
                catalog.display_benchmark(answer.benchmark),
                f"{answer.k} of {answer.n}",
                answer.trust.verdict,
                display(answer.take) + (f" (or {ties})" if ties else ""),
                percent(held.p_best) if held else "-",
                following if answer.ranking or answer.stop else "not ranked",
            ]
        )
    head = ["benchmark", "finetuned", "the law", "take", "P best", "finetune next"]
    failing = [answer for answer in content.recommendations if answer.trust.verdict == "fails"]
    warnings = "".join(
        warning(
            f"The law fails its test on {catalog.display_benchmark(answer.benchmark)}: "
            f"{answer.trust.reason}."
        )
        for answer in failing
    ) + "".join(
        warning(f"{catalog.display_benchmark(name)} is not ranked: {why}.")
        for name, why in content.unranked.items()
    )
    note = (
        "In brackets: what lies within the noise of the best result, so that a rerun might put it "
        "first; P best counts that noise too."
    )
    return (
        f'<p class="lead">{escape(lead)}</p>{warnings}'
        + (table(head, rows) + soft(note) if rows else "")
        + _replays(content, priced)
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _replays(content: Content, priced: bool) -> str:
    """What the policy would have done had nothing been finetuned, and what that saves."""
    replayed = [answer for answer in content.recommendations if answer.replay]
    if not replayed:
        return ""
    cost = replayed[0].savings
    rows = []
    for answer in replayed:
        stop = answer.replay[-1]
        rows.append(
            [
                catalog.display_benchmark(answer.benchmark),
                f"{stop.k} of {answer.n} runs",
                display(stop.held),
                percent(stop.p_best_held),
                percent(stop.expected_regret, 1),
                percent(stop.true_regret, 1),
                *([f"{(answer.n - stop.k) * cost.next:,.0f}"] if priced else []),
            ]
        )
    mean = sum(answer.replay[-1].k for answer in replayed) / len(replayed)
    undone = sum(1 - answer.replay[-1].k / answer.n for answer in replayed) / len(replayed)
    head = [
        "",
        "stops after",
        "holds",
        "P best",
        "expected regret",
        "true regret",
        *(["GPU hours spared"] if priced else []),
    ]
    note = "Regret is a fraction of the range from the worst candidate to the best."
    if priced:
        note += (
            f" One run costs {cost.next:,.0f} GPU hours by the cost model '{cost.model}' "
            f"({cost.note})."
        )
    return (
        "<h3>Had nothing been finetuned yet</h3>"
        + paragraph(
            "The policy starts from A and C alone, sees only what it finetunes itself and the "
            f"other benchmarks, and stops after {mean:.2f} runs on average: "
            f"{100 * undone:.0f} % of the finetuning is left undone."
        )
        + table(head, rows)
        + soft(note)
    )


def _ranking(content: Content) -> str:
    answer = content.at_stop
    if isinstance(answer, str) or answer.ranking is None:
        return ""
    name = catalog.display_benchmark(answer.benchmark)
    text = (
        f"{name}, when the policy stopped: {answer.k} of {answer.n} candidates finetuned, expected "
        f"regret of taking {display(answer.take)} {percent(answer.expected_regret or 0, 1)}."
        if content.task.finished
        else f"{name}, with what is finetuned now: {answer.k} of {answer.n}."
    )
    return (
        "<h2>How sure is that?</h2>"
        + paragraph(text)
        + figure(
            plots.ranking(answer, content.task),
            f"Ranking on {name} with 80 % intervals",
            "Blue: finetuned, with the noise of the result. Orange: predicted by the law from "
            "A, C and the finetuned ones. Cross: what was measured later, which the policy did not "
            "see. Right: chance of being the best.",
        )
    )


def _policies(content: Content) -> str:
    if isinstance(content.backtests, str):
        return "<h2>How good is the policy?</h2>" + paragraph(
            f"Not to be said yet: {content.backtests}."
        )
    rows = []
    for policy, result in content.backtests.items():
        for curve, label in (
            ("first_hit", "first hit by k"),
            ("recall_at_3", "recall@3 at k"),
            ("regret_top3", "regret of the top 3"),
            ("regret_top3_ties", "the same, ties within noise"),
            ("weighted_tau", "weighted Kendall tau"),
        ):
            if curve == "first_hit" and policy != "paper":
                continue
            mean = result.mean(curve)
            figures = [number(mean[k]) if k < len(mean) else "-" for k in REPORTED_RUNS]
            rows.append([policy, label, *figures])
    bases = []
    for name, entries in next(iter(content.backtests.values())).baselines.items():
        values = list(entries.values())
        bases.append(
            [
                name,
                *(
                    number(float(np.mean([value[key] for value in values])))
                    for key in ("recall_at_3", "regret_top3", "weighted_tau")
                ),
            ]
        )
    bands = [entry.noise_band for entry in content.backtests["paper"].benchmarks.values()]
    return (
        "<h2>How good is the policy?</h2>"
        + paragraph(
            "Each policy is replayed on every finished benchmark: after k finetuning runs it names "
            "three settings. Recall@3 asks whether the best is among them, regret how much is lost "
            "with the best of the three. The published policy is counted at its first hit, at "
            "whatever step that was; nobody can stop there without knowing the answer, so the "
            "figure at fixed k stands beside it."
        )
        + figure(
            plots.curves(content.backtests),
            "Recall and regret against the number of finetuning runs",
            "Mean over benchmarks. Dashed: rankings that need no finetuning at all.",
        )
        + table(["policy", "after k =", *map(str, REPORTED_RUNS)], rows, left=2)
        + "<h3>Without any finetuning</h3>"
        + table(["ranking by", "recall@3", "regret of the top 3", "weighted tau"], bases)
        + soft(
            f"Ties: within the noise of the best result, {100 * min(bands):.1f} to "
            f"{100 * max(bands):.1f} % of the range: its standard error where the table has one, "
            "else the documented difference between identical runs, else the standard error of an "
            f"accuracy over the benchmark's questions. Limits of all of this: {_limits(content)}"
        )
    )


def _limits(content: Content) -> str:
    count = max(len(task.performance) for task in content.study.tasks.values())
    benchmarks = len(content.study.tasks)
    limits = f"one table, {count} settings, {_counted(benchmarks, 'benchmark')}"
    if benchmarks > 1:
        limits += (
            " measured on the same models; the prior of bayes on one benchmark comes from the "
            "others, of the same models"
        )
    limits += "; the paper's benchmarks teach the prior." if content.lent else "."
    if is_paper(content.study):
        limits += (
            " Each model was trained once, and the gap from the best to the second is often "
            "smaller than the noise of a result, so regret with ties is the figure to trust."
        )
    return limits


def _stopping(content: Content) -> str:
    if isinstance(content.backtests, str):
        return ""
    result = content.backtests["bayes"]
    stops = np.array([entry.stopped for entry in result.benchmarks.values()])
    tolerance = result.setting.bayes.tolerance
    return (
        "<h2>When to stop</h2>"
        + paragraph(
            "After each run bayes estimates what it would lose by stopping and taking the best it "
            f"holds. It stops when that is at most {100 * tolerance:g} % of the range. On "
            f"{_counted(len(stops), 'benchmark')} it stopped after {_between(stops[:, 0])} runs; "
            f"what it held then was {100 * stops[:, 1].mean():.2f} % of the range below the best"
            + (f" on average, {100 * stops[:, 1].max():.2f} % at most." if len(stops) > 1 else ".")
        )
        + paragraph(_calibration(result))
        + figure(
            plots.stopping(result, tolerance),
            "Expected and true regret of what is held, per benchmark",
            "Blue: what the policy expects to lose by stopping. Red: what it would lose.",
        )
    )


def _between(runs: np.ndarray) -> str:
    if runs.min() == runs.max():
        return f"{runs[0]:.0f}"
    return f"{runs.min():.0f} to {runs.max():.0f} ({runs.mean():.2f} on average)"


def _calibration(result: Backtest) -> str:
    """Coverage of the intervals, measured on benchmarks that their bounds never saw."""
    if not result.coverage:
        return ""
    shares = ", ".join(
        f"{100 * calibrated:.0f} % after {k} runs ({100 * gaussian:.0f} % as the model has it)"
        for k, (calibrated, gaussian) in result.coverage.items()
        if k in REPORTED_RUNS
    )
    return (
        "The 80 % intervals of what was not finetuned are widened by the policy's own errors on "
        f"the other benchmarks. They then held {shares}. The runs are spent near the top, so how "
        "far down the rest lies stays a guess; that it is not the best is what they are for."
    )


def _law(content: Content) -> str:
    if isinstance(content.fit, str):
        return "<h2>The law</h2>" + paragraph(f"Not to be fitted yet: {content.fit}.")
    published = published_r2() if is_paper(content.study) else {}
    rows = []
    for group, fits in content.fit.groups.items():
        for key in FEATURE_SETS:
            fit = fits[key]
            printed = published.get((key, group))
            rows.append(
                [
                    group,
                    key.replace("_", ", "),
                    f"{printed:.2f}" if printed is not None else "-",
                    number(100 * fit.r2, 2),
                    number(100 * fit.r2_loo, 1),
                    number(100 * fit.null_p95, 1),
                ]
            )
    tests = [
        [
            catalog.display_benchmark(test.benchmark),
            str(test.n),
            number(test.r2_loo),
            number(test.null_p95),
            number(test.p_value),
        ]
        for answer in content.recommendations[:1]
        for test in answer.trust.tests
    ]
    tasks = [t for t in content.study.tasks.values() if t.finetuned.sum() >= 3]
    figures = figure(
        plots.r_squared(content.fit),
        "R squared in sample and left out",
        "A, C and both on degree 2. Pale: in sample. Full: each setting predicted from the others "
        "(cut at -0.35). Black: what shuffled performance reaches in sample in 5 % of the cases.",
    )
    if content.task.finetuned.sum() >= 3:
        figures = (
            figure(
                plots.plane(content.task),
                "The A-C plane with the law's surface",
                "Discs: measured performance, white where not finetuned. White lines: the regions "
                "that the published policy samples from.",
            )
            + figure(plots.planes(tasks), "A-C planes of every benchmark", "Every benchmark.")
            + figures
        )
    return (
        "<h2>The law</h2>"
        + paragraph(
            "Performance is regressed on the degree-2 polynomial of A (cross-modal alignment) and "
            "C (correspondence). Six coefficients on few points fit well whatever the truth, so "
            "the left-out R² and the R² of shuffled performance stand beside every figure."
        )
        + figures
        + table(
            ["group", "features", "published R² %", "R² %", "left out %", "shuffled, 95th %"],
            rows,
            left=2,
        )
        + soft("Random rows: mean over draws; the published ones are single draws.")
        + (
            "<h3>The transferred law</h3>"
            + paragraph(
                "What bayes uses: coefficients learned on the other benchmarks, corrected by this "
                "one's runs. Each finetuned setting is predicted from the others; p compares with "
                "shuffled performance."
            )
            + table(["benchmark", "rows", "left-out R²", "shuffled, 95th", "p"], tests)
            if tests
            else ""
        )
    )


def _sensitivity(content: Content) -> str:
    if content.sensitivity is None:
        return ""
    rows = [
        [
            row["constant"],
            _constant(row["constant"], row["value"]),
            "default" if row["default"] else "",
            *(number(value) for value in row["recall_at_3"]),
            *(number(value) for value in row["regret_top3"]),
            number(row["runs"], 2),
            number(row["regret"], 4),
            number(row["worst_regret"], 4),
        ]
        for row in content.sensitivity["variants"]
    ]
    nested = [
        [
            catalog.display_benchmark(row["benchmark"]),
            ", ".join(
                f"{name} {_constant(name, value)}" for name, value in row["constants"].items()
            ),
            *(number(row["recall_at_3"][k]) for k in (3, 4, 5)),
            *(number(row["regret_top3"][k]) for k in (3, 4, 5)),
        ]
        for row in content.sensitivity["nested"]
    ]
    mean = {
        key: np.mean([row[key] for row in content.sensitivity["nested"]], 0)
        for key in ("recall_at_3", "regret_top3")
    }
    nested.append(["mean", "", *(number(mean[key][k]) for key in mean for k in (3, 4, 5))])
    return (
        "<h2>Do the constants matter?</h2>"
        + paragraph(
            "The constants of bayes were fixed before these figures were computed; ridge and "
            "jitter come from a prototype that had seen the paper's table. Here one is changed at "
            "a time: recall@3 and regret of the top 3 after 3, 4 and 5 runs, when it "
            "stops by itself, the "
            "regret of what it holds then, and the largest over benchmarks."
        )
        + table(
            [
                "constant",
                "value",
                "",
                *CHOSEN_HEAD,
                "stops",
                "regret",
                "worst",
            ],
            rows,
            left=3,
        )
        + "<h3>Nested evaluation</h3>"
        + paragraph(
            "The constants chosen for each benchmark on the other benchmarks only, whose priors "
            "never saw it either: the figure that owes nothing to a look at the answers."
        )
        + table(
            [
                "benchmark",
                "constants chosen on the others",
                *CHOSEN_HEAD,
            ],
            nested,
            left=2,
        )
        + _held_out(content.sensitivity["held_out"])
    )


def _held_out(found: dict) -> str:
    """Figures on representations that the prior never saw."""
    rows = [[name, *map(number, regret)] for name, regret in found["regret"].items()]
    runs = [str(k) for k in range(1, found["unseen"])]
    return (
        "<h3>Representations that the prior never saw</h3>"
        + paragraph(
            f"{found['seen']} candidates teach the prior on the other benchmarks, the policy "
            f"chooses among the other {found['unseen']} ({found['splits']} random splits). Regret "
            "of the best one held after k runs, beside finetuning in the order of A + C and at "
            f"random. By itself bayes stops after {found['stops']:.2f} of {found['unseen']} runs, "
            f"with a regret of {100 * found['regret_then']:.1f} %."
        )
        + table(["order", *runs], rows)
    )


def _constant(name: str, value: object) -> str:
    """A constant's value; null means that it is learned, or for beta that none is needed."""
    if value is None:
        return "expected gain" if name == "beta" else "learned"
    return str(value)


def _example(content: Content) -> str:
    a, c = example.alignment(), example.correspondence()
    cosines = [
        [f"token {i + 1} {tuple(map(int, token))}", *map(number, row), number(best)]
        for i, (token, row, best) in enumerate(
            zip(example.TARGET_TOKENS, a.cosine, a.largest, strict=True)
        )
    ]
    points = [
        [
            str(i + 1),
            f"({p[0]:g}, {p[1]:g})",
            f"({t[0]:g}, {t[1]:g})",
            f"{d:.1f}",
            "yes" if ok else "no",
        ]
        for i, (p, t, d, ok) in enumerate(
            zip(example.PREDICTED_PX, example.TRUE_PX, c.distance_px, c.correct, strict=True)
        )
    ]
    similarities = ", ".join(f"{value:.3f}" for value in c.cosine)
    clip = " and ".join(str(tuple(map(int, token))) for token in example.CLIP_TOKENS)
    text = (
        "<h2>A worked example</h2><h3>A, cross-modal alignment</h3>"
        + paragraph(
            "One image, three tokens of the target representation and two of CLIP, each after the "
            f"projector of its own stage 1. CLIP's tokens: {clip}. Cosine of every pair, then the "
            "largest per target token, then their mean:"
        )
        + table(["target", "CLIP token 1", "CLIP token 2", "largest"], cosines)
        + paragraph(
            f"A of this image = ({' + '.join(map(number, a.largest))}) / {len(a.largest)} = "
            f"{a.score:.3f}. The A score is the mean over 100 images of the benchmark, and over "
            "two references: CLIP at 224 and at 336 pixels."
        )
        + "<h3>C, correspondence</h3>"
        + paragraph(
            f"A keypoint's feature in the source image, {tuple(map(int, example.SOURCE_FEATURE))}, "
            f"is compared with every patch of the target image: cosines {similarities}. It moves "
            f"to patch {c.patch + 1}. A keypoint is correct when it lands within "
            f"{example.ALPHA:g} of the larger side of the object's box, here "
            f"{example.BOX_PX[0]:g} x {example.BOX_PX[1]:g} pixels, so {c.threshold_px:g} pixels:"
        )
        + table(["keypoint", "predicted", "true", "distance", "correct"], points)
        + paragraph(
            f"PCK of this pair = {int(c.correct.sum())} / {len(c.correct)} = {c.score:.3f}. The C "
            "score is the mean over the pairs of SPair-71k's test split, in percent."
        )
    )
    if content.task.finetuned.sum() < 3:
        return text
    chosen = int(np.argmax(np.where(content.task.finetuned, content.task.performance, -np.inf)))
    law = example.law(content.task, chosen)
    terms = " ".join(f"{'-' if t < 0 else '+'} {abs(t):.2f}" for t in law.terms).removeprefix("+ ")
    name = catalog.display_benchmark(content.task.benchmark)
    return (
        text
        + "<h3>The law</h3>"
        + paragraph(
            f"{display(law.representation)} on {name}: A = {law.a:.3f}, C = {law.c:.4f}; min-max "
            f"over the candidates A = {law.a_scaled:.3f}, C = {law.c_scaled:.3f}. Fitted on all "
            "finetuned candidates:"
        )
        + f"<p><code>{escape(name)} = {escape(law.formula)}</code></p>"
        + paragraph(
            f"Term by term: {terms} = {law.predicted:.2f} {content.task.unit}; measured "
            f"{law.measured:.2f}."
        )
    )


def _protocols(content: Content) -> str:
    study = content.study
    rows = [[quantity, ", ".join(names)] for quantity, names in study.protocols.items()]
    rows += [
        ["A score", study.a],
        ["scale of A and C", "min-max over the candidates"],
        ["policy constants", ", ".join(f"{k} {v}" for k, v in vars(constants()).items())],
        ["tables", ", ".join(Path(source).name for source in study.sources)],
        ["versions", ", ".join(f"{name} {version}" for name, version in content.versions.items())],
        ["made", content.made],
    ]
    left_out = "".join(
        soft(f"Not candidates, they {why}: {_listed(names)}.")
        for why, names in study.left_out.items()
    )
    return "<h2>Protocols and versions</h2>" + table(["", ""], rows, left=2) + left_out


def _listed(names: list[str]) -> str:
    """Names, of a whole search space only the first."""
    more = len(names) - MOST_NAMES
    return ", ".join(map(display, names[:MOST_NAMES])) + (f" and {more:,} more" * (more > 0))
