"""The blur operator of deblurring: convolution with a known kernel, of which only the part that needs no border is kept.

    out[i, j] = sum_{a, b} kernel[a, b] * image[i + kh - 1 - a, j + kw - 1 - b]          ("valid" in SciPy's words)

What a camera sees near the border of its frame comes partly from beyond it. So the image that is painted is larger than
the frame by kh - 1 rows and kw - 1 columns, unknown like the rest, and no assumption on borders enters.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Blur:
    """x [1, C, h + kh - 1, w + kw - 1] -> [1, C, h, w]; kernel: float64 [kh, kw]."""

    kernel: np.ndarray
    light = True  # next to the generator
    has_kernels = True

    @property
    def margins(self) -> tuple[int, int]:
        """Rows and columns by which the image that is painted is larger than the frame."""
        return self.kernel.shape[0] - 1, self.kernel.shape[1] - 1

    @property
    def origin(self) -> tuple[int, int]:
        """Where the frame's first pixel lies in the painted image: under the middle of the kernel, element
        [(kh - 1) // 2, (kw - 1) // 2] (SciPy's and scikit-image's "same")."""
        return self.kernel.shape[0] // 2, self.kernel.shape[1] // 2

    def apply(self, image, kernels: str = "torch"):
        """See ForwardOperator.apply; float32 or float64. kernels: "torch" goes by Fourier transform, others as `kernels.blur.blur`
        takes them."""
        import torch

        if kernels != "torch":
            from dipengine.kernels.blur import blur

            key = image.dtype, image.device
            if key not in self._kept:
                self._kept[key] = torch.as_tensor(self.kernel, dtype=image.dtype, device=image.device)
            return blur(image, self._kept[key], kernels=kernels)
        height, width = (size - margin for size, margin in zip(image.shape[2:], self.margins))
        # By Fourier transform, whose cost does not grow with the kernel. Cyclic, but what wraps around is cut off.
        rows, columns = (_fast_length(size) for size in image.shape[2:])
        spectrum = torch.fft.rfft2(image, s=(rows, columns)) * self._spectrum(rows, columns, image)
        top, left = self.margins
        return torch.fft.irfft2(spectrum, s=(rows, columns))[:, :, top : top + height, left : left + width]

    def to_dict(self) -> dict[str, Any]:
        height, width = self.kernel.shape
        digest = hashlib.sha256(np.ascontiguousarray(self.kernel).data).hexdigest()
        return {"kernel": {"height": height, "width": width, "sha256": digest}}  # of the weights as float64, sum 1

    def _spectrum(self, rows: int, columns: int, like):
        """The kernel's transform, kept from one call to the next like the kernel itself."""
        import torch

        key = (rows, columns, like.dtype, like.device)
        if key not in self._kept:
            kernel = torch.as_tensor(self.kernel, dtype=like.dtype, device=like.device)
            self._kept[key] = torch.fft.rfft2(kernel, s=(rows, columns))
        return self._kept[key]

    @cached_property
    def _kept(self) -> dict:
        return {}


def _fast_length(size: int) -> int:
    """The next number with no prime factor above 5."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1
