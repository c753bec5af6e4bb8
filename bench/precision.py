"""Does bfloat16 cost quality? Peak PSNR of whole fits in bfloat16 and in float32, same seeds, on crops of two photographs.

    python bench/precision.py --data FOLDER [--crop 128] [--iterations 1000] [--seeds 4] [--json FILE]

FOLDER holds denoise25/ (undamaged and noisy images, sigma 25). A trajectory is a matter of rounding: seeds alone spread by some
0.2 dB, so means over seeds are compared. The default network and preset; fits of one pair take turns, image by image.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from datetime import date
from pathlib import Path

import numpy as np

import dipengine
from dipengine.images import read_image
from dipengine.kernels import backend

IMAGES = ("hill", "F16")
RESULTS = Path(__file__).resolve().parent / "results"


def middle(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle square of `side` pixels, uint8 [side, side, C]."""
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--json", type=Path, default=RESULTS / "precision.json")
    parsed = parser.parse_args()
    peaks: dict[str, dict[str, list[float]]] = {}
    for name in IMAGES:
        folder = parsed.data / "denoise25"
        noisy, truth = (middle(read_image(folder / f"{name}_{kind}.png").pixels, parsed.crop) for kind in ("noisy", "GT"))
        peaks[name] = {"bf16": [], "fp32": []}
        for seed in range(parsed.seeds):
            for precision, found in peaks[name].items():
                result = dipengine.denoise(
                    noisy, truth=truth, seed=seed, precision=precision, iterations=parsed.iterations, stop="fixed"
                )
                found.append(max(value for _, value in result.history.psnr))
                print(f"{name} seed {seed} {precision}: peak {found[-1]:.2f} dB", file=sys.stderr, flush=True)
    differences = {
        name: statistics.mean(both["bf16"]) - statistics.mean(both["fp32"]) for name, both in peaks.items()
    }
    mean = statistics.mean(differences.values())
    for name, difference in differences.items():
        means = {precision: statistics.mean(values) for precision, values in peaks[name].items()}
        print(f"{name}: bf16 {means['bf16']:.3f} dB, fp32 {means['fp32']:.3f} dB, difference {difference:+.3f} dB")
    print(f"mean difference {mean:+.3f} dB (at most 0.1 either way is asked)")
    record = {
        "crop": parsed.crop, "iterations": parsed.iterations, "date": date.today().isoformat(),
        "instruction_set": backend.instruction_set(), "peak_psnr": peaks, "difference": differences, "mean_difference": mean,
    }
    parsed.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
