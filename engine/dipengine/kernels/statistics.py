"""Running statistics of a fit's output: the average that is delivered, and ES-EMV's mean and variance.

H. Wang et al., "Early stopping for deep image prior", TMLR 2023 (the exponential form of the moving variance).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dipengine.errors import InputError


@dataclass(frozen=True)
class StatisticsSnapshot:
    """A copy of all running values."""

    average: Tensor
    es_mean: Tensor
    es_variance: float
    frames: int


class OutputStatistics:
    """Buffers over the delivered window [1, C, h, w] (channels_last) and one scalar; updated by `masked_mse`, `track`.

    average:     decay * average + (1 - decay) * x; with decay 0 the last x. Delivered to the user. With `warm_up` the decay
                 is min(average_decay, (t + 1) / (t + 10)) after t outputs: a young average then looks back over a tenth
                 of the run, where a fixed 0.99 would hold on to the first outputs for hundreds of iterations.
    es_mean:     A = (1 - a) A + a x, kept apart from the average (a: es_alpha).
    es_variance: V = (1 - a) V + a (1 - a) mean |x - A|^2, with A from before this frame. V has one minimum near the
                 best iteration.
    frames:      outputs seen. At the first, average = A = x and V = 0.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        average_decay: float = 0.99,
        warm_up: bool = False,
        es_alpha: float = 0.1,
    ) -> None:
        """Raises InputError for a decay outside [0, 1) or an alpha outside (0, 1]."""
        if not (0 <= average_decay < 1 and 0 < es_alpha <= 1):
            raise InputError(f"average_decay is {average_decay}, es_alpha {es_alpha}; they lie in [0, 1) and (0, 1].")

        def buffer() -> Tensor:
            zeros = torch.zeros(1, channels, height, width, dtype=dtype, device=device)
            return zeros.contiguous(memory_format=torch.channels_last)

        self.average = buffer()
        self.es_mean = buffer()
        self.average_decay = average_decay
        self.warm_up = warm_up
        self.es_alpha = es_alpha
        self.es_variance = 0.0
        self.frames = 0

    @property
    def decay(self) -> float:
        """The average's decay at the next output."""
        if not self.warm_up:
            return self.average_decay
        return min(self.average_decay, (self.frames + 1) / (self.frames + 10))

    def tick(self, d2: float) -> None:
        """Count a frame whose mean squared distance from `es_mean`, before the update, was d2 (unused at the first)."""
        if self.frames > 0:
            self.es_variance = (1 - self.es_alpha) * (self.es_variance + self.es_alpha * d2)
        self.frames += 1

    def snapshot(self) -> StatisticsSnapshot:
        """A copy of the running values."""
        return StatisticsSnapshot(self.average.clone(), self.es_mean.clone(), self.es_variance, self.frames)

    def restore(self, snapshot: StatisticsSnapshot) -> None:
        """Return to a snapshot's values, in the same buffers."""
        self.average.copy_(snapshot.average)
        self.es_mean.copy_(snapshot.es_mean)
        self.es_variance = snapshot.es_variance
        self.frames = snapshot.frames
