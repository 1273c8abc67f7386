"""A run by one of the reference's YAML files: its keys, its log lines, its folder of results.

The score is that of `law c-score`. Two things differ: predictions are written as result.json, not
as a pickle, and the keys of the reference's trained post-processor are refused.
"""

import argparse
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeVar

from C_score.datasets import read_pairs
from C_score.datasets.frame import ANNO
from C_score.evaluate import Request, evaluate
from C_score.matching import Match
from C_score.pck import Sums
from C_score.report import Report, predictions
from C_score.score import Options
from llava.config import load, read_yaml
from llava.errors import ConfigError
from llava.files import ensure_writable, write_json
from llava.log import get_logger

logger = get_logger("c-score")

DATA = {
    "spair": ("spair", Path("data/SPair-71k")),
    "pascal": ("pfpascal", Path("data/PF-dataset-PASCAL")),
    "ap10k": ("ap10k", Path("data/ap-10k")),
}
"""EVAL_DATASET -> (our name, folder below the current one)."""

AP10K_SPLITS = {
    "intra-species": "test",
    "cross-species": "test_cross_species",
    "cross-family": "test_cross_family",
}

TRAINING = {
    *("SAMPLE", "EPOCH", "BZ", "LR", "WD", "SCHEDULER", "SCHEDULER_P1", "EVAL_EPOCH", "LOAD"),
    *("DENSE_OBJ", "GAUSSIAN_AUGMENT", "FEAT_MAP_DROPOUT", "PROJ_DIM", "PAIR_AUGMENT"),
    *("SELF_CONTRAST_WEIGHT", "SOFT_TRAIN_WINDOW"),
}
"""Keys of the reference that only its training reads."""

FOLDER = "pck_train_{note}_sample_1_None_lr_0.00125"
"""As the reference names it with its defaults of SAMPLE, EPOCH and LR."""

SLOTS = {"spair": 30, "pascal": 20, "ap10k": 17}
"""Keypoint ids of a set: rows of a pair's predictions."""


@dataclass(frozen=True, kw_only=True)
class Config(ABC):
    """The reference's keys and their defaults, as its evaluation reads them."""

    NOTE: str = ""
    DO_EVAL: bool = False
    DUMMY_NET: bool = False
    EVAL_DATASET: Literal["spair", "pascal", "ap10k"] = "spair"
    TRAIN_DATASET: Literal["spair", "pascal", "ap10k"] = "spair"
    """No effect here; in the reference it decides how the overall line is labelled."""
    AP10K_EVAL_SUBSET: Literal["intra-species", "cross-species", "cross-family"] = "intra-species"
    TEST_SAMPLE: int = 20
    """Pairs drawn of every category, with replacement; 0: all, the benchmark."""
    TOTAL_SAVE_RESULT: int = 0
    """Pairs whose matches are drawn."""
    IMG_THRESHOLD: bool = False
    KPT_RESULT: bool = False
    COMPUTE_GEOAWARE_METRICS: bool = False
    GEO_MAPPING: Literal["right", "reference"] = "right"
    """Ours: `reference` repeats the reference's wrong mapping from ids to columns."""
    ADAPT_FLIP: bool = False
    MUTUAL_NN: bool = False
    SOFT_EVAL: bool = False
    SOFT_EVAL_WINDOW: int = 7
    NUM_PATCHES: int | None = None
    ENSEMBLE: int = 1
    """Above 1 the features are in `features_ensemble<k>`."""
    ANNO_SIZE: int = ANNO
    SEED: int = 42
    """No effect: nothing that is evaluated is drawn by it."""
    NOT_WANDB: bool = True
    """No effect: nothing is sent anywhere."""

    def __post_init__(self):
        refused = {
            "DO_EVAL": (
                not self.DO_EVAL,
                "false asks to train the reference's post-processor, which is not part of the C "
                "score; set DO_EVAL: true",
            ),
            "DUMMY_NET": (
                not self.DUMMY_NET,
                "false asks for the reference's trained post-processor; the C score takes features "
                "as they are; set DUMMY_NET: true",
            ),
            "MUTUAL_NN": (
                self.ADAPT_FLIP and not self.MUTUAL_NN,
                "without it the reference's adaptive flip compares segmentation masks, which is "
                "not offered; set MUTUAL_NN: true",
            ),
            "ANNO_SIZE": (
                self.ANNO_SIZE != ANNO,
                f"is {self.ANNO_SIZE}; keypoints are compared in a frame of {ANNO} pixels",
            ),
            "ENSEMBLE": (self.ENSEMBLE < 1, f"is {self.ENSEMBLE}; expected 1 or more"),
        }
        for key, (wrong, why) in refused.items():
            if wrong:
                raise ValueError(f"{key}: {why}")

    @property
    @abstractmethod
    def models(self) -> list[str]:
        """The names of the features that are concatenated."""


C = TypeVar("C", bound=Config)


def read_config(cls: type[C], path: Path) -> C:
    """The configuration in a YAML file; ConfigError says which key is wrong and why."""
    given = read_yaml(path)
    keys = list(given) if isinstance(given, dict) else []
    for key in keys:
        if key in TRAINING:
            raise ConfigError(
                f"{path}: {key}: is of the reference's training; the C score takes features as "
                f"they are, so leave the key out"
            )
    for key, script in (("MODEL", "pck_train.py"), ("MODEL1", "pck_train_two.py")):
        if key in keys and key not in cls.__dataclass_fields__:
            raise ConfigError(f"{path}: has {key}: type `python {script} --config {path}`")
    return load(cls, path)


