"""The cosine A score of several towers on the images of one benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from torch import Tensor

from A_score.cosine import ARITHMETICS
from A_score.dumped import DrawnImages, contents_digest
from A_score.tokens import Towers
from llava.errors import LawError, UsageError
from llava.log import get_logger, progress
from llava.model.language_identity import are_different
from llava.results import ResultRow

logger = get_logger("a-score")


@dataclass(frozen=True)
class AScore:
    """What one benchmark gave. T targets, F references, I images."""

    benchmark: str
    targets: list[str]
    references: list[str]
    images: list[str]
    values_TFI: np.ndarray
    """float64: mean over target tokens of the largest cosine to a token of the reference."""
    zero_tokens: dict[str, int]
    """Target -> tokens of length zero, whose cosine counts as 0."""
    arithmetic: str
    towers: Towers
    """Name -> what gave the tokens, of targets and references at least."""
    left_out: int = 0
    """Images that not all towers have."""
    draw: DrawnImages | None = None
    """How the images were chosen, where that is known."""

    @property
    def protocol(self) -> str:
        """What is common to all rows: images, references and how their tokens were made."""
        return self._protocol(self.references)

    @property
    def protocols(self) -> dict[str, str]:
        """Target -> the whole protocol of its row; numbers of different protocols do not compare.

        What else was scored in the same call plays no part in it.
        """
        return {name: self._protocol([name, *self.references]) for name in self.targets}

    def _protocol(self, names: Sequence[str]) -> str:
        references = "+".join(name.replace("/", "--") for name in self.references)
        parts = ["cosine", references, "target-to-reference", self.arithmetic]
        if self.draw is not None:
            of = f"of{len(self.images) + self.left_out}" if self.left_out else ""
            kind = self.draw.source["kind"]
            parts.append(f"{kind}{len(self.images)}{of}-seed{self.draw.seed}")
        origins = self.origins(names)
        parts += [f"{how}-{'+'.join(sorted(details))}" for how, details in origins.items()]
        return "/".join(parts)

    def origins(self, names: Sequence[str]) -> dict[str, set[str]]:
        """How tokens of some towers were made, and the ways in which that differs among them."""
        found: dict[str, set[str]] = {}
        for name in names:
            how, detail = self.towers[name].origin
            if how:
                found.setdefault(how, set()).add(detail)
        return dict(sorted(found.items()))

    @property
    def a_score(self) -> np.ndarray:
        """float64 [T]: mean over references of the mean over images."""
        return self.values_TFI.mean(2).mean(1)

    @property
    def stderr(self) -> np.ndarray:
        """float64 [T]: standard error over images, NaN for a single image."""
        per_image_TI = self.values_TFI.mean(1)
        n = per_image_TI.shape[1]
        if n < 2:
            return np.full(len(self.targets), np.nan)
        return per_image_TI.std(1, ddof=1) / np.sqrt(n)

    def to_json(self) -> dict:
        """Everything, by names; `a_score`, `per_reference` and `n_images` are what others read."""
        names = self.targets
        known = {}
        if self.draw is not None:
            images = {image: self.draw.images[image] for image in self.images}
            known["draw"] = {
                "seed": self.draw.seed,
                "source": self.draw.source,
                "contents": contents_digest(images),
            }

        def by_reference(rows: np.ndarray) -> dict:
            return dict(zip(self.references, rows.tolist(), strict=True))

        return {
            "a_score": dict(zip(names, self.a_score.tolist(), strict=True)),
            "per_reference": {
                name: by_reference(self.values_TFI[t].mean(1)) for t, name in enumerate(names)
            },
            "n_images": len(self.images),
            "stderr": dict(zip(names, self.stderr.tolist(), strict=True)),
            "benchmark": self.benchmark,
            "protocol": self.protocol,
            "protocols": self.protocols,
            "left_out": self.left_out,
            "zero_tokens": {name: self.zero_tokens[name] for name in names},
            "images": self.images,
            "per_image": {name: by_reference(self.values_TFI[t]) for t, name in enumerate(names)},
            "runs": {name: self.towers[name].run_dir for name in names},
            **known,
        }

    def rows(self, run_dir: str = "", commit: str = "") -> list[ResultRow]:
        """One row of the results table for each target; `run_dir` is where a tower names none."""
        protocols = self.protocols
        return [
            ResultRow(
                representation=self.towers[name].representation,
                quantity="A_cosine",
                benchmark=self.benchmark,
                value=float(value),
                unit="fraction",
                stderr=float(error) if np.isfinite(error) else None,
                n=len(self.images),
                protocol=protocols[name],
                seed=None if self.draw is None else self.draw.seed,
                spec_hash=self.towers[name].spec_hash,
                run_dir=self.towers[name].run_dir or run_dir,
                commit=commit,
            )
            for name, value, error in zip(self.targets, self.a_score, self.stderr, strict=True)
        ]


def a_score(
    towers: Towers,
    targets: Sequence[str],
    references: Sequence[str],
    images: Sequence[str],
    *,
    benchmark: str = "",
    arithmetic: str = "float32",
    left_out: int = 0,
    draw: DrawnImages | None = None,
) -> AScore:
    """Scores every target against every reference on `images`.

    Images are the outer loop, so each file is read and normalised once, and no more is in memory
    than the references and one target of one image. Raises UsageError where a target and a
    reference are of different language models.
    """
    for target, reference in product(targets, references):
        same_language_model(towers, target, reference)
    values_TFI = np.empty((len(targets), len(references), len(images)))
    zero_tokens = dict.fromkeys(targets, 0)
    way = ARITHMETICS[arithmetic]
    for i, image in enumerate(
        progress(images, f"A score, {benchmark}" if benchmark else "A score")
    ):
        prepared = {name: way.prepare(towers[name].read(image)) for name in references}
        for t, name in enumerate(targets):
            target_TC = (
                prepared[name] if name in prepared else way.prepare(towers[name].read(image))
            )
            zero_tokens[name] += int((target_TC == 0).all(1).sum())
            for f, reference in enumerate(references):
                same_width(towers, image, {name: target_TC, reference: prepared[reference]})
                values_TFI[t, f, i] = way.compare(target_TC, prepared[reference])
    for name, count in zero_tokens.items():
        if count:
            logger.warning("%s: %d tokens are all zero; their cosine counts as 0", name, count)
    score = AScore(
        benchmark=benchmark,
        targets=list(targets),
        references=list(references),
        images=list(images),
        values_TFI=values_TFI,
        zero_tokens=zero_tokens,
        arithmetic=arithmetic,
        towers=towers,
        left_out=left_out,
        draw=draw,
    )
    for how, details in score.origins([*targets, *references]).items():
        if len(details) > 1:
            ways = ", ".join(sorted(details))
            logger.warning("%s: tokens are %s in different ways: %s", benchmark, how, ways)
    return score


def same_language_model(towers: Towers, target: str, reference: str) -> None:
    """UsageError where projectors of different language models gave the tokens."""
    models = [towers[name].language_model for name in (target, reference)]
    if are_different(*models):
        raise UsageError(
            f"{target} was projected for the language model {models[0]} and the reference "
            f"{reference} for {models[1]}, whose tokens do not compare; name --targets and "
            "--references of one language model, one call for each"
        )


def same_width(towers: Towers, image: str, tokens: Mapping[str, Tensor]) -> None:
    """LawError naming both files and widths, where tokens to be compared differ in width."""
    widths = {name: tokens_NC.shape[1] for name, tokens_NC in tokens.items()}
    if len(set(widths.values())) > 1:
        (target, width), (reference, other) = widths.items()
        raise LawError(
            f"{towers[target].where(image)} is {width} wide and {towers[reference].where(image)} "
            f"{other}; the A score is of tokens after each tower's projector, which are as wide as "
            f"the language model for every tower"
        )
