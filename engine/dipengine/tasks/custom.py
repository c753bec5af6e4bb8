"""A forward operator of the caller's own: any differentiable function of torch tensors. From Python alone.

The operator sees data units, not the generator's [0, 1]: what it does to a constant is its own affair (a projection sums, a
mask drops), so that no affine map may stand between it and the values that it was written for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from dipengine.errors import InputError
from dipengine.images import ValueMap
from dipengine.noise.gaussian import checked_sigma
from dipengine.tasks.base import Problem, Recipe, Task, TaskData, TaskOption, hourglass_128
from dipengine.tasks.known import MASK_OPTIONS, known_pixels

RECIPE = Recipe(hourglass_128(4, "bilinear"), iterations=2000, perturbation=0.03)
FORM = "a function that takes a torch tensor [1, C, H, W] and returns one [1, c, h, w]"


@dataclass(frozen=True, eq=False)
class CustomOperator:
    """A `ForwardOperator` around a callable, or around an object with a callable `A` (a deepinv physics)."""

    function: Callable[[Any], Any]
    name: str
    values: ValueMap

    @classmethod
    def of(cls, operator: Any, values: ValueMap) -> "CustomOperator":
        """Raises InputError for what cannot be called."""
        function = getattr(operator, "A", operator)
        if not callable(function):
            raise InputError(f"The operator is a {type(operator).__name__}; give {FORM}, or an object whose A is one.")
        name = getattr(operator, "__qualname__", None) or type(operator).__qualname__
        return cls(function, name, values)

    def apply(self, image):
        """See ForwardOperator.apply."""
        data = self.function((image * self.values.span + self.values.low).contiguous())
        return (data - self.values.low) / self.values.span

    def check(self, shape: tuple[int, ...], data_shape: tuple[int, ...], device: Any) -> None:
        """Try the operator on an image of `shape` [1, C, H, W]: does it give data of `data_shape` with a gradient?

        Raises InputError that names what is wrong.
        """
        import torch

        # Scattered values: an even image would hide the gradient of whatever compares neighbours.
        scattered = (torch.arange(math.prod(shape), dtype=torch.float64) * 0.6180339887) % 1
        image = scattered.to(device, torch.float32).reshape(shape)
        probe = (image * self.values.span + self.values.low).requires_grad_()
        try:
            data = self.function(probe)
        except Exception as error:  # the caller's code, which may fail in any way
            raise InputError(
                f"The operator {self.name} fails on a {image.device} tensor of shape {shape} "
                f"({type(error).__name__}: {_one_line(error)}); give {FORM}."
            ) from error
        if not isinstance(data, torch.Tensor):
            raise InputError(f"The operator {self.name} returns a {type(data).__name__}; give {FORM}.")
        if tuple(data.shape) != data_shape:
            raise InputError(
                f"The operator {self.name} makes {tuple(data.shape)} of {shape} but the data is {data_shape}; "
                f"set output_shape to the restored image's (height, width) or (height, width, channels)."
            )
        if data.dtype != image.dtype or data.device != image.device:
            raise InputError(
                f"The operator {self.name} returns {data.dtype} on {data.device} for {image.dtype} on {image.device}; "
                f"keep the tensor's dtype and device."
            )
        if not torch.isfinite(data).all():
            raise InputError(f"The operator {self.name} gives NaN or infinity for values from {self.values.low:g} to {self.values.high:g}; mend it first.")
        if not data.requires_grad:
            raise InputError(
                f"The operator {self.name} has no gradient; compute in torch throughout, without detach, no_grad or NumPy."
            )
        weights = torch.linspace(0.5, 1.5, data.numel(), device=data.device).reshape(data.shape)
        (gradient,) = torch.autograd.grad((data * weights).sum(), probe, allow_unused=True)
        if gradient is None or not gradient.any() or not torch.isfinite(gradient).all():
            raise InputError(
                f"The operator {self.name} has {_gradient_fault(gradient)} gradient with respect to the image; "
                f"make it differentiable (rounding and comparing are not)."
            )

    def to_dict(self) -> dict[str, Any]:
        return {"operator": self.name}


class Custom(Task):
    name = "custom"
    summary = "undo a differentiable operator of your own (from Python)"
    python_only = True
    options = (
        TaskOption("operator", f"{FORM}, in data units; or an object whose A is one", "operator", required=True),
        TaskOption("output-shape", "(height, width) or (height, width, channels) of the restored image", "shape"),
        TaskOption("sigma", "standard deviation of Gaussian noise on the data, in data units", float),
        *MASK_OPTIONS,
    )

    def problem(
        self,
        data: TaskData,
        preset: str,
        *,
        operator: Any,
        output_shape: tuple[int, ...] | None = None,
        sigma: float | None = None,
        mask=None,
        invert_mask: bool = False,
    ) -> Problem:
        height, width, channels = _checked_shape(output_shape, data.pixels.shape)
        wrapped = CustomOperator.of(operator, data.values)
        return Problem(
            self.name,
            data.pixels,
            (height, width),
            RECIPE,
            known=known_pixels(data.known, mask, invert_mask, data.pixels.shape[:2]),
            operator=wrapped,
            output_channels=channels,
            sigma=None if sigma is None else checked_sigma(sigma, data.values.span),
            parameters={**wrapped.to_dict(), "output_shape": [height, width, channels], "sigma": sigma},
        )


def _checked_shape(wish: Any, data: tuple[int, ...]) -> tuple[int, int, int]:
    """(H, W, C) of the restored image, by default the data's."""
    if wish is None:
        return data
    shape = tuple(wish) if hasattr(wish, "__iter__") else (wish,)
    if len(shape) not in (2, 3) or not all(isinstance(n, Integral) and not isinstance(n, bool) and n > 0 for n in shape):
        raise InputError(f"output_shape is {wish!r}; give (height, width) or (height, width, channels), whole numbers above 0.")
    height, width, *channels = (int(n) for n in shape)
    return height, width, channels[0] if channels else data[2]


def _gradient_fault(gradient: Any) -> str:
    if gradient is None:
        return "no"
    return "a zero" if not gradient.any() else "a non-finite"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
