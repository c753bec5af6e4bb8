"""Random numbers by counter (Philox4x32-10): any element of any sequence alone, the same everywhere. No PyTorch needed.

A sequence is named by (seed, stream, step): key = the seed's low and high 32 bits; counter = the block index's low and
high 32 bits, step, stream. Each block yields four 32-bit words. J. Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC'11. The element index of an image-like tensor is pixel-major, (y * W + x) * C + c, whatever its memory layout.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dipengine.errors import InputError
from dipengine.kernels import backend, pool, workspace
from dipengine.kernels.backend import native

if TYPE_CHECKING:
    from torch import Tensor

# Streams: what a sequence is for.
CODE, PERTURBATION, WEIGHTS, MASK, NOISE, HELD = range(6)

_CHUNK = 1 << 18  # blocks that a twin makes at a time, to bound its memory
_LOW = 0xFFFFFFFF


def uniform(seed: int, stream: int, step: int, count: int, *, kernels: str = "auto") -> np.ndarray:
    """float32 [count] in [0, 1), multiples of 2^-24: element i is the upper 24 bits of word i % 4 of block i // 4.

    seed 0 to 2^64 - 1, stream and step 0 to 2^32 - 1. Exact: native and twin agree in every bit.
    """
    _check(seed, stream, step, count)
    if backend.resolve(kernels) == "native":
        out = np.empty(count, np.float32)
        native.philox_uniform(seed, stream, step, out, pool.get())
        return out
    words = _twin(np, seed, stream, step, -(-count // 4), lambda block: np.stack(block, -1))
    return ((words[:count] >> 8).astype(np.float32)) * np.float32(2**-24)


def random_bytes(seed: int, stream: int, step: int, count: int, *, kernels: str = "auto") -> np.ndarray:
    """uint8 [count]: element i is byte i % 16 of block i // 16, little-endian within words 0 to 3. Exact."""
    _check(seed, stream, step, count)
    if backend.resolve(kernels) == "native":
        out = np.empty(count, np.uint8)
        native.philox_bytes(seed, stream, step, out, pool.get())
        return out
    words = _twin(np, seed, stream, step, -(-count // 16), lambda block: np.stack(block, -1))
    return words.astype("<u4").view(np.uint8)[:count]


def normal(seed: int, stream: int, step: int, count: int, *, kernels: str = "auto") -> np.ndarray:
    """float32 [count], standard normals by Box-Muller, |n| <= 5.77.

    Of each block, words (0, 1) give elements 0 and 1, words (2, 3) elements 2 and 3: from words (a, b),
    r = sqrt(-2 ln(((a >> 8) + 1) 2^-24)) times cos and sin of 2 pi (b >> 8) 2^-24. Native numbers are the same bits on
    every instruction set and within a few units in the last place of the twin, which works in float64.
    """
    _check(seed, stream, step, count)
    if backend.resolve(kernels) == "native":
        out = np.empty(count, np.float32)
        native.philox_normal(seed, stream, step, out, pool.get())
        return out
    return _twin(np, seed, stream, step, -(-count // 4), lambda block: _normals(np, block))[:count].astype(np.float32)


def perturb(
    z: Tensor, std: float, seed: int, step: int, *, out: Tensor, scale: float = 1.0, kernels: str = "auto"
) -> Tensor:
    """out = z + std * normal(seed, PERTURBATION, step): the generator's input for one iteration. Returns `out`.

    z: torch [1, C, H, W] float32, or uint8 standing for z * scale. out: same shape, float32 or bfloat16, and may be z.
    std >= 0 in z's units. Native needs both in channels_last order, in CPU memory or on a CUDA device that the core has kernels
    for; "auto" takes the twin elsewhere.
    Raises InputError for unequal shapes and other dtypes.
    """
    import torch

    if z.shape != out.shape or z.dim() != 4 or z.shape[0] != 1:
        raise InputError(f"The code is {tuple(z.shape)} and its output {tuple(out.shape)}; both must be [1, C, H, W].")
    if z.dtype not in (torch.float32, torch.uint8) or out.dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"A code in {z.dtype} cannot be perturbed into {out.dtype}; use float32 (or uint8) and float32 "
                         "or bfloat16.")
    if not (math.isfinite(std) and std >= 0):
        raise InputError(f"The perturbation of z is {std}; give 0 or a positive number.")
    _check(seed, PERTURBATION, step, z.numel())
    choice = backend.choose(kernels, z)
    pixels_z, pixels_out = z.detach().permute(0, 2, 3, 1), out.detach().permute(0, 2, 3, 1)
    if kernels == "auto" and not (pixels_z.is_contiguous() and pixels_out.is_contiguous()):
        choice = "torch"
    if choice == "native":
        native.perturb(
            pixels_z, scale, std, [seed], PERTURBATION, [step], pixels_out, pool.get(), workspace=workspace.allocator(z),
        )
        return out
    blocks = -(-z.numel() // 4)
    noise = _twin(torch, seed, PERTURBATION, step, blocks, lambda block: _normals(torch, block), device=z.device)
    noise = noise[: z.numel()].to(torch.float32).mul_(std).view(pixels_z.shape)
    pixels_out.copy_((pixels_z if z.dtype == torch.float32 else pixels_z.to(torch.float32) * scale) + noise)
    return out


def _check(seed: int, stream: int, step: int, count: int) -> None:
    if not 0 <= seed < 1 << 64:
        raise InputError(f"The seed is {seed}; give a whole number from 0 to 2^64 - 1.")
    if not (0 <= stream < 1 << 32 and 0 <= step < 1 << 32 and count >= 0):
        raise InputError(f"Stream {stream}, step {step}, count {count}: stream and step lie in 0 to 2^32 - 1, count >= 0.")


def _twin(xp: Any, seed: int, stream: int, step: int, blocks: int, finish: Any, **place: Any) -> Any:
    """finish(words of a run of blocks), flattened, for all `blocks`; xp is numpy or torch, `place` where it computes."""
    parts = [
        finish(_words(xp, seed, stream, step, xp.arange(first, min(first + _CHUNK, blocks), dtype=xp.int64, **place)))
        for first in range(0, max(blocks, 1), _CHUNK)
    ]
    return xp.concatenate([part.reshape(-1) for part in parts])


def _words(xp: Any, seed: int, stream: int, step: int, index: Any) -> list[Any]:
    """The four words, int64 in [0, 2^32), of each block index.

    Products wrap around modulo 2^64 in int64; shifting and masking them yields the halves of the unsigned product all
    the same, and torch has no arithmetic on unsigned integers.
    """
    key0, key1 = seed & _LOW, seed >> 32
    c0, c1 = index & _LOW, (index >> 32) & _LOW
    c2, c3 = xp.full_like(index, step), xp.full_like(index, stream)
    for _ in range(10):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = ((product1 >> 32) & _LOW) ^ c1 ^ key0, ((product0 >> 32) & _LOW) ^ c3 ^ key1
        c1, c3 = product1 & _LOW, product0 & _LOW
        key0, key1 = (key0 + 0x9E3779B9) & _LOW, (key1 + 0xBB67AE85) & _LOW
    return [c0, c1, c2, c3]


def _normals(xp: Any, block: list[Any]) -> Any:
    """float64 [blocks, 4]: two Box-Muller pairs of each block's words."""
    out = []
    for a, b in (block[:2], block[2:]):
        radius = xp.sqrt(-2.0 * xp.log(((a >> 8) + 1) * 2.0**-24))
        angle = (b >> 8) * (2 * math.pi * 2.0**-24)
        out += [radius * xp.cos(angle), radius * xp.sin(angle)]
    return xp.stack(out, -1)
