"""A plan as text of 100 columns, for a person who has to decide on a budget."""

import textwrap

from llava.costs import published_saving
from llava.sweep.planning.facts import facts
from llava.sweep.planning.kinds import Amount, Kind, Total
from llava.sweep.planning.plan import Each, Memory, Plan

WIDTH = 100
LISTED = 20
"""Representations that are listed one by one; of more, none."""
WHEN = {"before": "before policy", "expected": "expected", "most": "at most"}


def as_text(plan: Plan) -> str:
    """The plan, ending in a newline."""
    parts = [_head(plan), _table(plan)]
    if len(plan.each) <= LISTED and any(each.stage2 for each in plan.each):
        parts.append(_each(plan))
    parts += [_needs(plan)] * bool(plan.memory) + [_saving(plan)]
    for title, lines in (("Not in the sums", plan.left_out), ("Rests on", plan.notes)):
        parts.append([title, *(line for text in lines for line in _item(text))])
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(plan: Plan) -> list[str]:
    model = "FLOPs"
    if plan.cost_model != "flops":
        model = f"cost model '{plan.cost_model}' (stages 1 and 2) and FLOPs (all else)"
    lines = [
        f"{plan.name}: {plan.candidates:,} representations of {plan.towers} towers, {plan.llm}",
        f"GPU hours of {plan.gpu}, by {model}",
        "",
    ]
    if plan.decided:
        lines += [
            f"before the policy is asked{_budget(plan.before)}",
            f"expected                  {_budget(plan.expected)}",
            f"at most                   {_budget(plan.most)}",
        ]
    else:
        lines.append(f"all is finetuned          {_budget(plan.most)}")
    if plan.most.partial or plan.most.partial_disk:
        lines.append("> and ?: some of it is not known, see 'Not in the sums'")
    return lines + [line for text in plan.problems for line in _item(f"WRONG: {text}", 0)]


def _budget(total: Total) -> str:
    disk = _known(size(total.disk), total.disk, total.partial_disk)
    spent = _known(days(total.days), total.hours, total.partial)
    return f"{_hours(total):>10} GPU h{spent:>16} in turn{disk:>12} of disk"


def _hours(total: Total) -> str:
    return _known(hours(total.hours), total.hours, total.partial)


def _known(shown: str, value: float, partial: bool) -> str:
    """`> 3.4` or `?` where something is missing in a sum."""
    if not partial:
        return shown
    return f"> {shown}" if value else "?"


def _table(plan: Plan) -> list[str]:
    columns = list(WHEN) if plan.decided else ["most"]
    titles = [WHEN[name] if plan.decided else "all" for name in columns]
    rows = [
        f"{'':15}{'GPUs':>4}{'one step':>16}" + "".join(f"{title:>17}" for title in titles),
        f"{'step':15}{'each':>4}{'GPU h':>16}"
        + f"{'n':>7}{'GPU h':>10}" * len(columns)
        + f"{'disk':>10}",
    ]
    for kind in plan.kinds:
        cells = "".join(_cells(kind, getattr(kind, name)) for name in columns)
        disk = size(kind.expected.disk) if kind.expected.disk else "?" * bool(kind.unknown_disk)
        row = f"{kind.name:15}{kind.gpus or 'CPU':>4}{_one(kind):>16}{cells}{disk:>10}"
        rows.append(row.rstrip())
    totals: list[Total] = [getattr(plan, name) for name in columns]
    cells = "".join(f"{count(total.steps):>7}{_hours(total):>10}" for total in totals)
    disk = _known(size(plan.expected.disk), plan.expected.disk, plan.expected.partial_disk)
    return [*rows, f"{'together':35}{cells}{disk:>10}"]


def _cells(kind: Kind, amount: Amount) -> str:
    if not kind.gpus:
        return f"{count(amount.steps):>7}{'':>10}"
    known = kind.least_hours is not None
    return f"{count(amount.steps):>7}{hours(amount.hours) if known else '?':>10}"


def _one(kind: Kind) -> str:
    if not kind.gpus:
        return ""
    if kind.least_hours is None:
        return "?"
    least, most = hours(kind.least_hours), hours(kind.most_hours)
    return least if least == most else f"{least} to {most}"


