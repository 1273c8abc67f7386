"""Shapes of language models: of a local folder's config.json, else of those that are known."""

import functools
from dataclasses import dataclass
from pathlib import Path

from llava.config import build, read_yaml
from llava.errors import LawError, UsageError, unknown_name
from llava.files import read_json


@dataclass(frozen=True)
class LanguageModel:
    """A decoder of LLaMA's form: gated MLP, grouped-query attention."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    head_dim: int = 0
    """0: hidden / heads."""
    tied: bool = False
    """Whether the head is the embedding."""
    attention_bias: bool = False
    """Whether queries, keys and values have biases."""

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's linear maps: queries, keys, values, output, gate, up, down."""
        width = self.head_dim or self.hidden // self.heads
        queries, keys = self.heads * width, self.kv_heads * width
        attention = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys)]
        mlp = [(self.hidden, self.intermediate)] * 2 + [(self.intermediate, self.hidden)]
        return [*attention, (queries, self.hidden), *mlp]

    @property
    def parameters(self) -> int:
        """All of them, norms and biases included."""
        layer = sum(a * b for a, b in self.matrices) + 2 * self.hidden
        if self.attention_bias:
            layer += sum(out for _, out in self.matrices[:3])
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return embeddings + self.layers * layer + self.hidden

    def adapters(self, r: int) -> int:
        """Parameters of LoRA adapters of rank `r` on every linear map of the layers."""
        return self.layers * sum(r * (a + b) for a, b in self.matrices)


@functools.cache
def known_models() -> dict[str, LanguageModel]:
    """Every model of language_models.yaml by name."""
    path = Path(__file__).with_name("language_models.yaml")
    return {m.name: m for m in (build(LanguageModel, e, path.name) for e in read_yaml(path))}


def language_model(name: str) -> LanguageModel:
    """The shape of a folder's or a known model; UsageError naming what is missing otherwise."""
    config = Path(name).expanduser() / "config.json"
    if config.is_file():
        return _read(name, config)
    for model in known_models().values():
        if name.lower() in (model.name.lower(), model.name.rpartition("/")[2].lower()):
            return model
    wrong = unknown_name("language model", name, known_models())
    raise UsageError(
        f"llm: {wrong}{'' if wrong.endswith('?') else '.'} A local folder with its config.json "
        "works too; or say cost: {model: llava}, which counts without the model's shape"
    )


def _read(name: str, path: Path) -> LanguageModel:
    config = read_json(str(path))
    config = config.get("text_config") or config
    keys = {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "intermediate": "intermediate_size",
        "heads": "num_attention_heads",
        "vocabulary": "vocab_size",
    }
    for key in keys.values():
        if not isinstance(config.get(key), int):
            raise LawError(f"{path}: expected a whole number as {key}, of a model of LLaMA's form")
    return LanguageModel(
        name=name,
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_dim=config.get("head_dim") or 0,
        tied=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", config.get("model_type") == "qwen2")),
        **{field: config[key] for field, key in keys.items()},
    )
