"""The report's sections on one's own numbers: does the law hold here, and every number measured."""

from html import escape

from AC_policy.report.markup import figure, number, paragraph, percent, soft, table, warning
from AC_policy.report.own import Column, Measured, Own, Verdict
from AC_policy.report.own_plots import scatter
from llava import catalog

FEATURES = {
    "AC_degree2": "A and C, degree 2: the law",
    "A_degree2": "A alone, degree 2",
    "C_degree2": "C alone, degree 2",
    "AC_linear": "A and C, linear",
}
"""Rows of the verdict's table; the first is what is judged."""
TEST = (
    "Fitted on these results alone, with its six coefficients. The ranking goes by coefficients "
    "learned on other benchmarks and corrected by these results; that has a test of its own, whose "
    "outcome stands in the first table, and the two may differ."
)
MOST_ROWS = 60
"""Representations of a benchmark's table: a search space can have a thousand."""
A_NAMES = {"cosine": "cosine", "nll": "likelihood"}


def verdicts(own: Own) -> str:
    """Does the law hold here? In words and in numbers."""
    if not own.verdicts and not own.missing:
        return ""
    tested = [verdict for verdict in own.verdicts if verdict.fits]
    rows = [
        [
            catalog.display_benchmark(verdict.benchmark),
            A_NAMES[verdict.a],
            label,
            str(verdict.n),
            *(number(r2, 2) for r2 in (fit.r2, fit.null_p95, fit.r2_loo, fit.loo_null_p95)),
        ]
        for verdict in tested
        for key, label in FEATURES.items()
        for fit in [verdict.fits[key]]
    ]
    head = ["benchmark", "A", "features", "n", "R²", "shuffled, 95th"]
    head += ["left-out R²", "shuffled, 95th"]
    return (
        "<h2>Does the law hold here?</h2>"
        + (paragraph(TEST) if tested else "")
        + "".join(
            f"<p><strong>{escape(first)}</strong> {escape(rest)}</p>"
            for first, rest in sentences(own.verdicts)
        )
        + "".join(warning(f"Left out: {why}.") for why in own.missing)
        + (table(head, rows, left=3) + soft(_reading(len(tested))) if rows else "")
    )


def _reading(tests: int) -> str:
    text = (
        "R²: the share of the differences in "
        "performance that a regression on these features explains, on the rows that it was fitted "
        "on. Left-out R²: each row predicted from the others; below 0 their mean is nearer. "
        "Shuffled, 95th: what the figure beside it reaches in 5 % of the cases when performance is "
        "shuffled among the rows. The law holds where its left-out R² is above 0 and above that."
    )
    if tests > 1:
        text += (
            f" Of {tests} such tests {0.05 * tests:.2g} would be passed by chance, if they did not "
            "hang together."
        )
    return text


def sentences(found: list[Verdict]) -> list[tuple[str, str]]:
    """(outcome, figures) in words; what cannot be tested for one reason stands together."""
    told = [_sentence(verdict) for verdict in found if verdict.fits]
    untested: dict[str, list[str]] = {}
    for verdict in found:
        if not verdict.fits:
            untested.setdefault(verdict.reason, []).append(_name(verdict))
    for reason, names in untested.items():
        told.append((f"{'; '.join(names)}: not to be said.", f"{reason[0].upper()}{reason[1:]}."))
    return told


def _name(verdict: Verdict) -> str:
    return f"{catalog.display_benchmark(verdict.benchmark)}, A as {A_NAMES[verdict.a]}"


def _sentence(verdict: Verdict) -> tuple[str, str]:
    law, a, c = (verdict.fits[key] for key in ("AC_degree2", "A_degree2", "C_degree2"))
    outcome = "it holds here" if verdict.holds else "it does not hold here"
    text = (
        f"With n = {verdict.n} the law explains {percent(law.r2)} of the differences in "
        f"performance on the rows that it is fitted on; shuffled performance reaches "
        f"{percent(law.null_p95)}. Of left-out rows it explains {_share(law.r2_loo)}; shuffled "
        f"performance reaches R² {number(law.loo_null_p95, 2)}. A alone explains "
        f"{_share(a.r2_loo)} of them, C alone {_share(c.r2_loo)}"
    )
    better, than = max((a.r2_loo, "A alone"), (c.r2_loo, "C alone"))
    if better > max(0.0, law.r2_loo):
        text += f"; {than} predicts better than both together"
    elif verdict.holds:
        text += "; both together predict better than either alone"
    return f"{_name(verdict)}: {outcome}.", text + "."


def _share(r2: float) -> str:
    """A left-out R² in words: below 0 is no share of anything."""
    return f"{percent(r2)} (R² {number(r2, 2)})" if r2 > 0 else f"nothing (R² {number(r2, 2)})"


def measured(own: Own) -> str:
    """Every representation with every number, and how they lie to each other."""
    return "".join(
        ["<h2>What was measured</h2>", *(_benchmark(entry) for entry in own.measured)]
        if own.measured
        else []
    )


def _benchmark(entry: Measured) -> str:
    name = catalog.display_benchmark(entry.benchmark)
    columns = [*entry.scores, entry.performance]
    names = entry.representations()
    rows = [
        [catalog.display_representation(name), *(_cell(column, name) for column in columns)]
        for name in names[:MOST_ROWS]
    ]
    head = ["representation", *(f"{column.name}, {column.unit}" for column in columns)]
    drawn, left_out = scatter(entry)
    caption = (
        "Each dot is one representation; bars are standard errors of the benchmark's result. White "
        "dots were not finetuned. Where lower is better the axis is turned round, so that better "
        "is always to the right and up."
    )
    return (
        f"<h3>{escape(name)}</h3>"
        + table(head, rows)
        + (soft(f"And {len(names) - MOST_ROWS:,} more, in the table.") * (len(names) > MOST_ROWS))
        + (figure(drawn, f"Scores and performance on {name}", caption) if drawn else "")
        + "".join(soft(why) for why in left_out)
    )


def _cell(column: Column, representation: str) -> str:
    if representation not in column.values:
        return "-"
    value, error = column.values[representation], column.stderr.get(representation)
    digits = 2 if column.unit in ("percent", "points") else 3
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")
