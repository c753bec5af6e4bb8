"""What a fit leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class History:
    """One entry an iteration; `psnr` holds (iteration, dB of the delivered image so far) where the truth is known."""

    loss: list[float] = field(default_factory=list)
    variance: list[float] = field(default_factory=list)
    psnr: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """A finished fit, in the generator's units."""

    image: Any  # float32 [H, W, C] in the generator's units: what the fit delivers; an array like the problem's target
    weights: dict[str, np.ndarray]  # of the state that `image` stems from
    history: History
    iterations: int  # run
    best_iteration: int  # the one whose state is delivered
    stop_reason: str  # "iterations", "variance", "discrepancy", "held-out", "interrupted" or "callback"
    rollbacks: int
    seconds: float
