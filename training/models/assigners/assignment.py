"""What an assigner decides: which object each prior is responsible for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True)
class Assignment:
    """Which object each prior is responsible for.

    Args:
        gt_index: int64 [B, P], index of the object, ``BACKGROUND`` (-1), or ``IGNORED`` (-2) for
            priors that are not trained.
        overlap: float32 [B, P], IoU of the prior (or of the box predicted from it) with the object
            that decided; 0 where there is none.
    """

    gt_index: Tensor
    overlap: Tensor
