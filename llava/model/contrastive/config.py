"""What a head is and what its captions are read with, as data. Nothing here imports torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

LEAST_TEMPERATURE = 0.01
"""Below it CLIP does not let its own fall, since training becomes unstable."""


@dataclass(frozen=True)
class TextConfig:
    """Where the vectors of captions come from."""

    source: Literal["clip", "llm", "file", "table"] = "clip"
    """`clip`: a CLIP's or SigLIP's own text half; `llm`: the last hidden states of a causal
    language model, of which a pooled vector is the mean; `file`: vectors computed elsewhere;
    `table`: a learned vector for every caption of the training data, and for no other."""
    model: str = ""
    """`clip`: name of the tower; `llm`: a folder or hub id."""
    vectors: Path | None = None
    """`file`: .npy, [captions, width] of floats."""
    captions: Path | None = None
    """`file`: JSON, the list of captions that the rows belong to."""
    width: int = 64
    """`table`: of a vector."""

    def __post_init__(self):
        needed = {"clip": ["model"], "llm": ["model"], "file": ["vectors", "captions"], "table": []}
        for name in needed[self.source]:
            if not getattr(self, name):
                raise ValueError(f"{name}: source '{self.source}' needs it")
        if self.width < 1:
            raise ValueError(f"width: expected 1 or more, got {self.width}")


@dataclass(frozen=True)
class HeadConfig:
    """A head on frozen patches and text vectors, and its loss.

    Defaults are the papers' forms. What public code does otherwise is an option: `weights_from:
    own`, `test_pooling: sum` and `pooling: sigmoid` of PACL, `mean_over: all` of SPARC.
    """

    kind: Literal["pacl", "sparc"] = "pacl"
    """`pacl`: one vector of the text pools the patches; `sparc`: every text token groups them."""
    width: int = 768
    """Of the common space."""
    dropout: float = 0.1
    rope: bool = False
    """Whether the frozen patches are turned by where they lie, before the projection."""
    pooling: Literal["softmax", "sigmoid", "sum"] = "softmax"
    """PACL: how a patch's weight follows from its cosine to the text; `sum`: all weigh the same."""
    pooling_scale: float | None = None
    """PACL: what the cosine is multiplied by; without it 1 for softmax and 10 for sigmoid."""
    weights_from: Literal["all", "own"] = "all"
    """PACL: in training an image is pooled anew for every caption of the batch, or once, by its own
    caption, which its vector then holds already. Scores are always of the first kind."""
    test_pooling: Literal["same", "softmax", "sigmoid", "sum"] = "same"
    """PACL: how scores pool, where that is not how training does."""
    sigma: float | None = None
    """SPARC: shares below are dropped; without it 1 / patches."""
    mean_over: Literal["valid", "all"] = "valid"
    """SPARC: the text's global vector is the mean over its tokens, or over padding too."""
    fine_weight: float = 1.0
    """SPARC: of the loss inside of each sample."""
    global_weight: float = 0.5
    """SPARC: of the loss over the batch."""
    test_score: Literal["local", "global"] = "local"
    """SPARC: a score is the cosine of the means over a text's tokens (`local`: of the patches
    grouped for them and the tokens; `global`: of all patches and the tokens)."""
    loss: Literal["clip", "siglip"] = "clip"
    """Over the batch: a choice among captions and among images, or yes and no for every two."""
    temperature: float = 0.1
    """Cosines are divided by it; .01 or more, as CLIP's."""
    bias: float = -10.0
    """SigLIP: what is added to a logit at the start."""
    learned_temperature: bool = False
    """Whether temperature and bias are learned too."""
    text: TextConfig = field(default_factory=lambda: TextConfig(source="table"))

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width: expected 1 or more, got {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 or more and less than 1, got {self.dropout}")
        if not self.temperature >= LEAST_TEMPERATURE:
            raise ValueError(
                f"temperature: expected {LEAST_TEMPERATURE} or more, got {self.temperature}"
            )
        if self.sigma is not None and not 0 <= self.sigma <= 1:
            raise ValueError(f"sigma: expected 0 to 1, got {self.sigma}")
        if min(self.fine_weight, self.global_weight) < 0:
            raise ValueError("fine_weight and global_weight: expected 0 or more")
        if self.kind == "sparc" and self.text.source not in ("clip", "llm"):
            raise ValueError(
                f"text: kind 'sparc' groups patches by text tokens, and source "
                f"'{self.text.source}' has one vector for a caption; take clip or llm, or kind pacl"
            )
        if self.mean_over == "all" and self.text.source == "llm":
            raise ValueError(
                "mean_over: 'all' counts padding, which of source 'llm' is as long as the captions "
                "beside; take valid, or source clip, whose texts are all of one length"
            )
        if self.kind == "sparc" and self.weights_from == "own":
            raise ValueError("weights_from: is of kind 'pacl'")
