"""What a C score says: as JSON, as rows of a results table, as text."""

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from C_score.combinations import joined_name
from C_score.pck import Average, Sums
from C_score.protocol import Protocol
from C_score.score import CategoryScore
from C_score.sources import Features
from llava.results_schema import ResultRow

AVERAGES: tuple[Average, ...] = ("image", "keypoint")


@dataclass(frozen=True)
class Run:
    """One pass over the pairs: S representations, a row of every category's sums each."""

    protocol: Protocol
    categories: Sequence[CategoryScore]

    @functools.cached_property
    def scored(self) -> list[CategoryScore]:
        """The categories with at least one pair that can be scored."""
        return [category for category in self.categories if category.all.pairs]

    @property
    def empty(self) -> list[str]:
        """The categories without one."""
        return [category.name for category in self.categories if not category.all.pairs]

    @functools.cached_property
    def skipped(self) -> dict[str, str]:
        """Pair -> why it is not scored."""
        why = "no keypoint is shown by both images"
        none = {pair: why for category in self.categories for pair in category.skipped}
        return {**self.protocol.pairs.skipped, **none}

    @property
    def n_skipped(self) -> int:
        """How many pairs are not scored; one that a sample drew twice counts twice."""
        here = sum(len(category.skipped) for category in self.categories)
        return here + len(self.protocol.pairs.skipped)

    @functools.cached_property
    def totals(self) -> dict[str, Sums]:
        """Sums over all categories, of `all`, `geo_pairs` and `geo_points`."""
        return {
            kind: functools.reduce(operator.add, (getattr(c, kind) for c in self.categories))
            for kind in ("all", "geo_pairs", "geo_points")
        }


