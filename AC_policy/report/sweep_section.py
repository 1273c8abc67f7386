"""The report's sections on the sweep: what failed first, then what was asked, run and spent."""

from collections.abc import Iterable

from AC_policy.report.markup import figure, number, paragraph, percent, soft, table, warning
from AC_policy.report.sweep import BAD, Round, Step, Sweep, gpu_hours, seconds
from AC_policy.report.sweep_plots import costs as costs_figure
from AC_policy.report.sweep_plots import shown_steps
from llava import catalog

MOST_ROWS = 60
PER_REPRESENTATION = ("stage1", "nll", "dump", "cosine", "stage2", "evaluate")
"""Kinds of step that every further representation needs once more."""
LEAST_HOURS = 0.1
"""GPU hours from which a plan's sums are shown."""
STAGE1_COLUMN = 2
"""Of the table of rounds."""
MEANINGS = {
    "failed": "failed",
    "blocked": "not run, since a step that it needs failed",
    "left out": "left out",
}


def problems(sweep: Sweep) -> str:
    """What failed, was blocked or left out, and why; nothing where all went well."""
    bad = [step for state in BAD for step in sweep.of_state(state)]
    open_steps = [step for step in sweep.of_state("waiting") if step.kind != "report"]
    text = ""
    if bad:
        counts = [f"{len(sweep.of_state(state))} {state}" for state in BAD if sweep.of_state(state)]
        rows = [
            [
                step.name,
                step.state,
                _first_line(step.error) or MEANINGS[step.state],
            ]
            for step in bad[:MOST_ROWS]
        ]
        text += (
            "<h2>What failed or was left out</h2>"
            + warning(f"Of {len(sweep.steps)} steps: {', '.join(counts)}. What follows lacks them.")
            + table(["step", "", "why"], rows, left=3, wrap=2)
        )
        if len(bad) > MOST_ROWS:
            text += soft(f"And {len(bad) - MOST_ROWS} more, in the run folder's summary.")
    if open_steps and not sweep.finished:
        text += warning(
            f"The sweep is not finished: {len(open_steps)} steps were still to come when this page "
            "was made. `law run` with the same file goes on."
        )
    return text


def section(sweep: Sweep, candidates: int, replayed: int | None = None) -> str:
    """What was run and what it cost.

    Args:
        sweep: the run.
        candidates: the representations to choose among.
        replayed: where all are finetuned, runs after which the policy would have stopped.
    """
    done = sweep.of_state("done")
    lead = f"{sweep.name}: {len(done)} of {len(sweep.steps)} steps are done"
    lead += f", {time_text(seconds(done))} of work"
    if gpu_hours(done):
        lead += f", {gpu_hours(done):,.1f} GPU hours"
    return (
        "<h2>The sweep</h2>"
        + paragraph(lead + ".")
        + _rounds(sweep)
        + "<h3>What it cost</h3>"
        + (_undone(sweep, replayed) if replayed else _spared(sweep, candidates))
        + _planned(sweep)
        + _by_kind(done)
        + _figure(done)
    )


def _rounds(sweep: Sweep) -> str:
    finetuned = len(set(sweep.trained()))
    if not sweep.rounds:
        return paragraph(f"The policy was not asked; {finetuned} were finetuned.")
    last = sweep.rounds[-1]
    text = f"The policy was asked {_times(len(sweep.rounds))}; {finetuned} were finetuned."
    if last.stop:
        text += f" It stopped: {last.reason.rstrip('.')}." if last.reason else " It stopped."
    rows = [row for entry in sweep.rounds for row in _round(sweep, entry)]
    head = ["round", "finetuned", "asked for stage 1", "for stage 2", "benchmark", "the law"]
    head += ["best one held", "expected regret"]
    if not any(entry.stage1 for entry in sweep.rounds):  # every A was measured before
        head, rows = _without(STAGE1_COLUMN, head), [_without(STAGE1_COLUMN, row) for row in rows]
    missing = [entry.json for entry in sweep.rounds if entry.round not in sweep.proposals]
    return (
        "<h3>What the policy asked for</h3>"
        + paragraph(text)
        + table(head, rows, left=len(head) - 1)
        + soft(
            "Of each benchmark what the policy knew when it was asked: how the law's test went, "
            "the best one finetuned by then, and the regret that it expected of taking that one, "
            "of the candidates' range."
        )
        + "".join(
            soft(f"{name} is not there: what the policy knew then is not shown.")
            for name in missing
        )
    )


def _without(column: int, cells: list[str]) -> list[str]:
    return cells[:column] + cells[column + 1 :]


def _round(sweep: Sweep, entry: Round) -> list[list[str]]:
    """A row for every benchmark; what the round asked for stands in the first of them."""
    said = sweep.proposals.get(entry.round)
    asked = [
        str(entry.round),
        str(len(said.finetuned)) if said else "-",
        _names(entry.stage1),
        "stop" if entry.stop else _names(entry.stage2),
    ]
    knew = [_knew(name, known) for name, known in said.benchmarks.items()] if said else []
    first, *others = knew or [["-", "-", "-", "-"]]
    return [[*asked, *first], *(["", "", "", "", *other] for other in others)]


