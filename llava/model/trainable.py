"""Which parameters a stage trains, said once and explicitly."""

from dataclasses import dataclass

from torch import nn

from llava.errors import UsageError
from llava.model.saving import NEWLINE, of_projector


def trainable(
    model: nn.Module,
    stage: int,
    freeze_backbone: bool = False,
    freeze_mm_mlp_adapter: bool = False,
) -> None:
    """Stage 1 trains the projector alone, stage 2 projector and language model.

    `freeze_backbone` leaves projector and head of stage 2, `freeze_mm_mlp_adapter` all but the
    projector. The tower is no parameter of the model.
    """
    if stage not in (1, 2):
        raise UsageError(f"stage {stage}: expected 1 (projector) or 2 (projector and model)")
    head = model.get_output_embeddings()
    for name, parameter in model.named_parameters():
        of_head = parameter is head.weight or parameter is getattr(head, "bias", None)
        if name.endswith(NEWLINE):  # used where maps of tiles are merged with it, and nowhere else
            merge = getattr(model.config, "mm_patch_merge_type", None) or "flat"
            parameter.requires_grad_("unpad" in merge and not freeze_mm_mlp_adapter)
        elif of_projector(name):
            parameter.requires_grad_(not freeze_mm_mlp_adapter)
        else:
            parameter.requires_grad_(stage == 2 and (of_head or not freeze_backbone))


@dataclass(frozen=True)
class Part:
    """A part of a model and its parameters."""

    name: str
    parameters: int
    trained: int


def parameter_table(model: nn.Module) -> list[Part]:
    """Projector, embeddings, language model and head, with how many parameters are trained.

    A head that shares its weight with the embeddings is counted there. The frozen tower, which is
    no part of the model, comes last where its weights were read.
    """
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    head = {id(p) for p in model.get_output_embeddings().parameters()} - embeddings
    counts: dict[str, list[int]] = {
        name: [0, 0] for name in ("projector", "embeddings", "language model", "head")
    }
    for name, parameter in model.named_parameters():
        if of_projector(name):
            part = "projector"
        elif id(parameter) in embeddings:
            part = "embeddings"
        else:
            part = "head" if id(parameter) in head else "language model"
        size = getattr(parameter, "ds_numel", parameter.numel())
        counts[part][0] += size
        counts[part][1] += size * parameter.requires_grad
    table = [Part(name, total, trained) for name, (total, trained) in counts.items()]
    tower = model.get_vision_tower()
    if tower is not None and tower.is_loaded:
        size = sum(p.numel() for p in tower.load_model().parameters())
        table.append(Part("tower", size, 0))
    return table
