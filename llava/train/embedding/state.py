"""What an embedder's run keeps: adapters, the optimizer, how far it is; and what it was told.

A checkpoint is written, sealed and renamed as those of `law train` (llava/train/checkpoint.py).
"""

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from llava.errors import UsageError
from llava.eval.embedding import FACTS
from llava.files import read_json, write_bytes, write_json, write_text
from llava.model.saving import ADAPTERS, kept, read_tensors, save_lora
from llava.tokenization import save_tokenizer
from llava.train.checkpoint import SAVING, clear_unfinished, publish
from llava.train.gather import gathered

OPTIMIZER = "optimizer.pt"
FINAL = ".final"
LOG = "log.jsonl"


def write_adapters(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, facts: Mapping[str, Any]
) -> None:
    """Everything that `load_pretrained_model` and `--scorer embed` read."""
    folder.mkdir(parents=True, exist_ok=True)
    save_lora(model, folder, gathered(kept(model), keep=True))
    save_tokenizer(tokenizer, folder)
    write_json(folder / FACTS, dict(facts))


def save(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    output: Path,
    facts: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes `checkpoint-N`, N being the updates done (`facts["step"]`); returns its folder."""
    clear_unfinished(output)
    folder = output / SAVING / f"checkpoint-{facts['step']}"
    write_adapters(model, tokenizer, folder, facts)
    state = io.BytesIO()
    torch.save(optimizer.state_dict(), state)
    write_bytes(folder / OPTIMIZER, state.getvalue())
    found = publish(folder, output, keep)
    shutil.rmtree(output / SAVING)
    return found


def restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, facts: Mapping[str, Any]
) -> int:
    """Reads a checkpoint back; the updates that it has had.

    Raises UsageError where it is not of a run that was told the same, naming the first difference.
    """
    from peft import set_peft_model_state_dict

    file = folder / FACTS
    if not file.is_file():
        raise UsageError(
            f"{folder} is no checkpoint of an embedder (it has no {FACTS}); choose another "
            "--output_dir"
        )
    before = read_json(file)
    for name, value in facts.items():
        if name != "step" and before.get(name) != value:
            raise UsageError(
                f"{folder} was trained with {name} {before.get(name)!r}, and now it is {value!r}; "
                "go on with the same, begin anew by --resume_from_checkpoint False, or choose "
                "another --output_dir"
            )
    set_peft_model_state_dict(model, read_tensors(folder / f"{ADAPTERS}.safetensors"))
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))
    return int(before["step"])


def finish(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, output: Path, facts: Mapping[str, Any]
) -> None:
    """Writes the adapters into the run's own folder, each file once it is whole."""
    shutil.rmtree(output / FINAL, ignore_errors=True)
    write_adapters(model, tokenizer, output / FINAL, facts)
    for path in sorted((output / FINAL).iterdir()):
        path.replace(output / path.name)
    (output / FINAL).rmdir()


def log(output: Path, line: Mapping[str, Any]) -> None:
    """Adds a line to the run's log."""
    with open(output / LOG, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(dict(line)) + "\n")


def cut_log(output: Path, step: int) -> None:
    """Leaves out the lines of later updates, which will be done again."""
    path = output / LOG
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        whole = [line for line in lines if line.endswith("}")]  # a kill may have cut the last one
        write_text(path, "".join(f"{o}\n" for o in whole if json.loads(o)["step"] <= step))