def main(cls: type[Config], argv: list[str] | None, doc: str) -> None:
    """Runs the evaluation that a YAML file selects, from the current folder."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, metavar="YAML")
    run(read_config(cls, parser.parse_args(argv).config))


def run(config: Config) -> Report:
    """Scores, logs as the reference does, and writes result.log and result.json."""
    folder = Path(f"results_{config.EVAL_DATASET}") / FOLDER.format(note=config.NOTE)
    ensure_writable(folder / "result.json")
    dataset, data = DATA[config.EVAL_DATASET]
    # the reference samples neither PF-Pascal nor, in its benchmark's configurations, anything
    sample = 0 if config.EVAL_DATASET == "pascal" else config.TEST_SAMPLE
    if sample:
        logger.warning(
            "TEST_SAMPLE %d: so many pairs of each category, drawn with replacement; the benchmark "
            "is TEST_SAMPLE: 0",
            sample,
        )
    split = AP10K_SPLITS[config.AP10K_EVAL_SUBSET] if dataset == "ap10k" else "test"
    pairs = read_pairs(dataset, data, split, sample=sample)
    (report,) = evaluate(pairs, _request(config, data, sample))
    lines = log_lines(report, config)
    _write_log(folder / "result.log", [str(config), *lines])
    for line in lines:
        print(line)
    entries = [_entry(found, report, SLOTS[config.EVAL_DATASET]) for found in predictions(report)]
    write_json(folder / "result.json", {"score": report.to_json(), "pairs": entries})
    logger.info("written: %s and result.log beside it", folder / "result.json")
    if config.TOTAL_SAVE_RESULT:
        from C_score.show import draw_reports

        for path in draw_reports([report], config.TOTAL_SAVE_RESULT, folder):
            logger.info("drawn: %s", path)
    return report


def _request(config: Config, data: Path, sample: int) -> Request:
    return Request(
        models=["+".join(config.models)],
        features=data
        / ("features" if config.ENSEMBLE == 1 else f"features_ensemble{config.ENSEMBLE}"),
        options=Options(
            match=Match(config.SOFT_EVAL_WINDOW if config.SOFT_EVAL else None),
            threshold="image" if config.IMG_THRESHOLD else "bbox",
            flip=config.ADAPT_FLIP,
            mapping=config.GEO_MAPPING,
        ),
        average="keypoint" if config.KPT_RESULT else "image",
        sample=sample,
        num_patches=config.NUM_PATCHES,
        detail=True,
    )


def log_lines(report: Report, config: Config) -> list[str]:
    """The reference's lines: one per category, the overall one, the geo-aware ones."""
    average = report.run.protocol.average
    kind = "image" if average == "image" else "kpt"
    lines = []
    for category in report.run.scored:
        pck = [f"{100 * value:.2f}%" for value in report.pck(category.all, average).values()]
        named = zip(report.alphas, pck, strict=True)
        lines.append(
            f"{category.name}: "
            + ", ".join(f"PCK-Transfer@{alpha}: {text}" for alpha, text in named)
        )
    for name in report.run.empty:
        lines.append(f"{name}: no pair has a keypoint that both images show")
    lines.append(_weighted(report, report.run.totals["all"], f"Per {kind}", kind))
    geo = report.run.totals["geo_pairs" if average == "image" else "geo_points"]
    if config.COMPUTE_GEOAWARE_METRICS and geo.pairs:
        totals, scored = report.run.totals, report.run.scored
        images = sum(c.geo_points.pairs / c.all.pairs for c in scored) / len(scored)
        points = totals["geo_points"].points / totals["all"].points
        lines.append(
            f"Average images geo-aware occurrence: {100 * images:.2f}%, "
            f"Average points geo-aware occurrence: {100 * points:.2f}%"
        )
        lines.append(_weighted(report, geo, f"Per {kind} geo-aware", kind))
    return [*lines, f"protocol: {report.protocol}"]


def _weighted(report: Report, sums: Sums, label: str, kind: str) -> str:
    pck = report.pck(sums, report.run.protocol.average)
    (first, top), *others = ((f"PCK{alpha}", f"{100 * v:.2f}%") for alpha, v in pck.items())
    return f"Weighted {label} {first}: {top}" + "".join(
        f", {kind} {name}: {text}" for name, text in others
    )


def _write_log(path: Path, lines: list[str]) -> None:
    """As the reference: result.log, and result1.log where that exists."""
    while path.exists():
        path = path.with_name(path.name.replace(".log", "1.log"))
    now = f"[{datetime.now():%Y-%m-%d %H:%M:%S}]"
    path.write_text("".join(f"{now} {line}\n" for line in lines), encoding="utf-8")


def _entry(found: dict, report: Report, slots: int) -> dict:
    """What the reference keeps of a pair: predictions by keypoint id, (0, 0) for unused ids."""
    xy = [[0.0, 0.0] for _ in range(max([slots - 1, *found["keypoints"]]) + 1)]
    for slot, predicted in zip(found["keypoints"], found["predicted"], strict=True):
        xy[slot] = predicted
    paths = {picture.name: str(picture.path) for picture in report.run.protocol.pairs.pictures}
    return {
        "src_fn": paths[found["source"]],
        "trg_fn": paths[found["target"]],
        "src_kpts_pred": xy,
        "resize_resolution": ANNO,
    }
