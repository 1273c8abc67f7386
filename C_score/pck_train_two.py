"""The C score of two concatenated towers by a YAML file with the reference's keys.

    python pck_train_two.py --config configs/eval_zero_shot_spair_two.yaml

Run it in C_score/, where data/SPair-71k lies. `law c-score` takes any number of towers.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # the folders beside this file are no modules: datasets, data, configs
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from C_score import reference_run
from llava.exits import run_command


@dataclass(frozen=True, kw_only=True)
class TwoTowers(reference_run.Config):
    """Two towers."""

    MODEL1: str
    MODEL2: str

    @property
    def models(self) -> list[str]:
        """Both names."""
        return [self.MODEL1, self.MODEL2]


def main(argv: list[str] | None = None) -> None:
    """Runs the evaluation that --config selects."""
    reference_run.main(TwoTowers, argv, __doc__)


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "pck_train_two")
