"""What turns a causal language model of transformers into LLaVA: images in, text out.

Letters in shapes: B rows, L ids of a row, T positions once images are in, I images, N tokens of an
image, C their width, H hidden size, S supervised positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import is_flash_attention_requested

from llava.constants import (
    IGNORE_INDEX,
)
from llava.errors import LawError, UsageError
from llava.log import get_logger
from llava.model.comparison import difference
from llava.model.image_rows import Images, Layout, Views, views
from llava.model.lazy_tower import LazyTower
from llava.model.loss import token_losses
from llava.model.multimodal_encoder.anyres import Size
from llava.model.multimodal_encoder.diffusion.options import DiffusionOptions
from llava.model.multimodal_encoder.registry import Representation, parse_replacements, resolve
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.representation import dtype_name, frame_of_config, record
from llava.model.saving import NEWLINE, load_projector
from llava.model.segments import SEGMENTS, boundaries_as_mask
from llava.model.splice import Plan, plan
from llava.tokenization import add_image_tokens

logger = get_logger("model")

SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Config fields of models whose logits are not simply those of their head."""


@dataclass
class LlavaOutput(CausalLMOutputWithPast):
    """A model's answer; the last three only where `per_token` was asked for."""

    token_losses: torch.Tensor | None = None
    """float32 [S]: -log p of every supervised token, nats."""
    token_rows: torch.Tensor | None = None
    """int64 [S]: the row that each stands in."""
    token_greedy: torch.Tensor | None = None
    """bool [S]: whether it is the likeliest token at its place."""


@dataclass
class Supervised:
    """Positions that predict a supervised token."""

    place_S: torch.Tensor
    """Index into the flattened [B * T] positions."""
    target_S: torch.Tensor
    row_S: torch.Tensor
    count: int
    """Zero where a batch has none; then there is one position, whose loss is not counted."""


