"""Part "restoration": the demo's photograph with noise of sigma 25, restored by the preset `balanced` until it stops by itself, and by
PyTorch's loop for as many iterations; PSNR of what is delivered (PyTorch's: the average of its outputs, which begins with none), and
seconds."""

from __future__ import annotations

import math
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from acceptance import gpu
from acceptance.iterations import DEVICE, PEERS
from acceptance.step import LEFT_OUT, MEASURED, ROOT, Context, Step

SIGMA = 25 / 255
SEED = 1


def read_png(path: Path) -> np.ndarray:
    """float32 [H, W, C] in [0, 1] from a PNG of 8 bits, not interlaced: a GPU host needs no reader of images for this."""
    data, at, packed = path.read_bytes(), 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            if depth != 8 or colour not in (0, 2) or interlaced:
                raise ValueError(f"{path} is not a grey or RGB PNG of 8 bits without interlacing.")
        elif kind == b"IDAT":
            packed += body
        at += 12 + length
    channels = 3 if colour == 2 else 1
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    image = np.zeros((height + 1, width * channels + channels), np.uint8)  # a row above and a pixel to the left, of zeros
    for y, row in enumerate(rows):
        _unfilter(int(row[0]), row[1:].astype(int), image[y], image[y + 1], channels)
    return image[1:, channels:].reshape(height, width, channels).astype(np.float32) / 255


def _unfilter(kind: int, row: np.ndarray, above: np.ndarray, out: np.ndarray, channels: int) -> None:
    """PNG (third edition), 9: a row from its differences; `above` and `out` begin with a pixel of zeros."""
    for i, value in enumerate(row):
        left, up, corner = int(out[i]), int(above[i + channels]), int(above[i])
        if kind == 4:
            by_left, by_up, by_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
            predicted = left if by_left <= by_up and by_left <= by_corner else up if by_up <= by_corner else corner
        else:
            predicted = (0, left, up, (left + up) // 2)[kind]
        out[i + channels] = (value + predicted) % 256


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """dB, of values clipped to [0, 1]."""
    error = np.mean(np.square(np.clip(image, 0, 1).astype(np.float64) - truth))
    return 10 * math.log10(1 / error)


def photograph() -> tuple[np.ndarray, np.ndarray]:
    """(truth, noisy), float32 [H, W, 3] in [0, 1]."""
    truth = read_png(ROOT / "demo/photograph.png")
    noise = np.random.default_rng(SEED).normal(0, SIGMA, truth.shape)
    return truth, np.clip(truth + noise, 0, 1).astype(np.float32)


def restore(truth: np.ndarray, noisy: np.ndarray, device: str, **changes: Any) -> dict[str, Any]:
    """By the engine, blind: the preset `balanced`, whose stop is its own."""
    from dataclasses import replace

    from dipengine.fitting.device import place
    from dipengine.fitting.native_fit import NativeFit
    from dipengine.fitting.settings import Settings
    from dipengine.generators.architecture import Hourglass
    from dipengine.tasks.base import Problem, Recipe
    from dipengine.tasks.presets import apply_preset

    recipe = replace(apply_preset(Recipe(Hourglass.regular(upsample="bilinear"), iterations=3000), "balanced"), **changes)
    problem = Problem("denoise", noisy, noisy.shape[:2], recipe)
    placement = place(Settings(device=device, precision="bf16", threads=2))
    NativeFit(problem, recipe, 0, placement, "auto").run(3)  # what is made once in a process is made
    start = time.perf_counter()
    fit = NativeFit(problem, recipe, 0, placement, "auto")
    fit.run(recipe.iterations)
    image, _, delivered = fit.deliver()
    return {"seconds": time.perf_counter() - start, "iterations": fit.iteration, "delivered_iteration": delivered,
            "stopped_by": fit.reason, "psnr": psnr(image, truth), "psnr_noisy": psnr(noisy, truth)}


def restore_plainly(truth: np.ndarray, noisy: np.ndarray, name: str, iterations: int, setting: Any) -> dict[str, Any]:
    """By PyTorch's loop: the average of the outputs after so many iterations."""
    import torch

    from acceptance import timing
    from dipengine.bench.peers import CUDA_CONFIGURATIONS, PyTorchFit
    from dipengine.bench.setting import AVERAGE_DECAY

    timing.prepare()
    fit = PyTorchFit(CUDA_CONFIGURATIONS[name], setting)
    target = torch.from_numpy(noisy).permute(2, 0, 1)[None]
    fit.target.copy_(target)
    fit.run(3)
    fit.average.zero_()
    start = time.perf_counter()
    fit.run(iterations)
    seconds = time.perf_counter() - start
    # What it began with has a share of decay^iterations in it (as Kingma and Ba correct their moments, ICLR 2015).
    image = (fit.average[0] / (1 - AVERAGE_DECAY**iterations)).permute(1, 2, 0).float().cpu().numpy()
    return {"seconds": seconds, "iterations": iterations, "psnr": psnr(image, truth), "psnr_noisy": psnr(noisy, truth), "peer": name}


def ours(context: Context) -> dict[str, Any]:
    return {"status": MEASURED, **restore(*photograph(), DEVICE), "clocks": gpu.clocks()}


def peer(context: Context, name: str) -> dict[str, Any]:
    from acceptance.iterations import setting_of

    own = context.result("restoration", "ours")
    if own is None or own["status"] != MEASURED:
        return {"status": LEFT_OUT, "reason": "ours has not been restored; there is no number of iterations to compare with"}
    truth, noisy = photograph()
    found = restore_plainly(truth, noisy, name, own["iterations"], setting_of(*truth.shape[:2], DEVICE))
    return {"status": MEASURED, **found, "ratio": found["seconds"] / own["seconds"], "clocks": gpu.clocks()}


def _step(short: str, name: str) -> Step:
    expected, limit = (150, 500) if short == "compiled" else (60, 400)
    return Step(short, lambda context: peer(context, name), expected, limit, peer=True)


STEPS = [Step("ours", ours, 20, 200), *(_step(*peer_) for peer_ in PEERS.items())]
