"""A LLaMA tokenizer: the real one of 32,000 pieces, or one made of the world's own words."""

import io
import random
from collections.abc import Sequence
from pathlib import Path

from llava.conversation import conv_templates
from llava.errors import LawError, UsageError, unknown_name
from llava.files import write_bytes, write_json
from tiny_world.scenes import imagine
from tiny_world.texts import caption, notes, questions

ROOT = Path(__file__).parents[2]
REAL = ROOT / "tests" / "golden" / "llava" / "tokenizer" / "tokenizer_32k.model"
"""mistral-common's `tokenizer.model.v1` (Apache-2.0), which the tests read, too."""
SMALL_PIECES = 420
"""256 bytes, three special ones, letters, and the world's words."""
KINDS = ("llama", "small")
SPECIAL = ("<unk>", "<s>", "</s>")
SCENES_READ = 300
TIMES_READ = 10
"""Of every text that is given: enough for each of its words to become a piece."""


def save_tokenizer(
    folder: Path, kind: str, pieces: int = SMALL_PIECES, texts: Sequence[str] = ()
) -> None:
    """Writes tokenizer.model and its config; `kind` is `llama` (32,000 pieces) or `small`.

    A small one has `pieces` of them; with 500 every word of the world and of its prompt is one. It
    learns from `texts` in place of the world's where there are some.
    """
    if kind not in KINDS:
        raise UsageError(unknown_name("tokenizer", kind, KINDS))
    write_bytes(folder / "tokenizer.model", _real() if kind == "llama" else _small(pieces, texts))
    added = {
        str(place): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for place, token in enumerate(SPECIAL)
    }
    facts = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": added,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,  # as Vicuna's
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", facts)


def _real() -> bytes:
    try:
        return REAL.read_bytes()
    except OSError as error:
        raise LawError(
            f"{REAL}: {error.strerror}; run from a whole checkout, or take --tokenizer small"
        ) from error


def _small(pieces: int, texts: Sequence[str]) -> bytes:
    """A byte-fallback BPE that sentencepiece learns from texts about scenes and from a prompt."""
    import sentencepiece

    rng = random.Random(0)  # noqa: S311
    lines = [conv_templates["v1"].get_prompt(), "USER: ASSISTANT:"] * SCENES_READ
    lines += [text for text in texts for _ in range(TIMES_READ)]
    for _ in range(0 if texts else SCENES_READ):
        scene = imagine(rng)
        asked = [text for kind in questions(scene).values() for pair in kind for text in pair]
        lines += [caption(scene), notes(scene, rng), *asked]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
