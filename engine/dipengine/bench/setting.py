"""What is measured: one network at one size, in one precision, on so many threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dipengine.errors import InputError
from dipengine.generators.architecture import Hourglass

OURS = "ours"  # the engine's side, beside the names of the peers

LEARNING_RATE = 0.01
PERTURBATION = 1 / 30  # standard deviation of what is added to z at each iteration
AVERAGE_DECAY = 0.99  # of the average of the outputs


@dataclass(frozen=True)
class Setting:
    """Raises InputError for a size that the network cannot take as it is, or no thread."""

    architecture: Hourglass
    height: int  # pixels
    width: int
    precision: str  # of our side: "bf16" or "fp32"
    threads: int  # of every side
    device: str = "cpu"  # of every side: "cpu", "cuda:0"

    def __post_init__(self) -> None:
        canvas = self.architecture.canvas(self.height, self.width)
        if (self.height, self.width) != canvas:
            step, least = 2**self.architecture.levels, self.architecture.smallest_canvas
            raise InputError(f"The size {self.height}x{self.width} does not suit {self.architecture.levels} levels: PyTorch's "
                             f"network takes multiples of {step} of at least {least}; try {canvas[0]}x{canvas[1]}.")
        if not 1 <= self.threads <= 1024:
            raise InputError(f"threads is {self.threads}; ask for 1 to 1024.")

    def target(self) -> np.ndarray:
        """The image that is fitted, float32 [H, W, C] in [0, 1]: noise, the same for every side."""
        shape = (self.height, self.width, self.architecture.output_channels)
        return np.random.default_rng(0).random(shape, np.float32)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` is the way back."""
        return {"architecture": self.architecture.to_dict(), "height": self.height, "width": self.width,
                "precision": self.precision, "threads": self.threads, "device": self.device}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Setting:
        return cls(**values | {"architecture": Hourglass.from_dict(values["architecture"])})
