"""Tiny random CLIPs and SigLIPs with both halves and a tokenizer, in Hugging Face layout."""

import io
import json
from pathlib import Path

import torch
import transformers
from tiny import DEPTH, DIM, HALF, IMAGENET, PATCH, SIDE

LENGTH = 48
"""Places of a text."""
WIDTH = 16
"""Of an embedding of CLIP's; SigLIP's is as wide as its image half."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHAPE = {"intermediate_size": 32, "num_attention_heads": 2}
KINDS = ("clip", "siglip")


def save_dual(folder: Path, kind: str, seed: int = 0) -> Path:
    """Writes a random model of `kind` with a tokenizer of letters and its processor's config."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = {"clip": _clip_tokenizer, "siglip": _siglip_tokenizer}[kind](folder)
    tokenizer.save_pretrained(folder)
    vision = {"hidden_size": DIM, "num_hidden_layers": DEPTH, "image_size": SIDE} | SHAPE
    text = {
        "hidden_size": 20 if kind == "clip" else DIM,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | SHAPE
    vision["patch_size"] = PATCH
    torch.manual_seed(seed)
    if kind == "clip":
        config = transformers.CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=WIDTH
        )
        model = transformers.CLIPModel(config)
    else:
        text["projection_size"] = DIM
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        model = transformers.SiglipModel(config)
    with torch.no_grad():  # the usual start is so small that every token looks the same
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    processor = {"resample": 3, "do_resize": True, "do_normalize": True, "size": square}
    processor |= {
        "image_processor_type": "CLIPImageProcessor" if kind == "clip" else "SiglipImageProcessor"
    }
    processor |= HALF if kind == "siglip" else IMAGENET | {"do_center_crop": True}
    if kind == "clip":
        processor |= {"size": {"shortest_edge": SIDE}, "crop_size": square}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def _clip_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """CLIP's own class; every letter is a token, and every letter that ends a word another."""
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), ".</w>", ",</w>"]
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: place for place, piece in enumerate([*pieces, *special])}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[])


def _siglip_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """SigLIP's own class over a sentencepiece model of single letters."""
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([LETTERS, "a red circle to the left of a blue square"] * 20),
        model_writer=made,
        model_type="unigram",
        vocab_size=len(LETTERS) + 4,
        unk_id=2,
        eos_id=1,
        pad_id=0,
        bos_id=-1,
        pad_piece="<pad>",
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(made.getvalue())
    return transformers.SiglipTokenizer(str(folder / "spiece.model"))