@dataclass(frozen=True)
class Report:
    """The C score of one representation of a run."""

    run: Run
    row: int
    model: str
    """As the user wrote it; for a combination the towers' names joined by '+'."""
    towers: Sequence[Features]
    replace: Mapping[str, str] = field(default_factory=dict)
    """A tower's name -> where the weights of its features were read from."""

    @functools.cached_property
    def representation(self) -> str:
        """What results tables call it."""
        return joined_name(self.towers, self.replace)

    @property
    def protocol(self) -> str:
        """The whole protocol as text."""
        return self.run.protocol.text(self.towers)

    def pck(self, sums: Sums, average: Average) -> dict[str, float] | None:
        """{"0.10": fraction, ...}; None where there is nothing to average."""
        return self._by_alpha(sums.mean(average))

    def _by_alpha(self, values_SA: np.ndarray | None) -> dict[str, float] | None:
        if values_SA is None:
            return None
        return dict(zip(self.alphas, values_SA[self.row].tolist(), strict=True))

    def stderr(self, sums: Sums) -> dict[str, float] | None:
        """Standard error of the protocol's average, a fraction; None below two pairs."""
        return self._by_alpha(sums.stderr(self.run.protocol.average))

    @property
    def headline(self) -> float:
        """The C score: overall PCK at the first alpha, a fraction."""
        mean_SA = self.run.totals["all"].mean(self.run.protocol.average)
        return float(mean_SA[self.row, 0])

    @property
    def alphas(self) -> list[str]:
        """0.10, 0.05, 0.01 as the keys that JSON files have."""
        return [f"{alpha:.2f}" for alpha in self.run.protocol.pairs.alphas]

    def averaged(self, average: Average) -> dict:
        """`overall` and `per_category` by one of the two averages."""
        return {
            "overall": self.pck(self.run.totals["all"], average),
            "per_category": {c.name: self.pck(c.all, average) for c in self.run.scored},
        }

    def to_json(self) -> dict:
        """Everything, PCK as fractions."""
        total = self.run.totals["all"]
        return {
            "model": self.model,
            "representation": self.representation,
            "protocol": self.protocol,
            "spec_hash": self.spec_hash,
            "n_pairs": total.pairs,
            "n_keypoints": total.points,
            "n_skipped": self.run.n_skipped,
            **self.averaged(self.run.protocol.average),
            "stderr": self.stderr(total),
            "geo": self._geo(),
            "averages": {name: self.averaged(name) for name in AVERAGES},
            "categories": {
                category.name: {
                    "n_pairs": category.all.pairs,
                    "n_keypoints": category.all.points,
                    "n_skipped": len(category.skipped),
                }
                for category in self.run.categories
            },
            "skipped": self.run.skipped,
        }

    def _geo(self) -> dict:
        """The geo-aware subset, over pairs and over points; null where the set has none."""
        pairs, points = self.run.totals["geo_pairs"], self.run.totals["geo_points"]
        return {
            "per_image": self.pck(pairs, "image"),
            "per_keypoint": self.pck(points, "keypoint"),
            "n": points.points,
            "n_pairs": pairs.pairs,
            "mapping": self.run.protocol.options.mapping,
            "per_category": {
                category.name: {
                    "per_image": self.pck(category.geo_pairs, "image"),
                    "per_keypoint": self.pck(category.geo_points, "keypoint"),
                    "n": category.geo_points.points,
                    "n_pairs": category.geo_pairs.pairs,
                }
                for category in self.run.scored
                if category.geo_pairs.pairs
            },
        }

    @property
    def spec_hash(self) -> str:
        """The hashes of the towers' specs joined by '+'; empty where files have none."""
        hashes = [tower.spec_hash for tower in self.towers]
        return "+".join(hashes) if all(hashes) else ""

    def rows(self, run_dir: str, commit: str) -> list[ResultRow]:
        """`C_pck` is PCK at the first alpha, 0.10; `C_pck_0.05` and so on the others.

        `C_pck_geo` is the geo-aware PCK at the first alpha, where the set has such points.
        """
        average, total = self.run.protocol.average, self.run.totals["all"]
        geo = self.run.totals["geo_pairs" if average == "image" else "geo_points"]
        text = self.protocol
        first, *others = self.alphas
        found = [("C_pck", total, first), *((f"C_pck_{alpha}", total, alpha) for alpha in others)]
        if geo.pairs:
            found.append(("C_pck_geo", geo, first))
        listed = "/geo-reference" if self.run.protocol.options.mapping == "reference" else ""
        rows = []
        for quantity, sums, alpha in found:
            error = self.stderr(sums)
            rows.append(
                ResultRow(
                    representation=self.representation,
                    quantity=quantity,
                    benchmark=self.run.protocol.pairs.name,
                    value=100 * self.pck(sums, average)[alpha],
                    unit="percent",
                    stderr=100 * error[alpha] if error else None,
                    n=sums.pairs if average == "image" else sums.points,
                    protocol=text + (listed if sums is geo else ""),
                    spec_hash=self.spec_hash,
                    run_dir=run_dir,
                    commit=commit,
                )
            )
        return rows


def predictions(report: Report) -> list[dict]:
    """One entry per scored pair: where each of its keypoints went, and where it should have.

    Coordinates are x, y in the 840 frame. `scored` is false for a keypoint that not both images
    show; its prediction means nothing.
    """
    pairs, found = report.run.protocol.pairs, []
    for category, score in zip(pairs.categories, report.run.categories, strict=True):
        detail = score.detail
        for p in np.flatnonzero(detail.points_P):
            found.append(
                {
                    "pair": category.pairs[p],
                    "category": category.name,
                    "source": pairs.pictures[category.source[p]].name,
                    "target": pairs.pictures[category.target[p]].name,
                    "keypoints": list(category.slots),
                    "scored": detail.scored_PK[p].tolist(),
                    "predicted": detail.predicted_SPK2[report.row, p].tolist(),
                    "true": category.target_kps[p, :, :2].tolist(),
                    "threshold_px": float(category.threshold_px[p]),
                    "pck": (detail.hits_SPA[report.row, p] / detail.points_P[p]).tolist(),
                }
            )
    return found
