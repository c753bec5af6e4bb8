"""What a task is: an inverse problem `x0 = A(x) + noise` stated on one image, with the recipe that fits it.

A task file holds its forward operator A, its data term and its default recipe, and declares its options; the command
line and the Python functions are made from that declaration, so a new task touches this folder alone. No torch here:
an operator is described (shape, weights) and only its `apply` works on tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from dipengine.errors import InputError
from dipengine.generators.architecture import Hourglass
from dipengine.images import Image, ValueMap
from dipengine.images.jpeg_coding import JpegCoding


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
    stop: str | None = None  # "auto" or "fixed" where the recipe needs one whatever the preset says
    own_upsampling: bool = False  # the network's, also under presets that take nearest
    hold_out: float = 0.0  # share of the known pixels that say when to stop in place of the outputs' variance (fitting.held_out)

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise InputError(f"iterations is {self.iterations}; ask for at least 1.")
        if self.learning_rate <= 0:
            raise InputError(f"learning rate is {self.learning_rate}; it must be above 0.")
        if not 0 <= self.hold_out <= 0.5:
            raise InputError(f"hold_out is {self.hold_out}; it is a share of 0 to 0.5.")


class ForwardOperator(Protocol):
    """The known part of the degradation: maps a restored image to data like the input's."""

    def apply(self, image):
        """`image`: tensor [1, C, H, W] in [0, 1], differentiable; returns a tensor [1, C, h, w] on the same device."""

    def to_dict(self) -> dict[str, Any]:
        """The operator's parameters for the record (JSON-able)."""

    # This package's own say has_kernels = True, and their `apply` takes `kernels`, "native" or "torch", too.
    # An operator that is not this package's own also has check(shape, data_shape, device): called once before the fit, it
    # raises InputError where `apply` cannot work.


class DataTerm(Protocol):
    """The negative log-likelihood of x0 given A(x), where that is not a squared error of one variance."""

    def loss(self, image, target, mask=None, kernels="torch"):
        """Tensors [1, C, h, w] in [0, 1], mask [1, 1, h, w] or None; a 0-dim tensor, differentiable in `image`.

        kernels: "native" or "torch", for both.
        """

    def discrepancy(self, image, target, mask=None, kernels="torch") -> float:
        """Mean squared residual in standard deviations of the noise, over the known pixels (or where it matters most): 1 at the
        clean image; a fit that has come down to 1 stops.
        """

    def to_dict(self) -> dict[str, Any]:
        """The model and its parameters for the record (JSON-able)."""


class Agreement(Protocol):
    """What x0 says of the image itself, and a fit that is stopped early has not learnt: a convex set in or near which the truth lies, so
    that the nearest of its images is nearer to the truth, as a rule, than what the generator painted."""

    def apply(self, image: Any) -> Any:
        """The nearest image that agrees with x0: float32 [H, W, C] of the delivered shape, in the generator's units, an array like the
        one given. Of integers it stays in [0, 1]."""


@dataclass(frozen=True)
class Problem:
    """One inverse problem on one image, in the generator's units ([0, 1] over the value map's range)."""

    task: str
    # x0, float32 [h, w, C] in [0, 1]; whatever stands at unknown pixels is ignored. NumPy's or, of an array that stays on its
    # device, its library's there, with `known` beside it: what the fit delivers is the same kind.
    target: Any
    output_shape: tuple[int, int]  # (H, W) of the image that the generator paints and A takes
    recipe: Recipe
    known: Any = None  # bool [h, w], True where x0 was measured; None: everywhere
    operator: ForwardOperator | None = None  # None is the identity
    output_channels: int | None = None  # of the restored image; None: as many as x0 has
    origin: tuple[int, int] = (0, 0)  # where in the output the delivered image begins
    delivered_shape: tuple[int, int] | None = None  # (H, W) of the delivered image; None: output_shape
    data_term: DataTerm | None = None  # None: squared error
    sigma: float | None = None  # standard deviation of Gaussian noise on x0, when known; same units as target
    guide: np.ndarray | None = None  # float32 [H, W, D] in [0, 1]: the z of a recipe whose code is an image
    agreement: Agreement | None = None  # what the delivered image is brought to
    keep_known: bool = False  # the delivered image takes the known pixels from the input unchanged
    fills_alpha: bool = False  # transparency said what is missing: the delivered image is opaque
    scale: int = 1  # output size over input size
    parameters: Mapping[str, Any] = field(default_factory=dict)  # the task's own parameters, for the record

    @property
    def channels(self) -> int:
        """Channels of the restored image."""
        return self.target.shape[2] if self.output_channels is None else self.output_channels

    @property
    def knows_noise(self) -> bool:
        """True where the noise is known, so that a residual can be compared with it."""
        return self.data_term is not None or self.sigma is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the delivered image."""
        return (*(self.delivered_shape or self.output_shape), self.channels)

    def delivered(self, output: Any) -> Any:
        """What is delivered of an output [H, W, C]: its part of the delivered shape, in agreement with x0."""
        (top, left), (height, width, _) = self.origin, self.shape
        part = output[top : top + height, left : left + width, :]
        return part if self.agreement is None else self.agreement.apply(part)


@dataclass(frozen=True)
class TaskData:
    """The input image as a task sees it."""

    pixels: Any  # float32 [H, W, C], in [0, 1] by `values`; 0 where unknown. NumPy's, or another library's on its device
    known: Any  # bool [H, W] beside it; None: all known
    alpha: Any  # float32 [H, W] in [0, 1] beside it, or None
    values: ValueMap  # between data units and [0, 1]
    seed: int = 0  # for tasks that draw something themselves (a random mask)
    jpeg: JpegCoding | None = None  # of an image that was decoded from a JPEG


@dataclass(frozen=True)
class TaskOption:
    """One option of a task: `--name` on the command line, `name=` in Python (dashes become underscores)."""

    name: str
    help: str
    kind: type | str = str  # int, float, str, bool (a flag); "mask", "image", "kernel": a file or an array
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
    python_only: ClassVar[bool] = False  # takes something that a command line cannot give

    def value_map(
        self, image: Image, known: np.ndarray | None, value_range: tuple[float, float] | None, options: Mapping[str, Any]
    ) -> ValueMap:
        """The map between the image's units and the generator's; known: where its range counts (None: everywhere)."""
        return ValueMap.for_image(image.pixels, known, value_range, data_units=image.in_data_units)

    def recipe_of_whole(
        self, parts: Iterable[tuple[np.ndarray, np.ndarray | None, slice]], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Fields of the recipe that an image's own values decide, for an image that is fitted in tiles: one recipe for all.

        parts: from top to bottom, some rows at a time with a few more on either side: pixels [h, W, C] in data units, known
        (bool [h, W] or None), and which of the rows count.
        """
        return {}

    def problem(self, data: TaskData, preset: str, **options: Any) -> Problem:
        """State the inverse problem for one image. Raises InputError for options that make no sense."""
        raise NotImplementedError


def hourglass_128(skips: int, upsample: str | tuple[str, ...], **changes: Any) -> Hourglass:
    """The paper's network: 5 levels of 128 channels."""
    modes = (upsample,) * 5 if isinstance(upsample, str) else upsample
    return Hourglass(channels_skip=(skips,) * 5, upsample=modes, **changes)


