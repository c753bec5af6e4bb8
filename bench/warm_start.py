"""What a warm start is worth: fits that begin with the generator of the frame before, beside fits that begin with random weights.

    python bench/warm_start.py --data FOLDER [--size 128] [--channels 32] [--seeds 1] [--threads 1]

FOLDER holds denoise25/ with hill_GT.png, F16_GT.png and peppers_GT.png. A frame is a square out of a picture with noise of sigma 25.
The first is fitted from random weights; "same" fits it again from its generator, "next" a frame that is shifted by one pixel on both
axes, with noise of its own, beside "next cold"; "other" begins with the generator of another picture, each of the others in turn.
Stopped by itself, with the noise unknown ("blind") and told ("sigma").
Writes bench/results/warm_start.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

import dipengine
from dipengine.images import read_image

RESULTS = Path(__file__).resolve().parent / "results"
SIGMA = 25
NAMES = ("hill", "F16", "peppers")
TOP = 100  # of the square; "next" lies one pixel down and to the left


def frame(picture: np.ndarray, size: int, shift: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A clean and a noisy square, uint8 [size, size, C]."""
    top, left = TOP + shift, TOP - shift
    clean = np.ascontiguousarray(picture[top : top + size, left : left + size])
    noisy = clean + rng.normal(0, SIGMA, clean.shape)
    return clean, np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def told(result: dipengine.Result) -> dict[str, Any]:
    names = ("iterations", "delivered_iteration", "stop_reason", "psnr")
    at, best = max(result.history.psnr, key=lambda point: point[1])
    return {**{name: result.record[name] for name in names}, "best_iteration": at, "best_psnr": best}


Frame = tuple[np.ndarray, np.ndarray]


def case(picture: np.ndarray, size: int, seed: int, common: dict[str, Any]) -> tuple[dict[str, Any], Frame, dipengine.Result]:
    """What is told of one picture's fits, its first frame and that one's cold fit."""
    rng = np.random.default_rng(seed)
    first, second = (frame(picture, size, shift, rng) for shift in (0, 1))
    cold = dipengine.denoise(first[1], truth=first[0], seed=seed, **common)
    fits = {
        "cold": cold,
        "same": dipengine.denoise(first[1], truth=first[0], seed=seed, init_from=cold.generator, **common),
        "next cold": dipengine.denoise(second[1], truth=second[0], seed=seed, **common),
        "next": dipengine.denoise(second[1], truth=second[0], seed=seed, init_from=cold.generator, **common),
    }
    return {name: told(result) for name, result in fits.items()}, first, cold


def summary(cases: list[dict[str, Any]], warm: str, cold: str) -> dict[str, Any]:
    """Of warm fits beside cold ones of the same frame: iterations, and PSNR gained (mean, least, most)."""
    gains = [one[warm]["psnr"] - one[cold]["psnr"] for one in cases]
    spans = {name: [one[name]["iterations"] for one in cases] for name in (warm, cold)}
    return {
        "iterations": [min(spans[warm]), max(spans[warm])],
        "iterations_cold": [min(spans[cold]), max(spans[cold])],
        "share_of_iterations": sum(spans[warm]) / sum(spans[cold]),
        "psnr_gain": [float(np.mean(gains)), min(gains), max(gains)],
        "below_best": max(one[warm]["best_psnr"] - one[warm]["psnr"] for one in cases),
        "below_best_cold": max(one[cold]["best_psnr"] - one[cold]["psnr"] for one in cases),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    report: dict[str, Any] = {"size": given.size, "channels": given.channels, "sigma": SIGMA}
    for noise, options in (("blind", {"noise": "unknown"}), ("sigma", {"sigma": SIGMA})):
        common = {"channels": given.channels, "threads": given.threads, **options}
        cases, others = [], []
        for seed in range(given.seeds):
            begun = {}
            for name in NAMES:
                picture = read_image(given.data / "denoise25" / f"{name}_GT.png").pixels
                fits, first, cold = case(picture, given.size, seed, common)
                begun[name] = (fits["cold"], first, cold.generator)
                cases.append({"picture": name, "seed": seed, **fits})
                print(noise, cases[-1], file=sys.stderr, flush=True)
            for name, source in permutations(NAMES, 2):
                cold, (clean, noisy), _ = begun[name]
                other = dipengine.denoise(noisy, truth=clean, seed=seed, init_from=begun[source][2], **common)
                others.append({"picture": name, "source": source, "seed": seed, "cold": cold, "other": told(other)})
                print(noise, others[-1], file=sys.stderr, flush=True)
        summaries = {
            "same": summary(cases, "same", "cold"), "next": summary(cases, "next", "next cold"), "other": summary(others, "other", "cold")
        }
        report[noise] = {"summary": summaries, "frames": cases, "others": others}
        print(noise, json.dumps(summaries, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "warm_start.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
