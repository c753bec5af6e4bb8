"""The demo: damage a photograph, restore it from the damaged picture alone, put before and after side by side."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dipengine.cli.main import main as dipengine
from dipengine.images import read_image, write_image
from dipengine.kernels import philox

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
SIGMA = 25  # standard deviation of the noise, of 255
ITERATIONS = 600  # enough for this picture, and about two minutes on two cores
GAP = 8  # white pixels between pictures


def add_noise(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] with Gaussian noise added, rounded and clipped."""
    noise = philox.normal(seed=1, stream=philox.NOISE, step=0, count=pixels.size).reshape(pixels.shape)
    return np.clip(np.rint(pixels + SIGMA * noise), 0, 255).astype(np.uint8)


def main() -> int:
    OUT.mkdir(exist_ok=True)
    photograph = read_image(HERE / "photograph.png")
    write_image(OUT / "noisy.png", add_noise(photograph.pixels), photograph)
    status = dipengine([
        "denoise", str(OUT / "noisy.png"), "-o", str(OUT / "restored.png"), "--preset", "fast",
        "--iterations", str(ITERATIONS), "--stop", "fixed",
        "--truth", str(HERE / "photograph.png"), "--record", str(OUT / "record.json"),
    ])
    if status:
        return status
    pictures = [read_image(path).pixels for path in (OUT / "noisy.png", OUT / "restored.png", HERE / "photograph.png")]
    gap = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
    row = np.concatenate([pictures[0], gap, pictures[1], gap, pictures[2]], axis=1)
    write_image(OUT / "before_after.png", row, photograph)
    print(f"Before, after, undamaged: {OUT / 'before_after.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
