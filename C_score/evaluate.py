"""From names to reports: finds the features, scores what shares a grid in one pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from C_score.combinations import all_combinations, membership
from C_score.datasets.pairs import PairSet
from C_score.lookup import find_towers, scored_pictures
from C_score.pck import Average
from C_score.protocol import Protocol
from C_score.report import Report, Run
from C_score.score import Options, score
from C_score.sources import common_grid
from llava.errors import LawError, UsageError


@dataclass(frozen=True)
class Request:
    """What is asked of a set of pairs; the defaults are the published protocol."""

    models: Sequence[str]
    """Names; '+' joins towers."""
    features: Path
    """Folder of the feature files, or the feature store."""
    options: Options = field(default_factory=Options)
    average: Average = "image"
    sample: int = 0
    """As given to `read_pairs`, for the protocol."""
    only: Sequence[str] = ()
    """As the categories given to `read_pairs`, for the protocol."""
    resample: int | None = None
    """Side of the grid that all features are brought to."""
    num_patches: int | None = None
    """Side of the grid that the caller expects; another one in the features is an error."""
    frame: str = "tower"
    """Feature protocol of what is read from a store."""
    dtype: str | None = None
    """Of what is read from a store, where it holds several."""
    combine: bool = False
    """Score every combination of the towers of all models."""
    detail: bool = False
    """Keep predictions."""
    replace: Mapping[str, str] = field(default_factory=dict)
    """A tower's name -> where the weights of its features were read from."""


def evaluate(pairs: PairSet, request: Request) -> list[Report]:
    """One report per model, in their order, or per combination of their towers.

    Raises UsageError for names and grids that cannot be meant, LawError for features or pairs that
    are missing or damaged.
    """
    pictures = scored_pictures(pairs)
    if not pictures:
        raise LawError(
            "no pair has a keypoint that both of its images show, so there is nothing to score; "
            "check the annotations, or the columns of the CSV"
        )
    towers, subsets = find_towers(
        request.models,
        request.features,
        pictures,
        protocol=request.frame,
        dtype=request.dtype,
        flip=request.options.flip,
        replace=request.replace,
    )
    for tower in towers:
        if request.num_patches not in (None, tower.n):
            raise UsageError(
                f"NUM_PATCHES is {request.num_patches}, but the features of {tower.name} are on a "
                f"grid of {tower.n} x {tower.n} ({tower.where(pictures[0])}); set NUM_PATCHES: "
                f"{tower.n}, or extract them at another size"
            )
    names = list(request.models)
    if request.combine:
        subsets = all_combinations(len(towers))
        names = ["+".join(towers[t].name for t in subset) for subset in subsets]
        common_grid(towers, request.resample)
    sides = [common_grid([towers[t] for t in subset], request.resample) for subset in subsets]
    found: dict[int, Report] = {}
    for n in dict.fromkeys(sides):
        rows = [i for i, side in enumerate(sides) if side == n]
        used = sorted({t for i in rows for t in subsets[i]})
        places = [[used.index(t) for t in subsets[i]] for i in rows]
        categories = score(
            pairs,
            [towers[t] for t in used],
            membership(places, len(used)),
            n,
            request.options,
            request.detail,
        )
        protocol = Protocol(
            pairs, request.options, n, request.average, request.sample, request.only
        )
        run = Run(protocol, categories)
        for row, i in enumerate(rows):
            parts = [towers[t] for t in subsets[i]]
            found[i] = Report(run, row, names[i], parts, request.replace)
    return [found[i] for i in range(len(subsets))]


def check_models(models: Sequence[str], combine: bool) -> None:
    """Raises UsageError for a model given twice, or a single one to be combined."""
    twice = next((model for i, model in enumerate(models) if model in models[:i]), None)
    if twice:
        raise UsageError(f"--model {twice} is given twice")
    if combine and len(models) == 1 and "+" not in models[0]:
        raise UsageError("--all-combinations needs two towers or more: repeat --model")
