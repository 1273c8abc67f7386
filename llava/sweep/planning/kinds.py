"""Steps of a sweep by kind: how many, GPU hours and disk, before the policy and by its end."""

import math
from dataclasses import dataclass

from llava.sweep.config import Policy, SweepConfig
from llava.sweep.kinds import WITHOUT_GPU
from llava.sweep.planning.facts import facts
from llava.sweep.planning.items import Basis, Item


@dataclass(frozen=True)
class Amount:
    """Some steps of one kind."""

    steps: float
    hours: float
    """Of GPUs, of the steps whose hours are known."""
    disk: float
    """Bytes that they leave, of those where that is known."""


@dataclass(frozen=True)
class Kind:
    """All steps of one kind."""

    name: str
    gpus: int
    """That one step takes; 0: it runs on the CPU."""
    before: Amount
    """What must run before the policy is asked."""
    expected: Amount
    """By the time when the policy is expected to stop."""
    most: Amount
    """If it never stops before the sweep's limits."""
    least_hours: float | None
    """Of one step; None where none is known."""
    most_hours: float | None
    unknown: int
    """Steps whose hours are not known."""
    unknown_disk: int


@dataclass(frozen=True)
class Total:
    """All kinds together."""

    steps: float
    hours: float
    """Of GPUs."""
    days: float
    """If one step runs at a time, each on its GPUs."""
    disk: float
    """Bytes."""
    partial: bool
    """Whether there are steps whose hours are not known, which count nothing."""
    partial_disk: bool


def expected_runs(policy: Policy, candidates: int, benchmarks: int) -> float:
    """How many candidates are finetuned until the policy stops."""
    if policy.stage2 == "all":
        return candidates
    known = facts().runs["ours"]
    runs = known.mean if benchmarks == 1 else known.together
    if policy.at_once > 1:
        runs = math.ceil(runs / policy.at_once) * policy.at_once
    return min(runs, candidates, policy.most_stage2 or candidates)


def kinds_of(basis: Basis, policy: Policy) -> list[Kind]:
    """Every kind of step that the sweep has, in the order of its graph."""
    config, count = basis.config, len(basis.candidates)
    runs = expected_runs(policy, count, len(basis.benchmarks))
    at_first = [v for v in basis.aligned if v.name in basis.first]
    aligned = len(at_first)
    more = len(basis.aligned) - aligned
    limit = policy.most_stage1
    room = more if limit is None else max(0, min(more, limit - aligned))
    extra = min(runs, room) if policy.stage1 == "policy" else 0
    finetuned = count if policy.stage2 == "all" else min(count, policy.most_stage2 or count)
    before = count if policy.stage2 == "all" else 0

    def fixed(name: str, items: list[Item], at_once: list[Item] | None = None) -> Kind:
        """Steps that are run whatever the policy asks for."""
        first = total_of(items if at_once is None else at_once)
        return _kind(config, name, items, first, total_of(items), total_of(items))

    def measured(name: str, items: list[Item], at_once: list[Item], rest: list[Item]) -> Kind:
        """Some at first, and of the rest what the policy asks for."""
        first = total_of(at_once)
        grown = (_plus(first, _some(rest, extra)), _plus(first, _largest(rest, room)))
        return _kind(config, name, items, first, *grown)

    def chosen(name: str, items: list[Item]) -> Kind:
        """Steps of what is finetuned."""
        grown = (_some(items, runs), _largest(items, finetuned))
        return _kind(config, name, items, _some(items, before), *grown)

    def split(name: str, items: list[Item]) -> Kind:
        """`measured`, of items by their names."""
        now = [item for item in items if item.name in basis.first]
        later = [item for item in items if item.name not in basis.first]
        return measured(name, items, now, later)

    made = [fixed("features", basis.features()), fixed("c-score", basis.c_score())]
    if config.features:
        items = basis.train_features(basis.aligned)
        made.append(fixed("train-features", items, basis.train_features(at_first)))
    made.append(split("stage1", basis.stage1()))
    if config.alignment.nll:
        made.append(split("nll", basis.nll()))
    if config.alignment.cosine:
        made += [split("dump", basis.dump()), split("cosine", basis.cosine())]
    return [*made, chosen("stage2", basis.stage2()), chosen("evaluate", basis.evaluate())]


def _kind(
    config: SweepConfig,
    name: str,
    items: list[Item],
    before: Amount,
    expected: Amount,
    most: Amount,
) -> Kind:
    hours = [item.hours for item in items if item.hours is not None]
    gpus = config.launch.gpus_per_step.get(name, 1) if name not in WITHOUT_GPU else 0
    return Kind(
        name=name,
        gpus=gpus,
        before=before,
        expected=expected,
        most=most,
        least_hours=min(hours, default=None),
        most_hours=max(hours, default=None),
        unknown=len(items) - len(hours),
        unknown_disk=sum(item.disk is None for item in items),
    )


def total_of(items: list[Item]) -> Amount:
    """All of these steps."""
    return Amount(len(items), sum(i.hours or 0.0 for i in items), sum(i.disk or 0.0 for i in items))


def _some(items: list[Item], count: float) -> Amount:
    """`count` steps of the mean size; of those whose hours are known."""
    if not items or not count:
        return Amount(0, 0.0, 0.0)
    known = [item.hours for item in items if item.hours is not None]
    hours = sum(known) / len(known) if known else 0.0
    sizes = [item.disk for item in items if item.disk is not None]
    return Amount(count, count * hours, count * sum(sizes) / max(1, len(sizes)))


def _largest(items: list[Item], count: int) -> Amount:
    """The `count` longest steps' hours and the largest ones' disk."""
    hours = sorted((item.hours or 0.0 for item in items), reverse=True)[:count]
    sizes = sorted((item.disk or 0.0 for item in items), reverse=True)[:count]
    return Amount(min(count, len(items)), sum(hours), sum(sizes))


def _plus(one: Amount, other: Amount) -> Amount:
    return Amount(one.steps + other.steps, one.hours + other.hours, one.disk + other.disk)


def together(kinds: list[Kind], when: str) -> Total:
    """All kinds by one of their amounts: `before`, `expected` or `most`."""
    amounts = [(kind, getattr(kind, when)) for kind in kinds]
    return Total(
        steps=sum(amount.steps for _, amount in amounts),
        hours=sum(amount.hours for _, amount in amounts),
        days=sum(amount.hours / max(1, kind.gpus) for kind, amount in amounts) / 24,
        disk=sum(amount.disk for _, amount in amounts),
        partial=any(kind.unknown and amount.steps for kind, amount in amounts),
        partial_disk=any(kind.unknown_disk and amount.steps for kind, amount in amounts),
    )
