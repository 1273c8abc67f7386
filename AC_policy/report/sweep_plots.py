"""What a sweep cost, as bars: one for every representation, cut by kind of step."""

from matplotlib import rc_context
from matplotlib.figure import Figure

from AC_policy.report.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, STYLE, as_svg
from AC_policy.report.sweep import Step, gpu_hours, seconds
from llava import catalog

FOR_ALL = "for all"
MOST_BARS = 40
GROUPS = {
    "stage 1": (("stage1",), BLUE),
    "A scores": (("nll", "dump", "cosine"), GREEN),
    "stage 2": (("stage2",), ORANGE),
    "benchmarks": (("evaluate",), PURPLE),
    "features": (("features", "train-features"), RED),
}
"""Label -> (kinds of step, colour); whatever else there is counts as `other`."""
UNITS = ((90.0, 1.0, "seconds"), (5400.0, 60.0, "minutes"), (float("inf"), 3600.0, "hours"))


def shown_steps(steps: list[Step]) -> list[Step]:
    """Steps that took a time that can be seen."""
    return [step for step in steps if step.seconds]


def costs(steps: list[Step]) -> str:
    """Bars of GPU hours where GPUs were used, else of time."""
    by_name: dict[str, list[Step]] = {}
    for step in shown_steps(steps):
        by_name.setdefault(step.representation or FOR_ALL, []).append(step)
    measure = gpu_hours if gpu_hours(steps) else seconds
    names = sorted(by_name, key=lambda name: (name == FOR_ALL, -measure(by_name[name])))
    names = names[:MOST_BARS]
    longest = max(measure(by_name[name]) for name in names)
    size, unit = (1.0, "GPU hours") if measure is gpu_hours else _unit(longest)
    known = {kind for kinds, _ in GROUPS.values() for kind in kinds}
    other = tuple({step.kind: None for step in steps if step.kind not in known})
    with rc_context(STYLE):
        canvas = Figure(figsize=(8.6, 0.26 * len(names) + 1.3), layout="constrained")
        axes = canvas.subplots()
        left = [0.0] * len(names)
        for label, (kinds, colour) in {**GROUPS, "other": (other, GREY)}.items():
            widths = [
                measure([step for step in by_name[name] if step.kind in kinds]) / size
                for name in names
            ]
            if any(widths):
                axes.barh(range(len(names)), widths, 0.7, left, color=colour, label=label)
                left = [start + width for start, width in zip(left, widths, strict=True)]
        shown = [catalog.display_representation(name).replace("$", r"\$") for name in names]
        axes.set_yticks(range(len(names)), shown)
        axes.set_ylim(len(names) - 0.4, -0.6)  # the dearest on top
        axes.set_xlabel(unit)
        canvas.legend(loc="outside upper center", ncols=6, fontsize=8)
        return as_svg(canvas)


def _unit(longest: float) -> tuple[float, str]:
    return next((size, unit) for limit, size, unit in UNITS if longest < limit)
