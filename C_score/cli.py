"""`law c-score`: PCK of one or many representations on a set of image pairs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import LawError, UsageError, unknown_name
from llava.files import ensure_writable, write_json

if TYPE_CHECKING:  # what computes is imported once the flags are read: --help is quick
    from C_score.datasets.pairs import PairSet
    from C_score.evaluate import Request
    from C_score.report import Report

CHOICES = {
    "fill": ("zero", "inf"),
    "average": ("image", "keypoint"),
    "threshold": ("bbox", "image"),
    "geo_mapping": ("right", "reference"),
    "protocol": ("tower", "paper"),
}
ALL = "all"
"""In the place of a model's name: every tower in the feature store."""
LINES = 30
"""Representations that are listed at most, the best first."""


def main(argv: list[str]) -> None:
    """Scores, prints, and writes what --json, --results, --predictions and --draw ask for."""
    arguments = _parser().parse_args(argv)
    _check(arguments)
    for path in (arguments.json, arguments.results, arguments.predictions):
        if path:
            ensure_writable(path)
    from C_score.datasets import read_pairs
    from C_score.evaluate import check_models, evaluate

    if ALL in arguments.model:
        arguments.model = _with_stored(arguments)
    check_models(arguments.model, arguments.all_combinations)
    request = _request(arguments)
    pairs = read_pairs(
        arguments.dataset,
        arguments.data,
        arguments.split,
        categories=arguments.category,
        sample=arguments.sample,
    )
    if arguments.draw:
        _check_drawing(pairs, arguments.draw_dir)
    reports = evaluate(pairs, request)
    answers = [report.to_json() for report in reports]
    if arguments.json:
        single = len(arguments.model) == 1 and not arguments.all_combinations
        write_json(arguments.json, answers[0] if single else {"results": answers})
    if arguments.results:
        _append(arguments, reports)
    if arguments.predictions:
        from C_score.report import predictions

        found = {report.model: predictions(report) for report in reports}
        write_json(arguments.predictions, found)
    drawn = []
    if arguments.draw:
        from C_score.show import draw_reports

        drawn = list(draw_reports(reports, arguments.draw, arguments.draw_dir))
    print(as_text(reports), *drawn, sep="\n")  # last: who reads it may stop reading


def _with_stored(arguments: argparse.Namespace) -> list[str]:
    """The models that are asked for, `all` replaced by every tower in the store."""
    from C_score.lookup import stored_names

    root = arguments.features or default_features(arguments.data)
    named = [name for name in arguments.model if name != ALL]
    stored = stored_names(root, arguments.protocol, arguments.dtype)
    return named + [name for name in stored if name not in named]


def _check_drawing(pairs: "PairSet", folder: Path) -> None:
    """Raises LawError where pictures could not be drawn or written, before anything is scored."""
    ensure_writable(folder / "picture.png")
    if missing := pairs.missing_images():
        raise LawError(
            f"--draw: {len(missing)} images of the set are not there, the first is {missing[0]}; "
            "put them there, or leave --draw out: scores need features only"
        )