def _each(plan: Plan) -> list[str]:
    rows = [f"{'each, GPU h':40}{'tokens':>8}{'stage 1':>10}{'stage 2':>10}{'benchmarks':>12}"]
    for each in plan.each:
        cells = f"{_or(each.stage1):>10}{_or(each.stage2):>10}{_or(each.evaluate):>12}"
        rows.append(f"{_short(each, 38):40}{each.tokens or '?':>8}{cells}")
    return rows


def _short(named: Each | Memory, width: int) -> str:
    """The name, cut where it is long."""
    return named.shown if len(named.shown) <= width else f"{named.shown[: width - 3]}..."


def _or(value: float | None) -> str:
    return "?" if value is None else hours(value)


def _needs(plan: Plan) -> list[str]:
    lines = ["Memory of a GPU, and disk"]
    for memory in plan.memory:
        lines += _item(_memory(plan, memory))
    if plan.writing:
        lines += _item(f"{size(plan.writing)} more of disk while a checkpoint is written")
    return lines


def _memory(plan: Plan, memory: Memory) -> str:
    parts = ", ".join(f"{name} {size(value)}" for name, value in memory.parts.items() if value)
    fits = (
        "fits" if 1.1 * memory.bytes < plan.gpu_memory else "DOES NOT FIT; take less batch, or ZeRO"
    )
    return (
        f"{memory.stage}: {size(memory.bytes)} of {size(plan.gpu_memory)} on each of "
        f"{memory.gpus}, {fits}. {_short(memory, 60)}: {parts}"
    )


def _saving(plan: Plan) -> list[str]:
    saving, own, paper = plan.saving, facts().runs["ours"], facts().runs["published"]
    share = saving.share
    told = "" if share is None else f": {100 * share:.1f} % saved"
    if saving.partial:
        told += ", if what is not known took nothing"
    if not plan.decided:
        told += ". This sweep finetunes all; `policy: {stage2: policy}` would save it"
    further = hours(saving.further) if saving.further else "?"
    sums = [
        f"finetuning all {plan.candidates:,}: stage 1 {hours(saving.all_stage1)} + stage 2 "
        f"{hours(saving.all_stage2)} + benchmarks {hours(saving.all_evaluate)} = "
        f"{hours(saving.all)} GPU h",
        f"by the policy: scores {hours(saving.scores)} + stage 1 {hours(saving.stage1)} "
        f"({count(saving.stage1_runs)} runs) + stage 2 {hours(saving.stage2)} "
        f"({count(saving.runs)} runs) + benchmarks {hours(saving.evaluate)} = "
        f"{hours(saving.policy)} GPU h{told}",
    ]
    texts = [
        *(sums if saving.all else ["GPU hours are not known yet"]),
        f"{count(saving.runs)} runs is what is expected: of {own.candidates} settings the policy "
        f"finetunes {own.mean:.1f} for one benchmark, {own.together} for several ({own.source}); "
        f"in another space that is an assumption, and each further run takes {further} GPU h. "
        f"Published: {paper.mean:g} of {paper.candidates} ({paper.source})",
    ]
    published = published_saving()
    texts.append(f"the published {100 * published.saved:.1f} % ({published.source}) may be")
    lines = ["What the policy saves", *(line for text in texts for line in _item(text))]
    return [*lines, *(line for text in published.lines() for line in _item(text, 4))]


def _item(text: str, indent: int = 2) -> list[str]:
    """A line of a list, broken at the width."""
    start = " " * indent
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{start}- ",
        subsequent_indent=f"{start}  ",
        break_on_hyphens=False,
    )


def count(value: float) -> str:
    """Steps: whole, or of a mean with one digit."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def hours(value: float) -> str:
    """GPU hours with two digits or more."""
    if value < 0.01:
        return "<0.01" if value else "0"
    return f"{value:.2f}" if value < 1 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def days(value: float) -> str:
    """A time on the clock."""
    return f"{24 * value:.1f} hours" if value < 2 else f"{value:,.1f} days"


def size(value: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB" if value < 999.5 else f"{value:,.0f} TB"
