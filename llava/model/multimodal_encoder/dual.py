"""CLIP and SigLIP whole: embeddings of images and of texts that can be compared.

A tower of these families is the vision half alone, tapped at a block. Here the model runs to its
end, as it was trained. Letters in shapes: B images or texts, S side in pixels, D width of an
embedding, L tokens of a text, C width of a token.
"""

import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from llava.errors import LawError, UsageError
from llava.log import get_logger
from llava.model.multimodal_encoder.base import without_autocast
from llava.model.multimodal_encoder.known import check_packages, families
from llava.model.multimodal_encoder.preprocess import check_frame, pixels
from llava.model.multimodal_encoder.pretrained import unread
from llava.model.multimodal_encoder.spec import TowerSpec
from llava.model.multimodal_encoder.vit import quiet

logger = get_logger("towers")


@dataclass(frozen=True)
class Kind:
    """How a model type of transformers takes texts."""

    model: str
    """Class of transformers."""
    masked: bool
    """Whether padding is hidden from the model. SigLIP was trained with padding in sight, and reads
    its embedding off the last place."""
    lower: bool
    """Whether texts are put in lower case. CLIP's tokenizer does so itself, and SigLIP's; SigLIP 2
    was trained so, but the tokenizer that its checkpoints name (Gemma's) keeps capitals."""
    ends: bool
    """Whether the embedding is read off the end mark, which every text must have then."""


KINDS = {
    "clip": Kind("CLIPModel", masked=True, lower=False, ends=True),
    "siglip": Kind("SiglipModel", masked=False, lower=True, ends=False),
}
"""`model_type` of a config -> what is special about it."""


