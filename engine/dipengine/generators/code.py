"""The code z, the generator's fixed input: noise, a mesh grid, or an image. Needs no torch.

The authors' code draws noise uniform in [0, 0.1), here on 256 levels so that an element is stored exactly in one
byte; their mesh grid and their image code are taken as they are.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dipengine.errors import InputError

CODE_STREAM = 0
KINDS = ("noise", "meshgrid", "image")


@dataclass(frozen=True, eq=False)
class Code:
    """One code: how to make z for any canvas.

    kind "noise": depth channels of k * (scale / 255), k a Philox byte (stream CODE, step 0, the given seed).
    kind "meshgrid": depth 2; channel 0 is x / (W - 1), channel 1 is y / (H - 1), over the canvas.
    kind "image": float32 array [height, width, channels] in [0, 1], reflected to fill the canvas.
    depth: channels of z; with an image it is the image's. seed: 0 to 2^64 - 1. scale: upper end of the noise.
    Raises InputError for an unusable combination.
    """

    kind: str = "noise"
    depth: int = 32
    seed: int = 0
    scale: float = 0.1
    image: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"The code is {self.kind!r}; choose from {', '.join(KINDS)}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, numbers.Integral) or not 0 <= self.seed < 2**64:
            raise InputError(f"The seed is {self.seed!r}; give a whole number from 0 to 2^64 - 1.")
        if not isinstance(self.scale, numbers.Real) or not 0 < self.scale < float("inf"):
            raise InputError(f"The code's scale is {self.scale!r}; give a number above 0.")
        if isinstance(self.depth, bool) or not isinstance(self.depth, numbers.Integral) or self.depth < 1:
            raise InputError(f"The code's depth is {self.depth!r}; give a whole number of at least 1.")
        if self.kind == "meshgrid" and self.depth != 2:
            raise InputError(f"A meshgrid code has depth 2, not {self.depth}; set the depth to 2 or choose noise.")
        if (self.kind == "image") != (self.image is not None):
            raise InputError("A code of kind 'image', and no other kind, needs an image; give one or change the kind.")
        if self.image is not None:
            object.__setattr__(self, "image", _checked_image(self.image, self.depth))

    @classmethod
    def of_image(cls, image: np.ndarray) -> Code:
        """The code that is an image [height, width, channels], values in [0, 1]."""
        image = np.asarray(image)
        if image.ndim != 3:
            raise InputError(f"The image code has shape {image.shape}; give height x width x channels.")
        return cls(kind="image", depth=image.shape[2], image=image)

    def make(self, canvas: tuple[int, int], *, kernels: str = "auto") -> np.ndarray:
        """z on a canvas of (H, W) pixels: float32 [H, W, depth], the same values on every machine."""
        height, width = canvas
        if self.kind == "noise":
            # One float32 product, which is also how an ONNX DequantizeLinear turns the stored bytes into z.
            return self.noise_bytes(canvas, kernels=kernels).astype(np.float32) * np.float32(self.scale / 255)
        if self.kind == "meshgrid":
            y, x = np.meshgrid(_ramp(height), _ramp(width), indexing="ij")
            return np.stack([x, y], axis=-1)
        assert self.image is not None
        rows = reflected_indices(self.image.shape[0], height)
        columns = reflected_indices(self.image.shape[1], width)
        return np.ascontiguousarray(self.image[rows[:, None], columns[None, :]])

    def noise_bytes(self, canvas: tuple[int, int], *, kernels: str = "auto") -> np.ndarray:
        """The bytes k of a noise code: uint8 [H, W, depth]; element (y, x, c) has Philox index (y*W + x)*depth + c."""
        from dipengine.kernels import philox

        if self.kind != "noise":
            raise InputError(f"A code of kind {self.kind!r} has no noise bytes; make it as floats.")
        height, width = canvas
        flat = philox.random_bytes(self.seed, CODE_STREAM, 0, height * width * self.depth, kernels=kernels)
        return flat.reshape(height, width, self.depth)

    def to_dict(self) -> dict[str, Any]:
        """The code as values that JSON holds; the image of an image code travels beside it."""
        return {"kind": self.kind, "depth": int(self.depth), "seed": int(self.seed), "scale": float(self.scale)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], image: np.ndarray | None = None) -> Code:
        """The code that `to_dict` described. Raises InputError for unknown settings."""
        unknown = sorted(set(values) - {"kind", "depth", "seed", "scale"})
        if unknown:
            raise InputError(f"The code has the unknown setting {unknown[0]!r}; a newer version may read it.")
        return cls(image=image, **values)


def reflected_indices(length: int, wanted: int) -> np.ndarray:
    """Indices 0..length-1 that extend an axis of `length` to `wanted` by reflection about its last sample.

    The border sample is not repeated; where the extension is longer than the axis it bounces back and forth, and an
    axis of one sample repeats it. intp [wanted].
    """
    period = max(1, 2 * (length - 1))
    folded = np.arange(wanted) % period
    return np.minimum(folded, period - folded) if length > 1 else np.zeros(wanted, np.intp)


def _ramp(length: int) -> np.ndarray:
    return (np.arange(length) / max(1, length - 1)).astype(np.float32)


def _checked_image(image: np.ndarray, depth: int) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 3 or image.size == 0 or image.dtype.kind != "f" or image.shape[2] != depth:
        raise InputError(
            f"The image code is {image.dtype} of shape {image.shape} for a code of depth {depth}; "
            "give floats in [0, 1], height x width x depth."
        )
    # The copy is the code's own: a caller who goes on writing in the array must not change the fit's input.
    image = np.array(image, dtype=np.float32, order="C")
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise InputError("The image code has values outside [0, 1]; scale it to that range first.")
    image.flags.writeable = False
    return image
