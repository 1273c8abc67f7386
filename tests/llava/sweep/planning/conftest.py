"""A small sweep to plan."""

from typing import Any

import pytest

from llava.config import build
from llava.sweep.config import SweepConfig

SWEEP: dict[str, Any] = {
    "name": "small",
    "run_dir": "runs/small",
    "llm": "lmsys/vicuna-7b-v1.5",
    "representations": ["clip336", "dinov2", "clip336+dinov2"],
    "stage1": {
        "data_path": "blip_laion_cc_sbu_558k.json",
        "version": "plain",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 32,
        "gradient_checkpointing": True,
        "bf16": True,
        "deepspeed": "scripts/zero2.json",
        "save_total_limit": 1,
    },
    "stage2": {
        "data_path": "llava_v1_5_mix665k.json",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "gradient_checkpointing": "True",
        "bf16": "True",
        "deepspeed": "scripts/zero2.json",
        "save_total_limit": 1,
    },
    "correspondence": {"data": "data/SPair-71k", "features": {"dtype": "float16"}},
    "alignment": {"law": "nll", "nll": {}},
    "evaluation": {"tasks": ["mme"]},
    "launch": {"gpus_per_step": {"stage1": 8, "stage2": 8}},
}


@pytest.fixture
def sweep():
    """A function from keys that differ to a sweep; mappings are joined."""

    def made(**changes: Any) -> SweepConfig:
        value = dict(SWEEP)
        for key, change in changes.items():
            both = isinstance(change, dict) and isinstance(value.get(key), dict)
            value[key] = {**value[key], **change} if both else change
        return build(SweepConfig, value)

    return made


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, pytestconfig):
    """Where scripts/zero2.json is found."""
    monkeypatch.chdir(pytestconfig.rootpath)
