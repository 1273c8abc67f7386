"""Tokenizers as LLaVA uses them: loading, saving, and prompts with images in them.

A LLaMA tokenizer with a `tokenizer.model` beside it is read by sentencepiece, as in the training of
LLaVA's checkpoints, with both of the old behaviours (`legacy` true and false); every other one by
its own `tokenizers` backend (`llava/text_encoder.py`).
"""

import importlib.util
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_TOKEN_INDEX,
)
from llava.errors import LawError, MissingPackageError
from llava.files import read_json, write_bytes, write_json
from llava.log import get_logger
from llava.text_encoder import (
    BackendEncoder,
    Encoded,
    SentencePieceEncoder,
    SentencePieceModel,
    TextEncoder,
    join,
    single,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

logger = get_logger("tokenization")

MODEL_FILE, CONFIG_FILE = "tokenizer.model", "tokenizer_config.json"
LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")


def text_encoder(tokenizer: "PreTrainedTokenizerBase") -> TextEncoder:
    """The encoder that gives the ids LLaVA's training gave with this tokenizer.

    It takes the tokenizer as it is: tokens added later need a new encoder.
    """
    ids = tokenizer("").input_ids
    bos = ids[0] if ids and ids[0] == tokenizer.bos_token_id else None
    path = _sentencepiece_file(tokenizer)
    if path is not None:
        model = SentencePieceModel(path)
        if model.keeps_text:
            return _sentencepiece_encoder(tokenizer, model, _legacy(path.parent), bos)
        logger.warning(
            "%s changes text before it reads it; ids are those of transformers' own tokenizer", path
        )
    elif type(tokenizer).__name__ in LLAMA_CLASSES:
        logger.info("%s has no %s: transformers reads its text", tokenizer.name_or_path, MODEL_FILE)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise LawError(
            f"{type(tokenizer).__name__} has no `tokenizers` backend, which masks are made with; "
            "use a folder with a tokenizer.json"
        )
    return BackendEncoder(backend, bos)


def _sentencepiece_encoder(
    tokenizer: "PreTrainedTokenizerBase", model: SentencePieceModel, legacy: bool, bos: int | None
) -> SentencePieceEncoder:
    added = tokenizer.added_tokens_decoder
    return SentencePieceEncoder(
        model,
        legacy,
        special={token.content: index for index, token in added.items()},
        named=tokenizer.all_special_tokens,
        unknown=tokenizer.unk_token or "<unk>",
        bos=bos,
        strip_left=[token.content for token in added.values() if token.lstrip],
        strip_right=[token.content for token in added.values() if token.rstrip],
    )


def _sentencepiece_file(tokenizer: "PreTrainedTokenizerBase") -> Path | None:
    """The `tokenizer.model` of a LLaMA tokenizer; None for any other."""
    places = [getattr(tokenizer, "vocab_file", None), Path(tokenizer.name_or_path, MODEL_FILE)]
    path = next(
        (Path(p) for p in places if p and Path(p).name == MODEL_FILE and Path(p).is_file()), None
    )
    if path is None:
        return None
    kind = _facts(path.parent).get("tokenizer_class") or type(tokenizer).__name__
    return path if kind in LLAMA_CLASSES else None


def _legacy(folder: Path) -> bool:
    """Whether transformers 4 read this tokenizer as `legacy`, as it did where nothing says."""
    legacy = _facts(folder).get("legacy")
    return True if legacy is None else bool(legacy)


def _facts(folder: Path) -> dict[str, Any]:
    """The contents of a folder's tokenizer_config.json; nothing where there is none."""
    path = folder / CONFIG_FILE
    return read_json(path) if path.is_file() else {}


def load_tokenizer(
    path: str | os.PathLike, model_max_length: int | None = None, revision: str | None = None
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder or hub id, as training wants it.

    It pads on the right; LLaMA tokenizers pad with their unknown token (LLaVA's choice), others
    with their own, else with the unknown, else with the end token. No mask rests on the pad id.
    Code that comes with a tokenizer is never run. Raises LawError where it cannot be loaded.
    """
    _check_folder(Path(path))
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(os.fspath(path), revision=revision or "main")
        if getattr(tokenizer, "backend_tokenizer", None) is None:  # mistral-common's, for one
            tokenizer = PreTrainedTokenizerFast.from_pretrained(
                os.fspath(path), revision=revision or "main"
            )
    except Exception as error:  # tokenizers and sentencepiece raise plain Exception, too
        where = "" if Path(path).exists() else f"; no such folder (seen from {Path.cwd()})"
        raise LawError(
            f"{path}: its tokenizer cannot be loaded{where}: {_first_line(error)}; expected a "
            "folder with tokenizer.model or tokenizer.json and tokenizer_config.json, or a hub id"
        ) from error
    tokenizer.padding_side = "right"
    if model_max_length is not None:
        tokenizer.model_max_length = model_max_length
    _set_pad_token(tokenizer)
    return tokenizer


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check_folder(folder: Path) -> None:
    """Raises where transformers would ask for tiktoken, or leave the BOS out without a word."""
    model = folder / MODEL_FILE
    if not model.is_file():
        return
    if not (folder / CONFIG_FILE).is_file():
        raise LawError(
            f"{folder}: has a {MODEL_FILE} and no {CONFIG_FILE}, which says how text is read; "
            "copy that of the model which the tokenizer comes from"
        )
    try:
        found = importlib.util.find_spec("google.protobuf") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise MissingPackageError(
            f"{model} is read with protobuf; install it with `pip install 'protobuf>=5'`"
        )


def _set_pad_token(tokenizer: "PreTrainedTokenizerBase") -> None:
    llama = _sentencepiece_file(tokenizer) is not None or type(tokenizer).__name__ in LLAMA_CLASSES
    if llama and tokenizer.unk_token is not None:
        tokenizer.pad_token = tokenizer.unk_token
    if tokenizer.pad_token is not None:
        return
    pad = tokenizer.unk_token or tokenizer.eos_token
    if pad is None:
        raise LawError(
            f"{tokenizer.name_or_path}: this tokenizer has neither a pad, an unknown nor an end "
            f"token; name one as pad_token in its {CONFIG_FILE}"
        )
    tokenizer.pad_token = pad


def add_image_tokens(tokenizer: "PreTrainedTokenizerBase", wanted: Any) -> list[int]:
    """Adds LLaVA's image tokens that `wanted` asks for; ids of new start and end tokens.

    `wanted` has `mm_use_im_patch_token` and `mm_use_im_start_end`, or lacks them. Encoders that
    were made of the tokenizer before do not know the tokens.
    """
    if getattr(wanted, "mm_use_im_patch_token", False):
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if not getattr(wanted, "mm_use_im_start_end", False):
        return []
    known = tokenizer.get_vocab()
    names = [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
    tokenizer.add_tokens(names, special_tokens=True)
    return [tokenizer.convert_tokens_to_ids(name) for name in names if name not in known]


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: str | os.PathLike) -> None:
    """Writes the tokenizer so that it reads text the same way when loaded from `folder`.

    transformers 5 leaves out `tokenizer.model` and `legacy`, without which a LLaMA tokenizer gives
    other ids than it was trained with.
    """
    folder = Path(folder)
    source = _sentencepiece_file(tokenizer)
    if source is None:
        tokenizer.save_pretrained(folder)
        return
    facts, model = _facts(source.parent), source.read_bytes()
    legacy = _legacy(source.parent)  # `folder` may be where it came from
    tokenizer.save_pretrained(folder)
    write_bytes(folder / MODEL_FILE, model)
    added = {
        str(index): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for index, token in tokenizer.added_tokens_decoder.items()
    }
    kept = {key: facts[key] for key in ("add_bos_token", "add_eos_token") if key in facts}
    ours = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy}
    write_json(folder / CONFIG_FILE, _facts(folder) | kept | ours | {"added_tokens_decoder": added})


def encode_prompt(prompt: str, tokenizer: "PreTrainedTokenizerBase | TextEncoder") -> Encoded:
    """Ids of a prompt with IMAGE_TOKEN_INDEX where `<image>` stands, BOS once at the beginning.

    Each stretch between images is a text of its own, as in LLaVA.
    """
    encoder = _encoder(tokenizer)
    stretches = prompt.split(DEFAULT_IMAGE_TOKEN)
    parts = [(0, encoder.encode(stretches[0], first=True))]
    place = len(stretches[0])
    for stretch in stretches[1:]:
        parts.append((place, single(IMAGE_TOKEN_INDEX, len(DEFAULT_IMAGE_TOKEN))))
        place += len(DEFAULT_IMAGE_TOKEN)
        parts.append((place, encoder.encode(stretch, first=False)))
        place += len(stretch)
    return join(parts)


def tokenizer_image_token(
    prompt: str,
    tokenizer: "PreTrainedTokenizerBase | TextEncoder",
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> "list[int] | torch.Tensor":
    """Ids of a prompt with `image_token_index` for each `<image>`: a list, or int64 [T] for "pt".

    The name and arguments are LLaVA's; the ids are those that training sees.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors={return_tensors!r}; expected None or 'pt'")
    ids = encode_prompt(prompt, tokenizer).ids
    if image_token_index != IMAGE_TOKEN_INDEX:
        ids = [image_token_index if token == IMAGE_TOKEN_INDEX else token for token in ids]
    if return_tensors is None:
        return ids
    import torch

    return torch.tensor(ids, dtype=torch.long)


_encoders: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""Tokenizer -> (what it was then, its encoder): evaluation calls with the same one every time."""


def _encoder(tokenizer: "PreTrainedTokenizerBase | TextEncoder") -> TextEncoder:
    if isinstance(tokenizer, SentencePieceEncoder | BackendEncoder):
        return tokenizer
    state = (len(tokenizer), tuple(tokenizer("").input_ids))
    known = _encoders.get(tokenizer)
    if known is None or known[0] != state:
        known = _encoders[tokenizer] = (state, text_encoder(tokenizer))
    return known[1]
