"""`law a-score head`: trains a head on a frozen tower, and measures it on held-out captions.

docs/a_score.md says what a head is; training.py trains it.
"""

import argparse
import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.config import to_plain
from llava.errors import LawError, UsageError
from llava.exits import run_command
from llava.files import ensure_writable, write_json

if TYPE_CHECKING:  # what computes is imported when there is something to compute: --help is quick
    from A_score.contrastive.captions import Captions
    from A_score.contrastive.config import TrainConfig
    from A_score.contrastive.negatives import Phrases
    from llava.data.tower_tokens import Tokens
    from llava.model.contrastive.model import Head
    from llava.model.multimodal_encoder.registry import Representation

HELD_OUT = "heldout.json"


def main(argv: list[str], prog: str = "python -m A_score.contrastive.train") -> None:
    """Trains as far as that is not done, writes the head, prints the held-out alignment."""
    arguments = _parser(prog).parse_args(argv)
    if arguments.pool < 2:
        raise UsageError(f"--pool {arguments.pool}: expected 2 or more")
    if arguments.results and not arguments.held_out:
        raise UsageError("--results: has rows of held-out alignment only; add --held-out JSON")
    if arguments.held_out_images and not arguments.held_out:
        raise UsageError("--held-out-images: are those of --held-out JSON, which is not given")
    for path in filter(None, (arguments.out / "config.yaml", arguments.results)):
        ensure_writable(path)
    from A_score.contrastive.config import read_config
    from llava.extraction import usable_device
    from llava.model.contrastive.texts import moved_text
    from llava.model.multimodal_encoder.registry import parse_replacements, part_ids, resolve

    config = read_config(arguments.config, arguments.set)
    arguments.device = usable_device(arguments.device)
    aliases = parse_replacements(arguments.tower_alias)
    text, aliases = moved_text(config.head.text, aliases, part_ids(arguments.tower, aliases))
    config = replace(config, head=replace(config.head, text=text))
    representation = resolve(arguments.tower, select=config.select, replace=aliases)
    with _processes(arguments.device):
        _run(config, representation, arguments)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Trains a head that brings a frozen tower's patches and captions together.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="YAML")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="changes of the config, e.g. batch_size=256 head.text.model=clip336",
    )
    parser.add_argument(
        "--tower", required=True, metavar="NAME[.NAME]", help="a representation; see `law towers`"
    )
    parser.add_argument("--data", required=True, metavar="JSON", help="LLaVA's conversations")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--features",
        type=Path,
        metavar="STORE",
        help="run the tower once, into this feature store (default: run it in every step)",
    )
    parser.add_argument(
        "--frame", default="", help="default: a tower's own; of several, the one that all share"
    )
    parser.add_argument("--held-out", metavar="JSON", help="conversations to measure alignment on")
    parser.add_argument(
        "--held-out-images", type=Path, metavar="DIR", help="of --held-out (default: --images)"
    )
    parser.add_argument(
        "--pool", type=int, default=64, metavar="P", help="captions to choose among (default: 64)"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="of the held-out set in tables (default: its file's)"
    )
    parser.add_argument("--results", type=Path, metavar="CSV", help="append to this results table")
    parser.add_argument(
        "--tower-alias",
        "--tower_alias",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="read the weights of a tower, or of the text source, from another folder or hub id",
    )
    parser.add_argument("--dtype", default="float32", help="of the tower (default: float32)")
    parser.add_argument("--device", default="", help="cpu, cuda:0, ...; default: a GPU if any")
    parser.add_argument("--tower-batch", type=int, default=16, help="images at once (default: 16)")
    parser.add_argument("--workers", type=int, default=2, help="threads that read images")
    return parser


def _run(
    config: "TrainConfig", representation: "Representation", arguments: argparse.Namespace
) -> None:
    """All of one process's work; rank zero writes."""
    import torch

    from A_score.contrastive.captions import Captions
    from A_score.contrastive.heldout import pools
    from A_score.contrastive.negatives import phrases_of
    from A_score.contrastive.training import Training
    from llava.data.records import Records
    from llava.data.tower_tokens import default_frame
    from llava.launch import launch
    from llava.model.contrastive.model import Head
    from llava.model.contrastive.saved import save_head
    from llava.model.contrastive.texts import text_source
    from llava.model.multimodal_encoder.preprocess import check_frame

    frame = check_frame(arguments.frame or default_frame(representation))
    captions = Captions(Records(arguments.data), config.seed)
    held_out = Captions(Records(arguments.held_out), config.seed) if arguments.held_out else None
    if held_out is not None:
        pools(held_out, arguments.pool, config.seed)  # too few captions: said before the training
    config.check_batch(len(captions), launch().world)
    images = _images(captions, arguments.images)
    if held_out is not None:
        images += _images(held_out, arguments.held_out_images or arguments.images)
    phrases = phrases_of(config.negatives) if config.negatives else None
    known = _closed_set(captions, phrases) if config.head.text.source == "table" else []
    torch.manual_seed(config.seed)
    texts = text_source(config.head.text, known, arguments.device)
    head = Head(config.head, representation.dim, texts).to(arguments.device)
    tokens = _tokens(representation, frame, images, arguments)
    facts = {
        "data": arguments.data,
        "records": captions.records.digest,
        "n": len(captions),
        "config": to_plain(config),
        "tower": _tower_facts(representation, frame, arguments.dtype),
        "text": texts.facts(),
        "phrases": to_plain(phrases),
    }
    training = Training(
        config, head, captions, arguments.images, tokens, phrases, arguments.out, _digest(facts)
    )
    training.run()
    if launch().rank == 0:
        facts |= {"steps": training.steps, "processes": launch().world, "way": _way(facts)}
        save_head(arguments.out, head, representation, frame, arguments.dtype, facts)
        if held_out is not None:
            _measure(config, representation, facts, head, tokens, held_out, arguments)
        print(arguments.out)