def _knew(benchmark: str, known: dict) -> list[str]:
    """One benchmark in a round: the law's test, the best one held, the expected regret."""
    verdict = known.get("trust")
    if isinstance(verdict, dict):
        verdict = verdict.get("verdict")
    held = known.get("take")
    return [
        catalog.display_benchmark(benchmark),
        str(verdict or "-"),
        catalog.display_representation(held) if held else "-",
        percent(known.get("expected_regret"), 1),
    ]


def _spared(sweep: Sweep, candidates: int) -> str:
    """What running every candidate would have cost, at this sweep's own mean per step."""
    done = sweep.of_state("done")
    finetuned = len(set(sweep.trained()))
    if not finetuned or candidates <= finetuned:
        return ""
    measure = gpu_hours if gpu_hours(done) else seconds
    spent = measure(done)
    more = 0.0
    for kind in PER_REPRESENTATION:
        steps = [step for step in done if step.kind == kind and step.representation]
        if steps:
            have = len({step.representation for step in steps})
            more += measure(steps) / have * max(0, candidates - have)
    shown = _gpu_text if measure is gpu_hours else time_text
    return paragraph(
        f"{finetuned} of {candidates} representations were finetuned, for {shown(spent)}. All of "
        f"them would have cost about {shown(spent + more)}, at the mean of what was run here: "
        f"{percent(more / (spent + more))} was spared."
    )


def _undone(sweep: Sweep, replayed: int) -> str:
    """What the policy would have spared where everything was finetuned."""
    done = sweep.of_state("done")
    finetuned = len(set(sweep.trained()))
    if not finetuned:
        return ""
    measure = gpu_hours if gpu_hours(done) else seconds
    shown = _gpu_text if measure is gpu_hours else time_text
    each = measure(step for step in done if step.kind in ("stage2", "evaluate")) / finetuned
    spared = max(0, finetuned - replayed) * each
    return paragraph(
        f"Everything was finetuned, for {shown(measure(done))}. Replayed on these results the "
        f"policy stops after {replayed} of {finetuned} runs, and spares {shown(spared)} of stage 2 "
        f"and benchmarks: {percent(spared / measure(done))}."
    )


def _planned(sweep: Sweep) -> str:
    """What the plan had counted for both ways; of a small experiment it says nothing."""
    if not sweep.plan or sweep.plan.saving.partial or sweep.plan.saving.all < LEAST_HOURS:
        return ""
    plan, saving = sweep.plan, sweep.plan.saving
    return paragraph(
        f"The plan, before anything ran, counted {saving.all:,.3g} GPU hours for finetuning all "
        f"{plan.candidates:,}, and {saving.policy:,.3g} for the policy's way with "
        f"{saving.runs:.3g} runs ({plan.cost_model} on {plan.gpu})."
    )


def _by_kind(done: list[Step]) -> str:
    kinds = dict.fromkeys(step.kind for step in done)
    with_gpu = bool(gpu_hours(done))
    rows = []
    for kind in kinds:
        steps = [step for step in done if step.kind == kind]
        row = [kind, str(len(steps)), time_text(seconds(steps))]
        row += [number(gpu_hours(steps), 2)] if with_gpu else []
        row += [memory_text(_most(step.peak_memory for step in steps))]
        row += [memory_text(_most(step.peak_gpu_memory for step in steps))] if with_gpu else []
        rows.append(row)
    head = ["kind of step", "steps", "time", *(["GPU hours"] if with_gpu else []), "peak memory"]
    head += ["on a GPU"] if with_gpu else []
    note = "Time is the steps' own, one after another; steps that ran at once overlap."
    return table(head, rows) + soft(note)


def _figure(done: list[Step]) -> str:
    if not shown_steps(done):
        return ""
    unit = "GPU hours" if gpu_hours(done) else "time"
    return figure(
        costs_figure(done),
        f"What each representation cost, {unit} by kind of step",
        "Every bar is a representation, or a tower whose features were computed; 'for all' is what "
        "served every one of them.",
    )


def time_text(value: float) -> str:
    """Seconds in a unit that can be read."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min")):
        if value < limit:
            return f"{value / size:.3g} {unit}"
    return f"{value / 3600:,.1f} h"


def _gpu_text(value: float) -> str:
    return f"{value:,.1f} GPU hours"


def memory_text(value: int | None) -> str:
    """Bytes in GiB; `-` where nobody measured."""
    return "-" if value is None else f"{value / 2**30:.2f} GiB"


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _names(names: list[str]) -> str:
    return ", ".join(map(catalog.display_representation, names)) or "-"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _first_line(text: str | None) -> str:
    return text.strip().splitlines()[0] if text and text.strip() else ""
