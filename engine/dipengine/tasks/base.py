"""What a task is: an inverse problem `x0 = A(x) + noise` stated on one image, with the recipe that fits it.

A task file holds its forward operator A, its data term and its default recipe, and declares its options; the command
line and the Python functions are made from that declaration, so a new task touches this folder alone. No torch here:
an operator is described (shape, weights) and only its `apply` works on tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from dipengine.errors import InputError
from dipengine.generators.architecture import Hourglass
from dipengine.images import ValueMap


@dataclass(frozen=True)
class Recipe:
    """How a generator is fitted: network, input z, step size, length, perturbation of z (REFERENCE: the paper's table)."""

    generator: Hourglass
    code: str = "noise"  # kind of z: noise U(0, 0.1), meshgrid, or image (the problem's guide)
    learning_rate: float = 0.01
    iterations: int = 1800  # fixed length, or the ceiling under `stop="auto"`
    perturbation: float = 1 / 30  # standard deviation of the normal noise added to z, anew at each iteration
    average_decay: float | None = None  # of the exponential average of the outputs; None delivers f(z) itself
    average_warm_up: bool = False  # a shorter memory at first; see kernels.statistics
    rollback_db: float = 5.0  # a loss worse by more than this, in dB, returns to the last good weights

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise InputError(f"iterations is {self.iterations}; ask for at least 1.")
        if self.learning_rate <= 0:
            raise InputError(f"learning rate is {self.learning_rate}; it must be above 0.")


class ForwardOperator(Protocol):
    """The known part of the degradation: maps a restored image to data like the input's."""

    def apply(self, image):
        """`image`: tensor [1, C, H, W] in [0, 1], differentiable; returns a tensor [1, C, h, w] on the same device."""

    def to_dict(self) -> dict[str, Any]:
        """The operator's parameters for the record (JSON-able)."""


@dataclass(frozen=True)
class Problem:
    """One inverse problem on one image, in the generator's units ([0, 1] over the value map's range)."""

    task: str
    target: np.ndarray  # x0, float32 [h, w, C] in [0, 1]; whatever stands at unknown pixels is ignored
    output_shape: tuple[int, int]  # (H, W) of the restored image
    recipe: Recipe
    known: np.ndarray | None = None  # bool [h, w], True where x0 was measured; None: everywhere
    operator: ForwardOperator | None = None  # None is the identity
    sigma: float | None = None  # standard deviation of Gaussian noise on x0, when known; same units as target
    guide: np.ndarray | None = None  # float32 [H, W, D] in [0, 1]: the z of a recipe whose code is an image
    keep_known: bool = False  # the delivered image takes the known pixels from the input unchanged
    fills_alpha: bool = False  # transparency said what is missing: the delivered image is opaque
    scale: int = 1  # output size over input size
    parameters: Mapping[str, Any] = field(default_factory=dict)  # the task's own parameters, for the record


@dataclass(frozen=True)
class TaskData:
    """The input image as a task sees it."""

    pixels: np.ndarray  # float32 [H, W, C], in [0, 1] by `values`; 0 where unknown
    known: np.ndarray | None  # bool [H, W]; None: all known
    alpha: np.ndarray | None  # float32 [H, W] in [0, 1], or None
    values: ValueMap  # between data units and [0, 1]
    seed: int = 0  # for tasks that draw something themselves (a random mask)


@dataclass(frozen=True)
class TaskOption:
    """One option of a task: `--name` on the command line, `name=` in Python (dashes become underscores)."""

    name: str
    help: str
    kind: type | str = str  # int, float, str, bool (a flag), or "mask" (file in the command line, array in Python)
    default: Any = None
    choices: tuple[Any, ...] | None = None
    required: bool = False

    @property
    def keyword(self) -> str:
        return self.name.replace("-", "_")


class Task:
    """Base of all tasks. Subclasses set the class attributes and implement `problem`."""

    name: ClassVar[str]  # the verb of the command line
    summary: ClassVar[str]
    options: ClassVar[tuple[TaskOption, ...]] = ()

    def problem(self, data: TaskData, preset: str, **options: Any) -> Problem:
        """State the inverse problem for one image. Raises InputError for options that make no sense."""
        raise NotImplementedError


def hourglass_128(skips: int, upsample: str | tuple[str, ...], **changes: Any) -> Hourglass:
    """The paper's network: 5 levels of 128 channels."""
    modes = (upsample,) * 5 if isinstance(upsample, str) else upsample
    return Hourglass(channels_skip=(skips,) * 5, upsample=modes, **changes)


