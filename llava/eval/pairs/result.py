"""The file of a run's results, and the rows that it gives to a results table."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from llava import __version__
from llava.errors import LawError
from llava.eval.pairs.accuracies import ACCURACIES
from llava.eval.pairs.items import Benchmark
from llava.eval.pairs.metrics import Accuracy, measure
from llava.eval.pairs.scorer import Scorer
from llava.eval.pairs.scoring import plain
from llava.files import read_json
from llava.provenance import commit
from llava.results import ResultRow

VERSION = 1
"""Of the file's form."""
IDENTITY = (
    "fingerprint",
    "model",
    "model_base",
    "protocol",
    "representation",
    "run_dir",
    "scorer",
    "seed",
    "select_feature",
    "spec_hash",
    "texts",
)
"""Facts that say who was asked; the others say how, and are part of a protocol."""
USUAL_FEATURES = (None, "patch", "embedding")
"""The select_feature that a protocol does not name: all patches, a CLIP's own embedding."""
KEYS = {"version", "fingerprint", "scorer", "facts", "protocol", "quantity", "results"}


def whole(
    scorer: Scorer,
    benchmarks: Sequence[Benchmark],
    scores: dict[str, list[np.ndarray]],
    digests: dict[str, str],
    mark: str,
) -> dict[str, Any]:
    """What the file holds: who was asked and how, and of every benchmark what came of it."""
    facts = scorer.facts()
    who = {
        "scorer": scorer.name,
        "model": facts.get("model"),
        "representation": name_of(scorer.name, facts),
        "select_feature": facts.get("select_feature"),
    }
    return {
        "version": VERSION,
        "fingerprint": mark,
        **who,
        "facts": facts,
        "protocol": scorer_protocol(scorer.name, facts),
        "quantity": "performance" if scorer.performance else f"pairs_{scorer.name}",
        "law": __version__,
        "commit": commit() or "",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "results": [
            {"benchmark": one.name, **who, "digest": digests[one.name]}
            | _of_benchmark(one, scores[one.name])
            for one in benchmarks
        ],
    }


def name_of(scorer: str, facts: dict[str, Any]) -> str:
    """What results tables call the model: its representation, else the model itself."""
    return str(facts.get("representation") or facts.get("model") or scorer)


def scorer_protocol(scorer: str, facts: dict[str, Any]) -> str:
    """How a model was asked: runs of one benchmark compare where this is the same.

    What the scorer calls it (the fact `protocol`), else a hash of the facts that are not of the
    model itself.
    """
    feature = facts.get("select_feature")
    parts = [scorer]
    if feature not in USUAL_FEATURES:
        parts.append(f"select={feature}")
    if facts.get("protocol"):
        return "/".join([*parts, str(facts["protocol"])])
    how = {key: value for key, value in facts.items() if key not in IDENTITY}
    if how:
        text = json.dumps(how, sort_keys=True, default=str)
        parts.append(hashlib.sha256(text.encode()).hexdigest()[:8])
    return "/".join(parts)


def _of_benchmark(benchmark: Benchmark, scores: Sequence[np.ndarray]) -> dict[str, Any]:
    found = measure(benchmark, scores)
    per_item = [
        {
            "id": item.id,
            "images": [path.name for path in item.images],
            "right": list(item.right),
            "scores": plain(scores_IC),
        }
        for item, scores_IC in zip(benchmark.items, scores, strict=True)
    ]
    return {
        "protocol": benchmark.protocol,
        "chooses": benchmark.chooses,
        "n": len(benchmark.items),
        **{name: _plain(accuracy) for name, accuracy in found.accuracies.items()},
        "by_axis": {
            axis: {name: _plain(accuracy) for name, accuracy in of_axis.items()}
            for axis, of_axis in found.by_axis.items()
        },
        "same_choice": _plain(found.same_choice) if found.same_choice else None,
        "ties": found.ties,
        "per_item": per_item,
    }


def _plain(accuracy: Accuracy) -> dict[str, Any]:
    return {"accuracy": accuracy.share, **asdict(accuracy)}


def read_result(path: Path) -> dict[str, Any]:
    """A file that `whole` made; LawError for another one."""
    found = read_json(path, "`law pairs run ... --out FILE.json` writes results")
    missing = sorted(KEYS - set(found))
    if missing or found["version"] != VERSION:
        why = f"lacks {', '.join(missing)}" if missing else f"has version {found['version']}"
        raise LawError(f"{path}: {why}; expected a result of `law pairs run`")
    return found


def rows(result: dict[str, Any], metrics: Sequence[str], run_dir: str) -> list[ResultRow]:
    """The rows of the results table, one for every benchmark and metric that it has."""
    facts = result["facts"]
    return [
        ResultRow(
            representation=result["representation"],
            quantity=result["quantity"],
            benchmark=f"{one['benchmark']}_{name}",
            value=one[name]["accuracy"],
            unit="fraction",
            stderr=one[name]["stderr"],
            n=one[name]["of"],
            protocol="/".join(filter(None, (one["protocol"], result["protocol"]))),
            seed=facts.get("seed"),
            spec_hash=facts.get("spec_hash") or "",
            run_dir=str(facts.get("run_dir") or run_dir),
            commit=result["commit"],
            date=result["date"],
        )
        for one in result["results"]
        for name in ACCURACIES
        if name in metrics and name in one
    ]
