"""TowerSpec fields of a model in diffusers layout. Nothing here imports torch."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava.errors import LawError, UsageError

INDEX = "model_index.json"
NETWORKS = ("unet", "transformer")
UNUSED = ("safety_checker", "feature_extractor", "text_encoder_3", "tokenizer_3")
"""Parts that no tower reads."""
WEIGHTS = (
    "diffusion_pytorch_model*.safetensors",
    "diffusion_pytorch_model*.bin",
    "model*.safetensors",
    "pytorch_model*.bin",
)
TEXTS = (".json", ".txt", ".model")
"""Configs and tokenizers, of which PixArt's are files of sentencepiece."""
VARIANTS = (".fp16", ".non_ema", ".bf16")
"""In names of files that lie beside the weights and are never read."""


def facts_of(
    source: str, index: dict, defaults: dict[str, Any], read: Callable[[str], dict]
) -> dict[str, Any]:
    """Size of a token, width, depth and taps, from the configs of VAE and network.

    `read` gives a JSON file of the repository by its name. Raises LawError for configs that do not
    describe what the tower expects.
    """
    network = next((name for name in NETWORKS if _is_there(index, name)), None)
    if network is None or not _is_there(index, "vae"):
        raise LawError(f"{source}: {INDEX} names no vae, or neither unet nor transformer")
    config, vae = read(f"{network}/config.json"), read("vae/config.json")
    try:
        halvings = len(vae["block_out_channels"]) - 1
        facts = (_unet if network == "unet" else _transformer)(config, halvings, defaults)
        channels, latents = config["in_channels"], vae["latent_channels"]
    except (KeyError, TypeError) as error:
        raise LawError(
            f"{source}: {network}/config.json or vae/config.json lacks or misstates {error}; "
            "expected what save_pretrained of diffusers writes"
        ) from None
    if channels != latents * (4 if _packs(config) else 1):
        raise UsageError(
            f"{source}: its {network} takes {channels} channels and its VAE gives {latents}; "
            "models for inpainting, editing or upscaling are no towers"
        )
    return facts


def _unet(config: dict, halvings: int, defaults: dict[str, Any]) -> dict[str, Any]:
    """Up block i ends, after its upsampler, at one level above where it began; the last has none.

    A level is half the side of the one above it; the uppermost is the latent.
    """
    widths = list(reversed(config["block_out_channels"]))
    pixels = [2 ** (halvings + max(0, len(widths) - 2 - i)) for i in range(len(widths))]
    return {
        "depth": len(widths),
        "taps": tuple(zip(pixels, widths, strict=True)),
        "patch": pixels[0],
        "dim": widths[0],
        "step": 2**halvings,
    }


def _transformer(config: dict, halvings: int, defaults: dict[str, Any]) -> dict[str, Any]:
    """All blocks have the same tokens; those of `fold` x `fold` places become one."""
    fold = defaults["fold"]
    blocks = config["num_layers"] + config.get("num_single_layers", 0)
    # Flux's patches of 2 x 2 latents are made before the transformer, so its own patch is 1.
    patch = config["patch_size"] * (2 if _packs(config) else 1)
    return {
        "depth": blocks,
        "patch": 2**halvings * patch * fold,
        "dim": config["num_attention_heads"] * config["attention_head_dim"] * fold**2,
    }


def _packs(config: dict) -> bool:
    """Whether 2 x 2 latents come to the transformer as one, as Flux's do."""
    return "num_single_layers" in config


def _is_there(index: dict, name: str) -> bool:
    """Whether `model_index.json` names a class for a part, as `[library, class]`."""
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry)


def files_of(folder: Path, index: dict) -> list[Path]:
    """Files that features come from: configs, tokenizers and the weights that are read.

    Raises LawError where a part has none.
    """
    found = [folder / INDEX]
    for part in sorted(name for name in index if _is_there(index, name) and name not in UNUSED):
        paths = sorted(p for p in (folder / part).glob("*") if not _is_variant(p.name))
        files = [p for p in paths if p.suffix in TEXTS]
        sets = ([p for p in paths if p.match(pattern)] for pattern in WEIGHTS)
        weights = next(filter(None, sets), [])
        if not files or not (weights or part.startswith(("tokenizer", "scheduler"))):
            variant = next((p for p in (folder / part).glob("*") if _is_variant(p.name)), None)
            raise LawError(
                f"{folder}: {part}/ lacks {'weights' if files else 'its config'}; expected a "
                "folder as save_pretrained of a diffusers pipeline writes it"
                + (f", and not {variant.name} alone" if files and variant else "")
            )
        found += [*files, *(p for p in weights if p not in files)]
        if part.startswith("tokenizer") and not _has_vocabulary(folder / part):
            raise LawError(
                f"{folder}: {part}/ lacks its vocabulary (vocab.json and merges.txt, "
                "tokenizer.json, or a .model file)"
            )
    return found


def _has_vocabulary(folder: Path) -> bool:
    pair = [(folder / name).is_file() for name in ("vocab.json", "merges.txt")]
    return all(pair) or (folder / "tokenizer.json").is_file() or any(folder.glob("*.model"))


def _is_variant(name: str) -> bool:
    """Also a shard, `model.fp16-00001-of-00002.safetensors`, and its index."""
    return any(part in name for part in VARIANTS)


def names_digest(folder: Path, files: list[Path]) -> bytes:
    """SHA-256 over the files' places in the folder, so that two parts cannot change theirs."""
    names = "\n".join(path.relative_to(folder).as_posix() for path in files)
    return hashlib.sha256(names.encode()).digest()