def _closed_set(captions: "Captions", phrases: "Phrases | None") -> list[str]:
    """Every caption that a table must have: the data's, and what they are rewritten to."""
    own = captions.every()
    rewritten = [phrases.rewritten(one) for one in own] if phrases else []
    return sorted({*own, *filter(None, rewritten)})


def _images(captions: "Captions", folder: Path) -> list[Path]:
    """Every image of the records, once; LawError where one is missing, before any training."""
    from llava.data.images import path_inside

    names = dict.fromkeys(captions.image(i) for i in range(len(captions)))
    paths = [path_inside(folder, name) for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise LawError(
            f"{len(missing)} of {len(paths)} images are not there, such as {missing[0]}; names in "
            "--data begin in the folder --images, those in --held-out in --held-out-images"
        )
    return paths


def _tokens(
    representation: "Representation",
    frame: str,
    images: list[Path],
    arguments: argparse.Namespace,
) -> "Tokens":
    """What gives the tower's tokens; with a store, once that holds all `images`."""
    from llava.data.stored import StoredFeatures
    from llava.data.tower_tokens import LiveTokens, Options, StoredTokens, fill

    options = Options(arguments.dtype, arguments.device, arguments.tower_batch, arguments.workers)
    if arguments.features is None:
        return LiveTokens(representation, frame, options)
    fill(arguments.features, representation, frame, images, options)
    _wait()
    return StoredTokens(StoredFeatures(arguments.features, representation, frame, arguments.dtype))


def _measure(
    config: "TrainConfig",
    representation: "Representation",
    facts: dict[str, Any],
    head: "Head",
    tokens: "Tokens",
    held_out: "Captions",
    arguments: argparse.Namespace,
) -> None:
    """Writes heldout.json and the results table, and prints."""
    from A_score.contrastive.heldout import alignment, as_text
    from llava import results
    from llava.provenance import commit

    name = arguments.name or Path(arguments.held_out).stem
    folder = arguments.held_out_images or arguments.images
    found = alignment(head, tokens, held_out, folder, arguments.pool, config.seed)
    protocol = "/".join(
        [*facts["way"], f"pool{arguments.pool}", f"heldout-{held_out.records.digest[:12]}"]
    )
    write_json(
        arguments.out / HELD_OUT, {"benchmark": name, "protocol": protocol} | found.to_json()
    )
    print(as_text(found))
    if arguments.results:
        rows = found.rows(
            name,
            representation=representation.name,
            protocol=protocol,
            seed=config.seed,
            spec_hash="+".join(part.hash() for part in representation.parts),
            run_dir=str(arguments.out),
            commit=commit() or "",
        )
        results.append(arguments.results, rows)


def _tower_facts(representation: "Representation", frame: str, dtype: str) -> dict[str, Any]:
    """What tokens depend on, and the frame that goes without saying."""
    from llava.data.tower_tokens import default_frame

    return {
        "specs": [part.hash() for part in representation.parts],
        "join": [representation.join, representation.grid_align],
        "frame": frame,
        "default_frame": default_frame(representation),
        "dtype": dtype,
    }


def _way(facts: dict[str, Any]) -> list[str]:
    """How a head was trained, as parts of a protocol.

    The same for every tower trained in this way, so that their numbers stand in one column; a frame
    or dtype that is not the usual one is named.
    """
    head, tower = facts["config"]["head"], facts["tower"]
    usual = {"frame": tower["default_frame"], "dtype": "float32"}
    return [
        head["kind"] + ("-rope" if head["rope"] else ""),
        f"text-{head['text']['source']}",
        *(f"{name}-{tower[name]}" for name, value in usual.items() if tower[name] != value),
        f"train-{_digest({key: value for key, value in facts.items() if key != 'tower'})[:12]}",
    ]


def _digest(facts: dict[str, Any]) -> str:
    """64 hex digits over what training's numbers depend on.

    Not over where files are, since what is in them counts (`records`, `text`, `phrases`), nor over
    how often is saved and logged.
    """
    counted = {key: value for key, value in facts.items() if key != "data"}
    config = dict(counted["config"])
    for name in ("negatives", "save_steps", "log_steps"):
        del config[name]
    where = ("model", "vectors", "captions")
    text = {key: value for key, value in config["head"]["text"].items() if key not in where}
    counted["config"] = config | {"head": config["head"] | {"text": text}}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _processes(device: str) -> Iterator[None]:
    """Under torchrun the processes can talk to each other inside of this."""
    import torch
    import torch.distributed as dist

    from llava.launch import launch

    if launch().world == 1:
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # where NCCL's barriers are
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _wait() -> None:
    """Until every process is here."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
