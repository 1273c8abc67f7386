"""What is chosen of a diffusion tower by flags and configs; everything else is the tower's own."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.errors import UsageError, unknown_name
from llava.model.multimodal_encoder.spec import COMPATS, VAE_SAMPLES, TowerSpec


@dataclass(frozen=True)
class DiffusionOptions:
    """None leaves what the tower's spec says. Names are those of the published flags."""

    up_ft_index: int | None = None
    t: int | None = None
    prompt: str | None = None
    ensemble_size: int | None = None
    img_size: int | None = None
    noise_seed: int | None = None
    vae_sample: str | None = None
    compat: str | None = None

    @classmethod
    def of(cls, source: Any) -> "DiffusionOptions":
        """From parsed flags, a config or a mapping, whichever of the names it has."""
        values = source if isinstance(source, Mapping) else vars(source)
        return cls(**{name: values.get(name) for name in NAMES})

    @property
    def given(self) -> dict[str, Any]:
        """What is not left open."""
        return {name: v for name in NAMES if (v := getattr(self, name)) is not None}

    def applied(self, specs: Sequence[TowerSpec]) -> list[TowerSpec]:
        """Specs with the options in every diffusion tower; sizes are settled later.

        Raises UsageError for an option that none of them takes.
        """
        for name, value in self.given.items():
            if not any(_takes(spec, name, value) for spec in specs):
                kind = "tower with a prompt" if name == "prompt" else "diffusion tower"
                raise UsageError(
                    f"--{name} {value!r}: {'.'.join(spec.id for spec in specs)} has no {kind} to "
                    "take it"
                )
        return [self._to(spec) for spec in specs]

    def _to(self, spec: TowerSpec) -> TowerSpec:
        if spec.t is None or not self.given:
            return spec
        left_out = {"img_size"} if spec.prompt is not None else {"img_size", "prompt"}
        changes = {name: v for name, v in self.given.items() if name not in left_out}
        if "noise_seed" in changes:
            changes["seed"] = changes.pop("noise_seed")
        for name, known in (("compat", COMPATS), ("vae_sample", VAE_SAMPLES)):
            if name in changes and changes[name] not in known:
                raise UsageError(unknown_name(name, changes[name], known))
        try:
            return dataclasses.replace(spec, **changes)
        except ValueError as error:
            raise UsageError(str(error)) from None


NAMES = tuple(field.name for field in dataclasses.fields(DiffusionOptions))


def _takes(spec: TowerSpec, name: str, value: Any) -> bool:
    """A published config holds the prompt '' for every tower; one without a prompt passes it by."""
    if spec.t is None:
        return False
    return name != "prompt" or spec.prompt is not None or value == ""


def add_diffusion_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `DiffusionOptions`; `DiffusionOptions.of` reads them back."""
    group = parser.add_argument_group("diffusion towers", "default: the tower's own (`law towers`)")
    group.add_argument("--up_ft_index", type=int, metavar="N", help="block that is read")
    group.add_argument("--t", type=int, metavar="N", help="time step of the noise")
    group.add_argument("--prompt", help="text condition")
    group.add_argument("--ensemble_size", type=int, metavar="N", help="noise draws to average")
    group.add_argument("--img_size", type=int, metavar="PX", help="side of the input")
    group.add_argument("--noise_seed", type=int, metavar="N", help="of the noise")
    group.add_argument("--vae_sample", choices=VAE_SAMPLES, help="latents: drawn, or their mean")
    group.add_argument("--compat", choices=COMPATS, help="as published, or as trained")
