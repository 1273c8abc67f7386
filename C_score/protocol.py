"""The protocol of a C score as one text: a number without it is not a number.

It names set, split, average, threshold, matching, grid, frame, features and flip, as in
`spair71k/test/image/bbox/soft5-zero/16x16/anno840/tower/noflip`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from C_score.datasets.frame import ANNO
from C_score.datasets.pairs import PairSet
from C_score.pck import Average
from C_score.score import Options
from C_score.sources import Features


@dataclass(frozen=True)
class Protocol:
    """What every score of one run has in common."""

    pairs: PairSet
    options: Options
    n: int
    """Side of the grid that cells are compared on."""
    average: Average = "image"
    sample: int = 0
    """Pairs drawn of every category; 0: all."""
    only: Sequence[str] = ()
    """The categories that were asked for; empty: all of the set."""

    def text(self, towers: Sequence[Features]) -> str:
        """The protocol of the representation made of `towers`."""
        return "/".join(
            [
                self.pairs.name,
                self._split(),
                self.average,
                self._threshold(),
                str(self.options.match),
                self.grid(towers),
                f"anno{ANNO}",
                self._features(towers),
                self._flip(),
            ]
        )

    def grid(self, towers: Sequence[Features]) -> str:
        """`16x16`; `24x24r16x16` where features of 24 x 24 were resampled to 16 x 16."""
        own = dict.fromkeys(f"{tower.n}x{tower.n}" for tower in towers)
        used = f"{self.n}x{self.n}"
        return used if list(own) == [used] else f"{'+'.join(own)}r{used}"

    def _features(self, towers: Sequence[Features]) -> str:
        """`tower`, `tower+external`; `tower-bfloat16` where the dtype is more than rounding.

        Towers of several such dtypes have them all, in the towers' order.
        """
        found = {tower.origin: [] for tower in towers}
        for tower in towers:
            if tower.dtype:
                found[tower.origin].append(tower.dtype)
        return "+".join(origin + _dtypes(dtypes) for origin, dtypes in found.items())

    def _split(self) -> str:
        """`test`; with the categories and the sample, where not all pairs were scored."""
        parts = [self.pairs.split]
        if self.only:
            parts.append("+".join(sorted(self.only)))
        if self.sample:
            parts.append(f"sample{self.sample}")
        return "-".join(parts)

    def _threshold(self) -> str:
        """`bbox` only where the set has boxes; else the image's side is what alpha multiplies."""
        boxes = any(category.target_box is not None for category in self.pairs.categories)
        return self.options.threshold if boxes else "image"

    def _flip(self) -> str:
        if not self.options.flip:
            return "noflip"
        return "flip" if self.options.mapping == "right" else "flip-reference"


def _dtypes(dtypes: Sequence[str]) -> str:
    """`-bfloat16`; nothing where all are float32."""
    different = set(dtypes)
    if different <= {"float32"}:
        return ""
    return "-" + "+".join(dtypes[:1] if len(different) == 1 else dtypes)
