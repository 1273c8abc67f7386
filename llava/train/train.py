"""Trains LLaVA: stage 1 (projector), stage 2 (projector and language model), LoRA.

`torchrun ... llava/train/train.py FLAGS`, `deepspeed llava/train/train.py FLAGS` or `law train`.
"""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import transformers
from accelerate.utils import broadcast_object_list
from torch import distributed

from llava import results
from llava.errors import LawError
from llava.exits import run_command
from llava.files import write_json
from llava.log import get_logger
from llava.model.representation import spec_hash
from llava.provenance import commit, environment
from llava.train.a_score import score_alignment, write_protocol
from llava.train.args import Arguments, as_flags, parse, program
from llava.train.build import Prepared, data_report, prepare
from llava.train.checkpoint import choose, clear_unfinished, locked, refuse_other_runs, set_aside
from llava.train.finish import finish
from llava.train.progress import Progress
from llava.train.trainer import LLaVATrainer

logger = get_logger("train")


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, checks (`--check`) or scores (`--a_score`), as the flags say."""
    arguments = parse(sys.argv[1:] if argv is None else list(argv))
    training = arguments[2]
    if training.check:
        from llava.train.check import main as check

        check(arguments)
        return
    transformers.utils.logging.disable_progress_bar()
    if training.a_score:
        transformers.set_seed(training.seed)
        _score(arguments, prepare(arguments))
    else:
        with _own_folder(arguments):
            _train(arguments)
    _leave_the_others()


def _leave_the_others() -> None:
    """Ends the group of processes: its threads, alive when Python ends, may abort a finished run.

    Not after an error, when ending it could wait for ranks that wait for this one.
    """
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.destroy_process_group()


def _train(arguments: Arguments) -> None:
    training = arguments[2]
    transformers.set_seed(training.seed)
    resume = _agreed_checkpoint(arguments)
    prepared = prepare(arguments)
    _write_run(arguments, prepared)
    trainer = LLaVATrainer(
        model=prepared.model,
        args=training,
        train_dataset=prepared.dataset,
        data_collator=prepared.collator,
        tokenizer=prepared.tokenizer,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.remove_callback(transformers.ProgressCallback)
    trainer.add_callback(Progress())
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finish(trainer)


def _own_folder(arguments: Arguments) -> AbstractContextManager[None]:
    """Rank zero locks the run's folder; it may hold no run of another kind."""
    training = arguments[2]
    if training.process_index:
        return nullcontext()
    kind = "stage 1" if training.stage1 else "LoRA" if training.lora_enable else "whole model"
    refuse_other_runs(Path(training.output_dir), kind)
    return locked(Path(training.output_dir))


def _agreed_checkpoint(arguments: Arguments) -> Path | None:
    """Where to go on from: rank zero looks, all ranks hear what it found."""
    training = arguments[2]
    said: list = [None, None]
    if training.process_index == 0:
        clear_unfinished(Path(training.output_dir))
        try:
            said[0] = choose(training.output_dir, training.resume_from_checkpoint)
            set_aside(Path(training.output_dir), said[0])
        except LawError as error:
            said[1] = error
    broadcast_object_list(said)
    if said[1] is not None:
        raise said[1]
    if said[0] is not None:
        logger.info("going on from %s", said[0])
    return said[0]


def _write_run(arguments: Arguments, prepared: Prepared) -> None:
    """The resolved flags, the environment and what was left out of the data."""
    training = arguments[2]
    if not training.should_save:
        return
    folder = Path(training.output_dir)
    write_json(folder / "run.json", {"command": program(), "flags": as_flags(arguments)})
    write_json(folder / "environment.json", environment())
    write_json(folder / "data.json", data_report(prepared.survey))


def _score(arguments: Arguments, prepared: Prepared) -> None:
    """Prints the A score and writes it, and its row of the results table."""
    model_arguments, data, training = arguments
    found = score_alignment(
        prepared.model.to(training.device),
        prepared.dataset,
        prepared.collator,
        training.a_score_samples,
        training.per_device_train_batch_size,
    )
    if training.process_index:
        return
    protocol = write_protocol(
        data.data_path,
        training.a_score_samples,
        model_arguments.version,
        model_arguments.model_name_or_path,
    )
    path = Path(training.output_dir) / "a_score.json"
    write_json(
        path,
        found.plain()
        | {
            "representation": prepared.representation.name,
            "spec_hashes": [spec.hash() for spec in prepared.representation.parts],
            "protocol": protocol,
            "flags": as_flags(arguments),
        },
    )
    if training.results:
        row = results.ResultRow(
            representation=prepared.representation.name,
            quantity="A_nll",
            benchmark=Path(data.data_path).stem,
            value=found.a_nll_token_mean,
            unit="nats",
            higher_is_better=False,
            stderr=found.stderr,
            n=found.n_samples,
            protocol=protocol,
            seed=training.seed,
            spec_hash=spec_hash(prepared.representation),
            run_dir=training.output_dir,
            commit=commit() or "",
        )
        results.append(training.results, [row])
    print(
        f"A score (nll) {found.a_nll_token_mean:.6f} nats per token "
        f"(+/- {found.stderr:.4f}, {found.n_samples} records, {found.n_tokens} tokens; "
        f"sample mean {found.a_nll_sample_mean:.6f}); {path}"
    )


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "law train")