class DualEncoder:
    """A frozen CLIP, OpenCLIP or SigLIP in transformers' layout, with both of its halves.

    Embeddings are not normalised. Texts are always padded to the model's full length, so an
    embedding does not depend on the texts beside it. `truncated` counts the texts that were too
    long. Raises UsageError for a spec without a text half, LawError where weights or the tokenizer
    cannot be read.
    """

    def __init__(
        self,
        spec: TowerSpec,
        frame: str = "own",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ):
        check_packages(spec)
        self.spec = spec
        self.frame = check_frame(frame)
        self.dtype = dtype
        self.device = torch.device(device)
        self.source = spec.weights or spec.id
        kind = _model_type(spec)
        if kind not in KINDS:
            raise UsageError(
                f"{spec.id} is a {kind}, which has no text half; expected one of {', '.join(KINDS)}"
            )
        self._kind = KINDS[kind]
        self.tokenizer = self._read_tokenizer()
        self.model = self._read().to(self.device)
        self.truncated = 0

    @classmethod
    def reads(cls, spec: TowerSpec) -> bool:
        """Whether the weights of a spec have both halves; LawError where no config is to be had."""
        return _model_type(spec) in KINDS

    @property
    def text_dim(self) -> int:
        """D: width of an embedding of `texts` and of `images`."""
        text = self.model.config.text_config
        return getattr(text, "projection_size", None) or self.model.config.projection_dim

    @property
    def token_dim(self) -> int:
        """C: width of a token of `text_tokens`."""
        return self.model.config.text_config.hidden_size

    @property
    def text_length(self) -> int:
        """L: places of a text, begin and end marks included."""
        return self.model.config.text_config.max_position_embeddings

    @property
    def text_digest(self) -> str:
        """SHA-256 over the tokenizer's vocabulary and how texts are put; weights are the spec's."""
        facts = [sorted(self.tokenizer.get_vocab().items()), self.text_length, self._kind.lower]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """float32 [B, 3, S, S] of PIL images of any mode and size."""
        return pixels(images, self.spec, self.frame)

    @torch.no_grad()
    def images(self, pixels_BCSS: torch.Tensor) -> torch.Tensor:
        """Embeddings float32 [B, D] of what `preprocess` gives."""
        given = pixels_BCSS.to(self.device, self.dtype)
        with without_autocast(self.device):
            return self.model.get_image_features(pixel_values=given).pooler_output.float()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings float32 [B, D]; a text that is too long is cut off, with a warning."""
        given, _ = self._tokens(texts)
        with without_autocast(self.device):
            return self.model.get_text_features(**given).pooler_output.float()

    @torch.no_grad()
    def text_tokens(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(last hidden states after the final norm, float32 [B, L, C]; bool [B, L]: no padding).

        Begin and end marks count as tokens of the text.
        """
        given, mask_BL = self._tokens(texts)
        with without_autocast(self.device):
            states = self.model.text_model(**given).last_hidden_state
        return states.float(), mask_BL

    def _tokens(self, texts: Sequence[str]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """(what the text half takes, bool [B, L]: which places are no padding)."""
        put = [text.lower() for text in texts] if self._kind.lower else list(texts)
        rows = self.tokenizer(
            put,
            padding="max_length",
            max_length=self.text_length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids_BL, mask_BL = rows["input_ids"], rows["attention_mask"]
        self._check(ids_BL, texts)
        self._count_cut([text for text, row in zip(put, mask_BL, strict=True) if row.all()])
        given = {"input_ids": ids_BL.to(self.device)}
        if self._kind.masked:
            given["attention_mask"] = mask_BL.to(self.device)
        return given, mask_BL.bool().to(self.device)

    def _check(self, ids_BL: torch.Tensor, texts: Sequence[str]) -> None:
        """Raises LawError for ids that the model has no vectors for, or texts without an end."""
        text = self.model.config.text_config
        if int(ids_BL.max()) >= text.vocab_size:
            raise LawError(
                f"{self.source}: its tokenizer gives id {int(ids_BL.max())}, and the model has "
                f"{text.vocab_size} tokens; expected the tokenizer that it was trained with"
            )
        # A config that says 2 is an early conversion, where the largest id of a text is its end.
        if self._kind.ends and text.eos_token_id != 2:
            ended = (ids_BL == text.eos_token_id).any(1)
            if not ended.all():
                wrong = texts[int((~ended).nonzero()[0])]
                raise LawError(
                    f"{self.source}: its tokenizer does not end {wrong[:40]!r} with id "
                    f"{text.eos_token_id}, which its config.json has as eos_token_id and where the "
                    "embedding is read; expected the tokenizer that it was trained with"
                )

    def _count_cut(self, full: list[str]) -> None:
        """Counts those of the texts that fill all places that had more tokens than these."""
        if not full:
            return
        lengths = map(len, self.tokenizer(full, verbose=False)["input_ids"])
        cut = [text for text, size in zip(full, lengths, strict=True) if size > self.text_length]
        if cut and not self.truncated:
            logger.warning(
                "%s takes %d tokens of a text; longer ones are cut off, such as '%s...'",
                self.spec.id,
                self.text_length,
                cut[0][:60],
            )
        self.truncated += len(cut)

    def _read(self) -> torch.nn.Module:
        import transformers

        model_class = getattr(transformers, self._kind.model)
        try:
            with quiet():
                model, found = model_class.from_pretrained(
                    self.source, dtype=self.dtype, output_loading_info=True
                )
        except Exception as error:  # OSError, UnpicklingError, SafetensorError, KeyError, ...
            raise LawError(unread(self.spec.id, self.source, error)) from error
        if missing := sorted(found["missing_keys"]):
            raise LawError(
                f"{self.source}: {len(missing)} weights are missing, such as {missing[0]}; "
                f"expected a whole {model_class.__name__}"
            )
        return model.requires_grad_(False).eval()

    def _read_tokenizer(self) -> Any:
        import transformers

        try:
            with quiet():
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.source)
        except Exception as error:  # OSError, ValueError, TypeError: as its class would have it
            raise LawError(unread(self.spec.id, self.source, error, "tokenizer")) from error
        # Without its files, transformers makes some tokenizers of no words at all.
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise LawError(
                f"{self.source}: holds no vocabulary; expected tokenizer.json, or vocab.json and "
                "merges.txt, beside config.json"
            )
        tokenizer.padding_side = "right"
        return tokenizer


def _model_type(spec: TowerSpec) -> str:
    """As the config of the tower's weights has it; LawError where there is none to read."""
    import transformers

    source = spec.weights or spec.id
    try:
        return transformers.AutoConfig.from_pretrained(source).model_type
    except (OSError, ValueError) as error:
        raise LawError(unread(spec.id, source, error, "config")) from error


def has_text(spec: TowerSpec) -> bool:
    """Whether the tower's own weights come with a text half: neither DINOv2's nor CLIP's eye's."""
    family = families().get(spec.family)
    if family is None or not family.dual:
        return False
    return _dual_class(spec).reads(spec)


def build_dual(
    spec: TowerSpec,
    frame: str = "own",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> DualEncoder:
    """Both halves of the model that a spec is the vision half of, by the class its family names.

    Raises UsageError where there is no text half (`has_text`).
    """
    family = families().get(spec.family)
    if family is None or not family.dual:
        raise UsageError(f"{spec.id}: family '{spec.family}' has no text half")
    return _dual_class(spec)(spec, frame, dtype, device)


def _dual_class(spec: TowerSpec) -> type:
    module, _, name = families()[spec.family].dual.partition(":")
    return getattr(importlib.import_module(module), name)