class LlavaCausalLM:
    """Mixed into a `...ForCausalLM` class of transformers, before it.

    The projector is a part of the base model (`model.mm_projector`); the tower is not (LazyTower).
    """

    accepts_loss_kwargs = True
    _keys_to_ignore_on_load_unexpected = (
        r"(^|\.)vision_tower\.",
        r"rotary_emb\.inv_freq$",
    )

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        object.__setattr__(self, "_tower", None)
        for name in SCALED_LOGITS:
            if getattr(config, name, None) not in (None, 1, 1.0):
                raise UsageError(f"{config.model_type}: models with {name} are not supported")
        if getattr(config, "mm_hidden_size", None):
            self._add_projector()
            self._add_newline()

    def get_model(self) -> nn.Module:
        """The model without its head."""
        return self.base_model

    def get_vision_tower(self) -> LazyTower | None:
        """The tower, its weights perhaps not read yet; None in a model for text alone."""
        return self._tower

    def set_vision_tower(self, tower: LazyTower | None) -> None:
        """Gives the model its tower; not as a module of it."""
        object.__setattr__(self, "_tower", tower)

    @property
    def mm_projector(self) -> nn.Module | None:
        """The projector."""
        return getattr(self.base_model, "mm_projector", None)

    def initialize_vision_modules(
        self,
        model_args: Any,
        fsdp: object = None,
        *,
        representation: Representation | None = None,
        frame: str | None = None,
        dtype: torch.dtype | None = None,
        load_tower: bool = True,
    ) -> None:
        """Gives the model the tower and projector that LLaVA's model arguments name.

        A projector that the model has already, of the same type and representation, is kept;
        `pretrain_mm_mlp_adapter` is then read into it. `dtype` is the tower's. Everything is
        written into the config. (`fsdp` is LLaVA's, without effect.)
        """
        config = self.config
        if representation is None:
            representation = resolve(
                model_args.vision_tower,
                join=getattr(model_args, "mm_vision_join", "channel"),
                grid_align=getattr(model_args, "mm_vision_grid_align", ""),
                select=getattr(model_args, "mm_vision_select_feature", None),
                layer=getattr(model_args, "mm_vision_select_layer", None),
                replace=parse_replacements(getattr(model_args, "tower_alias", None) or []),
                diffusion=DiffusionOptions.of(model_args),
            )
        kind = getattr(model_args, "mm_projector_type", None) or "linear"
        before = config.to_dict()
        record(config, representation, getattr(model_args, "mm_vision_geometry", None))
        config.use_mm_proj = True
        config.mm_projector_type = kind
        config.mm_patch_merge_type = getattr(model_args, "mm_patch_merge_type", None) or "flat"
        if frame is None:
            frame = frame_of_config(config, representation)
        same = (before.get("mm_projector_type"), before.get("mm_hidden_size")) == (
            kind,
            config.mm_hidden_size,
        )
        if self.mm_projector is None or not same or difference(before, config):
            self._add_projector()
        self._add_newline()
        self._place_projector()
        config.mm_vision_dtype = dtype_name(dtype or self.dtype)
        self.set_vision_tower(LazyTower(representation, frame, dtype or self.dtype))
        if load_tower:
            self._tower.load_model()
        adapter = getattr(model_args, "pretrain_mm_mlp_adapter", None)
        if adapter:
            load_projector(self, adapter)

    def initialize_vision_tokenizer(
        self, model_args: Any, tokenizer: Any, added: Sequence[int] | None = None
    ) -> None:
        """Adds LLaVA's image tokens where the arguments ask for them; new rows are means of old.

        `added` are the ids of those that `add_image_tokens` has put into the tokenizer already.
        With `tune_mm_mlp_adapter` and start and end tokens the input embeddings are trained.
        """
        if added is None:
            added = add_image_tokens(tokenizer, model_args)
        if len(tokenizer) > self.get_input_embeddings().num_embeddings:
            self.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        if added:
            with torch.no_grad():
                for table in (self.get_input_embeddings(), self.get_output_embeddings()):
                    table.weight[list(added)] = table.weight[: min(added)].mean(0)
        marks = getattr(model_args, "mm_use_im_start_end", False)
        if marks and getattr(model_args, "tune_mm_mlp_adapter", False):
            self.get_input_embeddings().weight.requires_grad_(True)

    def _add_projector(self) -> None:
        self.base_model.mm_projector = build_vision_projector(self.config)

    def _add_newline(self) -> None:
        """What ends the rows of a map of tiles, where they are merged so and none is there yet."""
        merge = getattr(self.config, "mm_patch_merge_type", None) or "flat"
        if merge == "spatial_unpad" and not hasattr(self.base_model, NEWLINE):
            width = self.config.hidden_size
            setattr(self.base_model, NEWLINE, nn.Parameter(torch.randn(width) / width**0.5))

    def _place_projector(self) -> None:
        """Beside the embeddings and in their dtype."""
        like = self.get_input_embeddings().weight
        self.mm_projector.to(device=like.device, dtype=like.dtype)
        newline = getattr(self.base_model, NEWLINE, None)
        if newline is not None:
            newline.data = newline.data.to(device=like.device, dtype=like.dtype)

    # ---------------------------------------------------------------- images to rows

    def encode_images(
        self,
        images: Images | None,
        image_sizes: Sequence[Size] | None = None,
        image_features: torch.Tensor | Sequence[torch.Tensor] | None = None,
        device: torch.device | None = None,
    ) -> tuple[torch.Tensor, list[int]]:
        """Projected rows [R, H] of all images, and how many of them every image has.

        Tower and projector run once. `image_features` are a tower's tokens [I, N, C] (of several
        views an image: a list of [V, N, C]), from a store, in place of `images`.
        """
        device = device or self.get_input_embeddings().weight.device
        if image_features is not None:
            given = _views_of_features(image_features)
            tokens = given.pixels.to(device)
        else:
            tower = self._needed_tower()
            given = views(images, len(tower.representation.parts))
            tokens = tower(given.pixels, device)
        projected = self.mm_projector(self._as_projector(tokens))
        return self._layout().rows(projected, given, self._tilings(given, image_sizes))

    def _needed_tower(self) -> LazyTower:
        if self._tower is None:
            raise LawError(
                "images for a model without a vision tower; load it by load_pretrained_model, or "
                "call initialize_vision_modules"
            )
        return self._tower

    def _as_projector(self, tokens: torch.Tensor) -> torch.Tensor:
        first = next(self.mm_projector.parameters(), self.get_input_embeddings().weight)
        return tokens.to(first.dtype)

    def _layout(self) -> Layout:
        merge = getattr(self.config, "mm_patch_merge_type", None) or "flat"
        if merge == "flat":
            return Layout()
        grid = self._needed_tower().representation.grid
        return Layout(merge, grid, getattr(self.base_model, NEWLINE, None))

    def _tilings(
        self, given: Views, image_sizes: Sequence[Size] | None
    ) -> list[tuple[Size, Size]] | None:
        pinpoints = getattr(self.config, "image_grid_pinpoints", None)
        if not given.tiled or image_sizes is None or not pinpoints or self._tower is None:
            return None
        grid = self._tower.image_processor.anyres_grid
        sizes = [tuple(int(side) for side in size) for size in image_sizes]
        return [(size, grid(size, pinpoints)) for size in sizes]

    def _rows_of_no_image(self, device: torch.device) -> tuple[torch.Tensor, list[int]]:
        """A zero token through the projector, which stands nowhere.

        A batch without images so gives the projector gradients of zero: ranks that wait for each
        other's gradients, or gather its weights together, need them.
        """
        token = torch.zeros(1, 1, self.config.mm_hidden_size, device=device)
        rows = self.mm_projector(self._as_projector(token)).flatten(0, 1)
        newline = getattr(self.base_model, NEWLINE, None)
        return rows if newline is None else rows + 0.0 * newline, []

    def _plan(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        row_counts: Sequence[int],
        flat: bool,
        padding_side: str | None,
        whole: bool,
    ) -> Plan:
        keep = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            keep = attention_mask.bool()
        return plan(
            input_ids,
            keep,
            row_counts,
            labels,
            segment_ids,
            None if whole else getattr(self.config, "tokenizer_model_max_length", None),
            padding_side or self._padding_side,
            flat,
        )

    def _gathered(self, made: Plan, image_rows: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Embeddings [B, T, H] of a plan: one gather over a zero row, text rows and image rows."""
        text = self.get_input_embeddings()(made.text_ids.to(device))
        image_rows = image_rows.to(text.device, text.dtype)
        zero = text.new_zeros(1, text.shape[1])
        rows = torch.cat([zero, text, image_rows])
        flat = rows.index_select(0, made.source_BT.flatten().to(rows.device))
        return flat.unflatten(0, made.source_BT.shape)

    def _spliced(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
        images: Images | None,
        image_sizes: Sequence[Size] | None,
        image_features: torch.Tensor | Sequence[torch.Tensor] | None = None,
        segment_ids: torch.Tensor | None = None,
        flat: bool = False,
        padding_side: str | None = None,
        whole: bool = False,
    ) -> tuple[torch.Tensor, Plan]:
        """Embeddings [B, T, H] and their plan; padded as the config says unless told otherwise.

        They are cut to the config's maximum length unless they are to stay `whole`.
        """
        device = input_ids.device
        # Before the tower: the copies would else wait for it, and a GPU idle while the host plans.
        input_ids, attention_mask, labels, segment_ids = (
            None if given is None else given.cpu()
            for given in (input_ids, attention_mask, labels, segment_ids)
        )
        if images is not None or image_features is not None:
            rows, counts = self.encode_images(images, image_sizes, image_features, device)
        elif self.mm_projector is not None and labels is not None:
            rows, counts = self._rows_of_no_image(device)
        else:
            rows, counts = torch.empty(0, self.config.hidden_size), []
        made = self._plan(
            input_ids, attention_mask, labels, segment_ids, counts, flat, padding_side, whole
        )
        return self._gathered(made, rows, device), made

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
        labels: torch.Tensor | None,
        images: Images | None,
        image_sizes: Sequence[Size] | None = None,
    ) -> tuple:
        """LLaVA's own interface: (None, positions, mask, past, embeddings [B, T, H], labels).

        What was not given is None again, the mask comes in the dtype it had. Without images, and
        for a single id (a step of generation), everything is given back as it came.
        """
        if images is None or input_ids.shape[1] == 1:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        embeddings, made = self._spliced(input_ids, attention_mask, labels, images, image_sizes)
        device = embeddings.device
        mask = None if attention_mask is None else made.mask_BT.to(device, attention_mask.dtype)
        position = None if position_ids is None else made.position_BT.to(device)
        spliced_labels = None if labels is None else made.labels_BT.to(device)
        return None, position, mask, past_key_values, embeddings, spliced_labels

    # ---------------------------------------------------------------- forward

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        images: Images | None = None,
        image_sizes: Sequence[Size] | None = None,
        image_features: torch.Tensor | Sequence[torch.Tensor] | None = None,
        segment_ids: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        per_token: bool = False,
        **kwargs: Any,
    ) -> LlavaOutput:
        """Loss and logits of ids [B, L] with -200 where images stand.

        With `labels` [B, L] (of the ids; -100: none) the loss is the mean over supervised tokens,
        or their sum over `num_items_in_batch`. In training, and with `per_token`, logits exist at
        positions that predict a supervised token alone, and are not given back; else all are.
        `segment_ids` [B, L] tell the samples of a packed row apart: each attends to itself.
        Raises LawError where images are missing.
        """
        supervises_only = labels is not None and (self.training or per_token)
        made = None
        if self._is_to_be_spliced(
            input_ids, past_key_values, labels, images, image_features, segment_ids
        ):
            flat = segment_ids is not None or (supervises_only and self._attends_to_segments())
            inputs_embeds, made = self._spliced(
                input_ids,
                attention_mask,
                labels,
                images,
                image_sizes,
                image_features,
                segment_ids,
                flat,
            )
            input_ids = None
            labels = made.labels_BT
            device = inputs_embeds.device
            if per_token and made.boundaries is None:  # scored, not trained on
                self.check_positions(inputs_embeds.shape[1])
            if made.boundaries is not None:
                attention_mask, position_ids, more = self._packed(made, device)
                kwargs.update(more)
                use_cache = False
            else:
                # Behind right padding nothing looks, so it needs no mask when only loss counts.
                unseen = not made.padded or (supervises_only and self._padding_side == "right")
                attention_mask = None if unseen else made.mask_BT.to(device)
                position_ids = None if position_ids is None else made.position_BT.to(device)
        if labels is not None and use_cache is None:
            use_cache = False
        outputs = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_BTH = outputs.last_hidden_state
        result = LlavaOutput(
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        head = self.get_output_embeddings()
        if not supervises_only:
            result.logits = head(_kept(hidden_BTH, logits_to_keep if labels is None else 0))
        if labels is not None:
            rows = None if made is None else made.row_BT
            self._add_loss(result, hidden_BTH, labels, rows, num_items_in_batch, per_token)
        return result

    def _is_to_be_spliced(
        self,
        input_ids: torch.Tensor | None,
        past_key_values: Any,
        labels: torch.Tensor | None,
        images: Images | None,
        image_features: Any,
        segment_ids: torch.Tensor | None,
    ) -> bool:
        """Whether ids become embeddings here: not for plain text, nor in steps of generation."""
        if input_ids is None:
            return False
        if past_key_values is not None and past_key_values.get_seq_length():
            return False
        with_images = images is not None or image_features is not None
        learns = labels is not None and self.mm_projector is not None
        return with_images or learns or segment_ids is not None

    def _attends_to_segments(self) -> bool:
        """Whether attention takes rows laid one after the other, so padding costs nothing."""
        name = self.config._attn_implementation
        return name == SEGMENTS or is_flash_attention_requested(self.config)

    @property
    def _padding_side(self) -> str:
        return getattr(self.config, "tokenizer_padding_side", None) or "right"

    def _packed(
        self, made: Plan, device: torch.device
    ) -> tuple[torch.Tensor | None, torch.Tensor, dict[str, Any]]:
        """(mask, positions, more arguments) for a row of segments.

        Flash attention takes boundaries, `segments` its own in place of a mask; the others find
        segments where positions begin anew.
        """
        position = made.position_BT.to(device)
        if self.config._attn_implementation == SEGMENTS:
            return boundaries_as_mask(made.boundaries), position, {}
        if not is_flash_attention_requested(self.config):
            return None, position, {}
        edges = torch.tensor(made.boundaries, dtype=torch.int32)
        longest = int(edges.diff().max())
        edges = edges.to(device)
        return (
            None,
            position,
            {
                "cu_seq_lens_q": edges,
                "cu_seq_lens_k": edges,
                "max_length_q": longest,
                "max_length_k": longest,
            },
        )

    def _add_loss(
        self,
        result: LlavaOutput,
        hidden_BTH: torch.Tensor,
        labels: torch.Tensor,
        row_BT: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
        per_token: bool,
    ) -> None:
        """The loss, from logits that exist already or from those of supervised positions."""
        found = _supervised(labels, row_BT, hidden_BTH.device)
        if result.logits is None:
            logits_SV = self.get_output_embeddings()(
                hidden_BTH.flatten(0, 1).index_select(0, found.place_S)
            )
        else:
            logits_SV = result.logits.flatten(0, 1).index_select(0, found.place_S)
        losses_S = token_losses(logits_SV, found.target_S)
        if not found.count:
            losses_S = losses_S * 0.0
        items = found.count if num_items_in_batch is None else num_items_in_batch
        # A step of images that turned out damaged supervises nothing, and its loss is 0.
        result.loss = losses_S.sum() / torch.as_tensor(items, device=losses_S.device).clamp(min=1)
        if per_token:
            result.token_losses = losses_S[: found.count]
            result.token_rows = found.row_S[: found.count]
            result.token_greedy = (logits_SV.argmax(-1) == found.target_S)[: found.count]

    # ---------------------------------------------------------------- generation

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        images: Images | None = None,
        image_sizes: Sequence[Size] | None = None,
        **kwargs: Any,
    ) -> Any:
        """New ids alone [B, new], of ids [B, L] with -200 where images stand.

        Takes what transformers' `generate` takes. Rows may be padded on either side, as
        `attention_mask` says: once images are in, they are padded on the left.
        """
        kwargs.pop("position_ids", None)
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        features = kwargs.pop("image_features", None)
        if ids is None or kwargs.get("inputs_embeds") is not None:
            return super().generate(inputs=ids, **kwargs)
        mask = kwargs.pop("attention_mask", None)
        embeddings, mask, _ = self.embed_prompt(ids, mask, images, image_sizes, features)
        return super().generate(inputs_embeds=embeddings, attention_mask=mask, **kwargs)

    def check_positions(self, count: int, room: int = 0) -> None:
        """Raises LawError where the language model has not `count` positions, and `room` more."""
        longest = getattr(self.config, "max_position_embeddings", None)
        if longest is not None and count + room > longest:
            raise LawError(
                f"the prompt takes {count} positions, with those of its images, and the language "
                f"model has {longest}; ask for less"
            )

    def embed_prompt(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        images: Images | None = None,
        image_sizes: Sequence[Size] | None = None,
        image_features: torch.Tensor | Sequence[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(embeddings [B, T, H], mask int64 [B, T], positions int64 [B, T]) of prompts to go on
        from: whole, images in, padded on the left.

        Raises LawError for one that fills the language model's positions.
        """
        embeddings, made = self._spliced(
            input_ids,
            attention_mask,
            None,
            images,
            image_sizes,
            image_features,
            padding_side="left",
            whole=True,
        )
        self.check_positions(embeddings.shape[1], room=1)
        device = embeddings.device
        return embeddings, made.mask_BT.to(device, torch.int64), made.position_BT.to(device)


def _kept(hidden_BTH: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The last positions, or those of an index; 0 keeps all."""
    if isinstance(logits_to_keep, int):
        return hidden_BTH[:, -logits_to_keep:] if logits_to_keep else hidden_BTH
    return hidden_BTH[:, logits_to_keep]


def _supervised(
    labels_BT: torch.Tensor, row_BT: torch.Tensor | None, device: torch.device
) -> Supervised:
    """Positions whose next one is supervised; labels on the CPU cost no wait for the device."""
    row, column = (labels_BT[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    count = len(row)
    if not count:
        row, column = labels_BT.new_zeros(1), labels_BT.new_zeros(1)
        target = labels_BT.new_zeros(1)
    else:
        target = labels_BT[row, column + 1]
    place = row * labels_BT.shape[1] + column
    own_row = row if row_BT is None else row_BT[row, column]
    return Supervised(place.to(device), target.to(device), own_row.to(device), count)


def _views_of_features(features: torch.Tensor | Sequence[torch.Tensor]) -> Views:
    """Stored tokens [I, N, C], or a list of [V, N, C] (or [N, C]), as views."""
    if isinstance(features, torch.Tensor):
        return Views(features, (1,) * len(features), False)
    groups = [one[None] if one.ndim == 2 else one for one in features]
    return Views(torch.cat(groups), tuple(len(group) for group in groups), True)
