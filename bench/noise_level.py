"""How well white noise is told from an image alone, and from other noise (`noise.estimate`), with no fit at all.

    python bench/noise_level.py --data FOLDER

FOLDER holds denoise25/, sr4/ and inpaint50/ with *_GT.png. Squares of the photographs, in colour and in grey, get noise of known
strength: white; of photons; smeared by a Gaussian, by demosaicking, by shrinking to two thirds; and white noise behind JPEG. Writes
bench/results/noise_level.json: how many are taken for white, and how far off the estimate is in those, over the noise that was added
(clipping and rounding to 8 bits are part of it; the originals' own noise is not).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dipengine.images import read_image
from dipengine.noise.estimate import estimated_noise

RESULTS = Path(__file__).resolve().parent / "results"
SIZES, SIGMAS = (48, 64, 128, 256), (0.0, 2.0, 5.0, 10.0, 25.0)
TOP = 100  # of the square, where the picture is large enough


def squares(folder: Path, size: int) -> list[np.ndarray]:
    """float64 [size, size, C], in colour where there is colour, and in grey."""
    found = []
    for path in sorted(folder.glob("*/*_GT.png")):
        picture = read_image(path).pixels.astype(np.float64)
        top, left = (min(TOP, (side - size) // 2) for side in picture.shape[:2])
        square = picture[top : top + size, left : left + size]
        found += [square] if square.shape[2] == 1 else [square, square.mean(axis=2, keepdims=True)]
    return found


def smeared(width: float):
    def noisy(clean: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
        from scipy.ndimage import gaussian_filter

        noise = gaussian_filter(rng.normal(size=clean.shape), (width, width, 0))
        return clean + sigma * noise / noise.std()

    return noisy


def demosaicked(clean: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Through a bilinear RGGB mosaic."""
    from scipy.ndimage import convolve

    seen = clean + rng.normal(0, sigma, clean.shape)
    mosaic = np.zeros(clean.shape)
    mosaic[::2, ::2, 0] = mosaic[::2, 1::2, 1] = mosaic[1::2, ::2, 1] = mosaic[1::2, 1::2, 2] = 1
    sparse, dense = (np.array(kernel) / 4 for kernel in ([[1, 2, 1], [2, 4, 2], [1, 2, 1]], [[0, 1, 0], [1, 4, 1], [0, 1, 0]]))
    planes = [convolve(seen[..., c] * mosaic[..., c], dense if c == 1 else sparse, mode="reflect") for c in range(3)]
    return np.stack(planes, axis=-1)


def shrunk(clean: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """The picture enlarged by half, with noise, and brought back."""
    from PIL import Image

    def resized(pixels: np.ndarray, side: int) -> np.ndarray:
        planes = [Image.fromarray(np.float32(pixels[..., c])).resize((side, side), Image.BICUBIC) for c in range(pixels.shape[2])]
        return np.stack([np.asarray(plane) for plane in planes], axis=-1)

    large = resized(clean, len(clean) * 3 // 2)
    return resized(large + rng.normal(0, sigma, large.shape), len(clean))


def behind_jpeg(clean: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image

    noisy = np.clip(np.rint(clean + rng.normal(0, sigma, clean.shape)), 0, 255).astype(np.uint8)
    blob = io.BytesIO()
    Image.fromarray(noisy.squeeze()).save(blob, "JPEG", quality=90)
    return np.asarray(Image.open(blob), np.float64).reshape(clean.shape)


def photons(clean: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Of mean variance sigma squared."""
    if sigma == 0:
        return clean
    gain = clean.mean() / sigma**2
    return rng.poisson(clean * gain) / gain


KINDS = {
    "white": lambda clean, sigma, rng: clean + rng.normal(0, sigma, clean.shape), "photons": photons,
    "smeared by 0.4 pixels": smeared(0.4), "smeared by 0.5 pixels": smeared(0.5), "smeared by 0.6 pixels": smeared(0.6),
    "demosaicked": demosaicked, "shrunk by 2/3": shrunk, "JPEG of quality 90": behind_jpeg,
}


def row(kind: str, sigma: float, pictures: list[np.ndarray]) -> dict[str, Any]:
    spreads, errors, white = [], [], 0
    for clean in pictures:
        if kind == "demosaicked" and clean.shape[2] != 3:
            continue
        noisy = np.clip(np.rint(KINDS[kind](clean, sigma, np.random.default_rng(7))), 0, 255)
        level = estimated_noise(noisy)
        spreads.append(level.spread)
        white += level.white
        if level.white and sigma > 0:
            errors.append(level.sigma / (noisy - clean).std() - 1)
    return {
        "noise": kind, "sigma": sigma, "images": len(spreads), "taken for white": white,
        "spread at a quarter": _range([quarter for quarter, _ in spreads]), "at the half": _range([half for _, half in spreads]),
        "error of those": _range(errors) if errors else None,
    }


def _range(values: list[float]) -> list[float]:
    """Least, median and most, three digits."""
    return [float(f"{value:.3g}") for value in (min(values), float(np.median(values)), max(values))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    pictures = [square for size in SIZES for square in squares(given.data, size)]
    rows = [row(kind, sigma, pictures) for kind in KINDS for sigma in SIGMAS if sigma > 0 or kind == "white"]
    for one in rows:
        print(one, file=sys.stderr)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "noise_level.json").write_text(json.dumps({"sizes": SIZES, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
