"""What is chosen of a diffusion tower by flags and configs; everything else is the tower's own."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from llava.errors import UsageError, unknown_name
from llava.model.multimodal_encoder.known import families, towers
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

    @classmethod
    def read(cls, texts: Mapping[str, str]) -> "DiffusionOptions":
        """From a name's `:option=value` pairs; UsageError for one that is none."""
        values = {}
        for name, text in texts.items():
            if name in ELSEWHERE:
                raise UsageError(f"{name}={text}: write {ELSEWHERE[name]}")
            if name not in IN_NAMES:
                raise UsageError(unknown_name("option of a diffusion tower", name, IN_NAMES))
            if name in WHOLE and not re.fullmatch(r"-?[0-9]+", text):
                raise UsageError(f"{name}={text}: expected a whole number")
            values[name] = int(text) if name in WHOLE else unquote(text)
        return cls(**values)

    @property
    def given(self) -> dict[str, Any]:
        """What is not left open."""
        return {name: v for name in NAMES if (v := getattr(self, name)) is not None}

    def under(self, own: "DiffusionOptions") -> "DiffusionOptions":
        """These, but for what `own` says, which is meant for one part alone."""
        return DiffusionOptions(**(self.given | own.given))

    def check_taken(self, specs: Sequence[TowerSpec]) -> None:
        """Raises UsageError for an option that none of the specs takes."""
        for name, value in self.given.items():
            if not any(_takes(spec, name, value) for spec in specs):
                kind = "tower with a prompt" if name == "prompt" else "diffusion tower"
                raise UsageError(
                    f"{name} {value!r}: {'.'.join(spec.id for spec in specs)} has no {kind} to "
                    "take it"
                )

    def applied(self, spec: TowerSpec) -> TowerSpec:
        """The spec with the options, where it is a diffusion tower; sizes are settled later.

        Raises UsageError for what cannot be computed.
        """
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
IN_NAMES = tuple(name for name in NAMES if name != "img_size")
"""Those that a name may hold; a size stands behind `@`."""
ELSEWHERE = {"seed": "noise_seed=N", "img_size": "the size behind the name: NAME@512"}
"""What one may take for an option of a name, and what is meant."""
WHOLE = ("up_ft_index", "t", "ensemble_size", "noise_seed")
FIELDS = {"noise_seed": "seed"}
"""Option -> field of the spec, where it is called otherwise."""


def _takes(spec: TowerSpec, name: str, value: Any) -> bool:
    """A published config holds the prompt '' for every tower; one without a prompt passes it by."""
    if spec.t is None:
        return False
    return name != "prompt" or spec.prompt is not None or value == ""


def suffix(spec: TowerSpec) -> str:
    """What sets a spec apart from its tower's usual one, as a name says it: `:t=261`.

    Results and stored features go by names, so two settings of one tower must not share theirs.
    """
    if spec.t is None:
        return ""
    usual = families()[spec.family].defaults
    if spec.id in towers():  # with other weights it may have another depth, so the block is not its
        usual = vars(towers()[spec.id]) | {"up_ft_index": usual["up_ft_index"]}
    text = ""
    for name in IN_NAMES:
        field = FIELDS.get(name, name)
        value, expected = getattr(spec, field), usual.get(field)
        if name == "up_ft_index":
            expected %= spec.depth
        if value != expected:
            text += f":{name}={_quoted(value)}"
    return text


def _quoted(value: Any) -> str:
    """Without the letters that mean something in a name."""
    return quote(str(value), safe="").replace(".", "%2E")
