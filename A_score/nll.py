"""`law a-score nll`: the stage-1 command with --a_score, under the name of the score."""

from collections.abc import Sequence

from llava.train.train import main as train


def main(argv: Sequence[str], prog: str = "law a-score nll") -> None:
    """Scores a projector (`--pretrain_mm_mlp_adapter`); flags are those of `law train`."""
    train([*argv, "--a_score", "True"])
