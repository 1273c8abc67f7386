"""The C score of one tower by a YAML file with the reference's keys.

    python pck_train.py --config configs/eval_zero_shot_spair.yaml

Run it in C_score/, where data/SPair-71k lies. `law c-score` is the same with flags.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # the folders beside this file are no modules: datasets, data, configs
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from C_score import reference_run
from llava.exits import run_command


@dataclass(frozen=True, kw_only=True)
class OneTower(reference_run.Config):
    """One tower; '+' joins several here too."""

    MODEL: str

    @property
    def models(self) -> list[str]:
        """The one name."""
        return [self.MODEL]


def main(argv: list[str] | None = None) -> None:
    """Runs the evaluation that --config selects."""
    reference_run.main(OneTower, argv, __doc__)


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "pck_train")
