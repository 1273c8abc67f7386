"""A language model, a tower and data that fit into a second, for tests of training."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from repository import ROOT
from tiny import picture, save_encoder
from transformers import LlamaConfig, LlamaForCausalLM

TOKENIZER = ROOT / "tests" / "golden" / "llava" / "tokenizer"
SENTENCE = "a red fox sits on the blue box and eats one green apple near two old trees"
WORDS = SENTENCE.split(" ")


def make_world(root: Path, records: int = 24, text_only: int = 6) -> Path:
    """Writes llm/, clip/, dinov2/, images/, captions.json and talks.json under `root`."""
    save_llm(root / "llm")
    save_encoder(root / "clip", "clip_vision_model")
    save_encoder(root / "dinov2", "dinov2", seed=1)
    (root / "images").mkdir()
    captions, talks = [], []
    for i in range(records):
        name = f"{i}.png"
        picture(40 + i % 5, 33 + i % 7, seed=i).save(root / "images" / name)
        caption = " ".join(WORDS[(i + k) % len(WORDS)] for k in range(3 + i % 4)) + "."
        captions.append(
            {
                "id": str(i),
                "image": name,
                "conversations": [
                    {"from": "human", "value": "Describe the image.\n<image>"},
                    {"from": "gpt", "value": caption},
                ],
            }
        )
        turns = [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": caption},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "Yes" if i % 2 else "No, not quite."},
        ]
        talks.append({"id": str(i), "image": name, "conversations": turns})
        if i < text_only:
            talk = [
                {"from": "human", "value": f"Say {WORDS[i]}."},
                {"from": "gpt", "value": WORDS[i]},
            ]
            talks.append({"id": f"t{i}", "conversations": talk})
    (root / "captions.json").write_text(json.dumps(captions))
    (root / "talks.json").write_text(json.dumps(talks))
    return root


def save_llm(folder: Path) -> None:
    """A random LLaMA of two layers with a real sentencepiece tokenizer of 512 pieces."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in (TOKENIZER / "tiny_legacy_false").iterdir():
        shutil.copy(file, folder / file.name)
    shutil.copy(TOKENIZER / "tokenizer_tiny.model", folder / "tokenizer.model")


def stage1(world: Path, output: Path, **flags: object) -> list[str]:
    """Flags of a stage-1 run of a few steps."""
    return as_flags(
        {
            "model_name_or_path": world / "llm",
            "version": "plain",
            "data_path": world / "captions.json",
            "image_folder": world / "images",
            "vision_tower": world / "clip",
            "tune_mm_mlp_adapter": True,
            "output_dir": output,
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "weight_decay": 0.0,
            "lr_scheduler_type": "constant",
            "save_strategy": "no",
            "logging_steps": 1,
            "model_max_length": 96,
        }
        | flags
    )


def stage2(world: Path, output: Path, projector: Path | None = None, **flags: object) -> list[str]:
    """Flags of a stage-2 run of a few steps."""
    given = {
        "version": "v1",
        "data_path": world / "talks.json",
        "tune_mm_mlp_adapter": False,
        "model_max_length": 192,
    }
    if projector is not None:
        given["pretrain_mm_mlp_adapter"] = projector
    return stage1(world, output, **(given | flags))


def as_flags(values: dict) -> list[str]:
    """Names and values as a command line has them."""
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def losses(output: Path) -> list[float]:
    """The logged losses of a run, by step."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def launch(flags: list[str], processes: int = 1, timeout: float = 900) -> str:
    """Runs training in processes of its own, by torchrun where there are several; its stdout."""
    command = [sys.executable, str(ROOT / "llava" / "train" / "train.py")]
    if processes > 1:
        run = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *run, command[1]]
    done = subprocess.run(
        [*command, *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout
