"""Where a source keypoint goes in the target: argmax or soft-argmax over a grid of cosines.

Letters in shapes: R rows (one source patch each), n side of the grid, N = n * n cells row by row,
M = N + 1: behind the cells stands one column more, where cells outside of the grid are read.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from llava.errors import UsageError

TEMPERATURE = 0.02
"""Of the softmax over cosines (the reference's soft-argmax, section 5 of its evaluation)."""

EXPONENT = float(np.log2(np.e)) / TEMPERATURE
"""Weights are taken as powers of two: torch's exp2 is twice as fast as its exp, and does not slow
down where the result is zero."""

Fill = Literal["zero", "inf"]


@dataclass(frozen=True)
class Match:
    """How a row of cosines becomes one place."""

    window: int | None = 5
    """Cells on every side of the best one that a soft-argmax sees; 0: all; None: argmax."""
    fill: Fill = "zero"
    """What cells outside of the window count as: cosine 0, as in the reference, or nothing."""

    def __post_init__(self):
        if self.window is not None and self.window < 0:
            raise UsageError(
                f"window {self.window}: expected a whole number from 0 (the whole grid) or 'hard'; "
                f"the reference's Gaussian window, a negative number, fits a grid of 60 only"
            )
        if self.fill not in ("zero", "inf"):
            raise UsageError(f"fill '{self.fill}': expected zero or inf")

    def __str__(self) -> str:
        if self.window is None:
            return "hard"
        return f"soft{self.window}-{self.fill}" if self.window else "soft0"


class Matcher:
    """`match` on n x n grids; the tables that depend on n alone are made once."""

    def __init__(self, match: Match, n: int):
        self.match, self.n = match, n
        cells = torch.arange(n * n)
        self.xy_N2 = torch.stack([cells % n, cells // n], 1).float()
        if match.window:
            self._tabulate(match.window)
        elif match.window == 0:
            self.basis_3M = torch.nn.functional.pad(
                torch.cat([torch.ones(1, n * n), self.xy_N2.T]), (0, 1)
            )

    def _tabulate(self, w: int) -> None:
        """Per best cell: which cells its window holds, and sums over the cells outside of it."""
        n = self.n
        step = torch.arange(-w, w + 1)
        dy, dx = (axis.reshape(-1) for axis in torch.meshgrid(step, step, indexing="ij"))
        x_NW = self.xy_N2[:, :1].long() + dx
        y_NW = self.xy_N2[:, 1:].long() + dy
        inside_NW = (x_NW >= 0) & (x_NW < n) & (y_NW >= 0) & (y_NW < n)
        self.window_NW = torch.where(inside_NW, n * y_NW + x_NW, n * n)
        self.basis_3W = torch.stack([torch.ones_like(dx), dx, dy]).float()
        all_N3 = torch.cat(
            [torch.full((n * n, 1), float(n * n)), self.xy_N2.sum(0) - n * n * self.xy_N2], 1
        )
        self.outside_N3 = all_N3 - inside_NW.float() @ self.basis_3W.T

    def __call__(self, similarity_RM: torch.Tensor) -> torch.Tensor:
        """float32 [R, 2] (column, row), fractions of cells, from contiguous float32 cosines [R, M].

        The last column is overwritten. The first of equal maxima counts.
        """
        similarity_RM[:, -1] = -torch.inf
        # NumPy's argmax is vectorised, torch's is not: eight times slower here
        best_R = torch.from_numpy(similarity_RM.numpy().argmax(1))
        if self.match.window is None:
            return self.xy_N2[best_R]
        peak_R = similarity_RM.gather(1, best_R[:, None])[:, 0]
        if self.match.window == 0:
            weight_RM = (similarity_RM - peak_R[:, None]).mul_(EXPONENT).exp2_()
            total_R, *moments_2R = self.basis_3M @ weight_RM.T
            cells_R2 = torch.stack(moments_2R, 1) / total_R[:, None]
        else:
            cells_R2 = self._windowed(similarity_RM, best_R, peak_R)
        return cells_R2.clamp_(0, self.n - 1)

    def _windowed(self, similarity_RM, best_R, peak_R):
        """Only the window is exponentiated; the equal weights outside of it are summed by table."""
        zero = self.match.fill == "zero"
        outside_R3 = self.outside_N3[best_R]
        if zero:  # the largest exponent is that of a zero where the best cosine is below it
            peak_R = torch.where(outside_R3[:, 0] > 0, peak_R.clamp(min=0), peak_R)
        rows_R1 = torch.arange(len(best_R))[:, None] * similarity_RM.shape[1]
        index_RW = self.window_NW.index_select(0, best_R).add_(rows_R1)
        weight_RW = similarity_RM.view(-1).index_select(0, index_RW.view(-1)).view(index_RW.shape)
        weight_RW.sub_(peak_R[:, None]).mul_(EXPONENT).exp2_()
        moments_R3 = (self.basis_3W @ weight_RW.T).T
        if zero:
            moments_R3 = moments_R3 + outside_R3 * (peak_R * -EXPONENT).exp2_()[:, None]
        return self.xy_N2[best_R] + moments_R3[:, 1:] / moments_R3[:, :1]


def match_rows(similarity_RN: torch.Tensor, match: Match) -> np.ndarray:
    """float32 [R, 2] (column, row) of the matches of rows of cosines [R, n * n]."""
    n = round(similarity_RN.shape[1] ** 0.5)
    padded_RM = torch.nn.functional.pad(similarity_RN.float(), (0, 1))
    return Matcher(match, n)(padded_RM).numpy()
