"""Does bfloat16 cost quality? Peak PSNR of whole fits in bfloat16 and in float32, same seeds, on crops of two photographs.

    python bench/precision.py --data FOLDER [--crop 128] [--iterations 1000] [--seeds 4] [--pairs N] [--json FILE]

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


def peak(noisy: np.ndarray, truth: np.ndarray, seed: int, precision: str, iterations: int) -> float:
    """The best PSNR of a fit, dB."""
    result = dipengine.denoise(noisy, truth=truth, seed=seed, precision=precision, iterations=iterations, stop="fixed")
    return max(value for _, value in result.history.psnr)


def summary(peaks: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Mean over seeds in bf16 less that in fp32, dB, by image; told on standard output."""
    means = {name: {precision: statistics.mean(values) for precision, values in both.items()} for name, both in peaks.items()}
    differences = {name: mean["bf16"] - mean["fp32"] for name, mean in means.items()}
    for name, mean in means.items():
        print(f"{name}: bf16 {mean['bf16']:.3f} dB, fp32 {mean['fp32']:.3f} dB, difference {differences[name]:+.3f} dB")
    print(f"mean difference {statistics.mean(differences.values()):+.3f} dB (at most 0.1 either way is asked)")
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=1000, help="at most so many pairs of fits now; the same command goes on later")
    parser.add_argument("--json", type=Path, default=RESULTS / "precision.json")
    parsed = parser.parse_args()
    settings = {"crop": parsed.crop, "iterations": parsed.iterations, "seeds": parsed.seeds,
                "instruction_set": backend.instruction_set()}
    record = json.loads(parsed.json.read_text()) if parsed.json.exists() else {}
    if any(record.get(key) != value for key, value in settings.items()):
        record = {**settings, "peak_psnr": {name: {"bf16": [], "fp32": []} for name in IMAGES}}
    peaks, left = record["peak_psnr"], parsed.pairs
    for name in IMAGES:
        folder = parsed.data / "denoise25"
        noisy, truth = (middle(read_image(folder / f"{name}_{kind}.png").pixels, parsed.crop) for kind in ("noisy", "GT"))
        for seed in range(len(peaks[name]["fp32"]), parsed.seeds):
            if left == 0:
                return 0
            left -= 1
            pair = {precision: peak(noisy, truth, seed, precision, parsed.iterations) for precision in peaks[name]}
            print(f"{name} seed {seed}: peak {pair['bf16']:.2f} dB in bf16, {pair['fp32']:.2f} in fp32", file=sys.stderr, flush=True)
            for precision, value in pair.items():
                peaks[name][precision].append(value)
            record["date"] = date.today().isoformat()
            parsed.json.write_text(json.dumps(record, indent=2) + "\n")
    record["difference"] = summary(peaks)
    record["mean_difference"] = statistics.mean(record["difference"].values())
    parsed.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
