"""timm's vision transformers as towers, where timm is installed.

timm imports torchvision, which the tower itself never calls; where it is absent, a stand-in of that
name lets timm be imported in a process of its own.
"""

import importlib.metadata
import importlib.util
import subprocess
import sys

import pytest

from llava.errors import LawError
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.known import families, missing_packages

STAND_IN = """
import importlib.abc, importlib.machinery, importlib.util, sys, types

class Name(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name

class Module(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Name(name, (), {"__init__": lambda self, *a, **k: None})

class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return Module(spec.name)
    def exec_module(self, module):
        pass

if importlib.util.find_spec("torchvision") is None:
    sys.meta_path.insert(0, Finder())
"""

COMPARE = """
import json, sys, timm, torch
from pathlib import Path
from safetensors.torch import save_file
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.registry import resolve

small = {"depth": 3, "embed_dim": 24, "num_heads": 3}
for architecture, options, tokens, first, registers in (
    ("vit_tiny_patch16_224", small, 196, 1, 0),
    ("vit_base_patch14_reg4_dinov2", small | {"img_size": 56}, 16, 1, 4),
    ("vit_base_patch16_siglip_224", small, 196, 0, 0),
):
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=0, **options).eval()
    folder = Path(sys.argv[1]) / architecture
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    plain = (int, float, str, list, tuple)
    facts = {k: v for k, v in model.pretrained_cfg.items() if isinstance(v, plain)}
    side = options.get("img_size", 224)
    facts |= {"input_size": [3, side, side], "num_classes": 0}
    config = {"architecture": architecture, "num_classes": 0, "model_args": options}
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": facts}))
    for layer in (-1, -2, 0):
        spec = resolve(str(folder), layer=layer).parts[0]
        assert (spec.tokens, spec.class_token, spec.registers) == (tokens, bool(first), registers)
        pixels = torch.randn(2, 3, side, side)
        states = []
        handles = [b.register_forward_hook(lambda m, i, o: states.append(o)) for b in model.blocks]
        handles.append(model.norm_pre.register_forward_hook(lambda m, i, o: states.append(o)))
        with torch.no_grad():
            model.forward_features(pixels)
        for handle in handles:
            handle.remove()
        expected = states[spec.block][:, first + registers :]
        assert torch.equal(build_tower(spec)(pixels), expected)
print("same")
"""


def test_without_timm_it_says_what_to_type(tmp_path):
    """A timm folder names the package before anything else is tried."""
    (tmp_path / "config.json").write_text('{"architecture": "vit", "pretrained_cfg": {}}')
    if missing_packages(families()["timm"]):
        with pytest.raises(LawError, match='pip install "timm>='):
            build_tower(str(tmp_path))


def test_tokens_are_those_of_the_block(tmp_path):
    """Class token, registers, none of both; last, last but one and first hidden state."""
    try:
        importlib.metadata.version("timm")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("timm is not installed")
    done = subprocess.run(
        [sys.executable, "-c", STAND_IN + COMPARE, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout == "same\n", done.stderr