def _append(arguments: argparse.Namespace, reports: "list[Report]") -> None:
    from llava import results
    from llava.provenance import commit

    known = commit() or ""
    folder = str(arguments.features or default_features(arguments.data))
    rows = [row for report in reports for row in report.rows(folder, known)]
    results.append(arguments.results, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="law c-score",
        description="C score: the percentage of keypoints that a representation's features find "
        "in the other image (PCK). The defaults are the published protocol.",
    )
    parser.add_argument("--data", type=Path, required=True, help="the set's folder, or a CSV file")
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="NAME[+NAME...]",
        help="what to score: the name of stored features, or NAME of <image>_NAME.pt; '+' joins "
        "towers; may be given again; all: every tower in the store",
    )
    parser.add_argument(
        "--dataset", default="spair", metavar="{spair,pfpascal,ap10k,csv}", help="default: spair"
    )
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--category", action="append", metavar="NAME", help="only these; repeat")
    parser.add_argument(
        "--features", type=Path, metavar="DIR", help="features; default: DATA/features"
    )
    parser.add_argument(
        "--window",
        default="5",
        metavar="{5,7,0,hard}",
        help="cells on each side that a soft-argmax sees, 0 for all, hard for argmax (default 5)",
    )
    parser.add_argument(
        "--fill",
        default="zero",
        metavar="{zero,inf}",
        help="cells outside of the window: cosine 0 as published, or none (default zero)",
    )
    parser.add_argument(
        "--average", default="image", metavar="{image,keypoint}", help="of what (default image)"
    )
    parser.add_argument(
        "--threshold",
        default="bbox",
        metavar="{bbox,image}",
        help="side that 0.10, 0.05, 0.01 multiply (default bbox)",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="adaptive flip; reads features of mirrored images too (`law features --mirrored`, or "
        "<image>_NAME_flip.pt)",
    )
    parser.add_argument(
        "--geo-mapping",
        default="right",
        metavar="{right,reference}",
        help="from keypoint ids to columns in the geo-aware subset and the flip (default right)",
    )
    parser.add_argument(
        "--sample", type=int, default=0, metavar="K", help="K pairs a category, no benchmark"
    )
    parser.add_argument(
        "--resample", type=int, metavar="N", help="bring all features to an N x N grid"
    )
    parser.add_argument(
        "--protocol",
        default="tower",
        metavar="{tower,paper}",
        help="which features of a store: padded, or as published (default tower)",
    )
    parser.add_argument("--dtype", help="which features of a store, where it holds several")
    parser.add_argument(
        "--all-combinations", action="store_true", help="score every subset of the towers"
    )
    parser.add_argument(
        "--tower-alias",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="a tower's weights were read from another folder or hub id",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--results", type=Path, metavar="CSV", help="append to this results table")
    parser.add_argument("--predictions", type=Path, metavar="FILE", help="write every match here")
    parser.add_argument("--draw", type=int, default=0, metavar="N", help="draw N pairs")
    parser.add_argument(
        "--draw-dir", type=Path, default=Path("matches"), metavar="DIR", help="default: matches"
    )
    return parser


def _check(arguments: argparse.Namespace) -> None:
    for name, known in CHOICES.items():
        given = getattr(arguments, name)
        if given not in known:
            raise UsageError(f"--{name.replace('_', '-')}: {unknown_name('value', given, known)}")
    if arguments.draw < 0:
        raise UsageError(f"--draw {arguments.draw}: expected how many pairs to draw")
    if arguments.all_combinations and (arguments.predictions or arguments.draw):
        raise UsageError(
            "--predictions and --draw are of single representations; leave out --all-combinations"
        )


def _request(arguments: argparse.Namespace) -> "Request":
    from C_score.evaluate import Request
    from C_score.matching import Match
    from C_score.score import Options
    from llava.model.multimodal_encoder.registry import parse_replacements

    return Request(
        models=arguments.model,
        features=arguments.features or default_features(arguments.data),
        options=Options(
            match=Match(_window(arguments.window), arguments.fill),
            threshold=arguments.threshold,
            flip=arguments.flip,
            mapping=arguments.geo_mapping,
        ),
        average=arguments.average,
        sample=arguments.sample,
        only=tuple(arguments.category or ()),
        resample=arguments.resample,
        frame=arguments.protocol,
        dtype=arguments.dtype,
        combine=arguments.all_combinations,
        detail=bool(arguments.predictions or arguments.draw),
        replace=parse_replacements(arguments.tower_alias),
    )


def _window(text: str) -> int | None:
    if text == "hard":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(
            f"--window {text}: expected a whole number of cells, 0 for the whole grid, or 'hard'"
        ) from None


def default_features(data: Path) -> Path:
    """`features` inside of the set's folder, or beside the CSV file."""
    return (data.parent if data.suffix.lower() == ".csv" else data) / "features"


def as_text(reports: "list[Report]") -> str:
    """One report as a table of categories, several as a ranking."""
    return _one(reports[0]) if len(reports) == 1 else _many(reports)


def _one(report: "Report") -> str:
    run = report.run
    average, total = run.protocol.average, run.totals["all"]
    rows = [
        [c.name, str(c.all.pairs), str(c.all.points), *_percent(report.pck(c.all, average))]
        if c.all.pairs
        else [c.name, "0", "0", *["-"] * len(report.alphas)]
        for c in run.categories
    ]
    overall = report.pck(total, average)
    rows.append(["overall", str(total.pairs), str(total.points), *_percent(overall)])
    error = report.stderr(total)
    if error:
        rows.append(["standard error", "", "", *_percent(error)])
    geo = run.totals["geo_pairs" if average == "image" else "geo_points"]
    if geo.pairs:
        pck = report.pck(geo, average)
        rows.append(["geo-aware", str(geo.pairs), str(geo.points), *_percent(pck)])
    head = ["category", "pairs", "keypoints", *(f"PCK@{alpha}" for alpha in report.alphas)]
    lines = [report.model, "", text_table(head, rows), ""]
    if run.empty:
        lines.append(f"nothing to score in: {', '.join(run.empty)}")
    if run.n_skipped:
        lines.append(f"{run.n_skipped} pairs are left out: no keypoint that both images show")
    return "\n".join([*lines, f"percent; {report.protocol}"])


def _many(reports: "list[Report]") -> str:
    ranked = sorted(reports, key=lambda report: -report.headline)
    rows = [
        [report.model, *_percent(report.averaged(report.run.protocol.average)["overall"])]
        for report in ranked[:LINES]
    ]
    head = ["model", *(f"PCK@{alpha}" for alpha in reports[0].alphas)]
    lines = [text_table(head, rows), ""]
    if len(ranked) > LINES:
        lines.append(f"the best {LINES} of {len(ranked)}; --json and --results have them all")
    protocols = dict.fromkeys(report.protocol for report in reports)
    run = reports[0].run
    lines.append(f"{run.totals['all'].pairs} pairs, {run.totals['all'].points} keypoints")
    return "\n".join([*lines, *(f"percent; {protocol}" for protocol in protocols)])


def _percent(pck: dict[str, float]) -> list[str]:
    return [f"{100 * value:.2f}" for value in pck.values()]


def text_table(head: list[str], rows: list[list[str]]) -> str:
    """Aligned columns, the first to the left, the others to the right."""
    cells = [head, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
