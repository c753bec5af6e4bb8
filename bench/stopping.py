"""What stopping by itself costs: the delivered image beside the best of the whole run, by each way to know the noise.

    python bench/stopping.py --data FOLDER [--size 128] [--channels 32] [--sigmas 25,50] [--pictures hill,F16] [--iterations 1000]

FOLDER holds denoise25/, sr4/ and inpaint50/ with *_GT.png. Of each picture a square with Gaussian noise is fitted with the same bits to the
iterations given, for the best point of the run, and until it stops: with nothing told (white noise is estimated), by the outputs'
variance alone (--noise unknown), and with sigma told. Writes bench/results/stopping_<size>_<channels>.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import dipengine
from dipengine.images import read_image

RESULTS = Path(__file__).resolve().parent / "results"
PICTURES = {
    "hill": "denoise25", "F16": "denoise25", "peppers": "denoise25", "butterfly": "sr4", "house": "inpaint50", "boat": "inpaint50",
}
WAYS = {  # of sigma: the options of a fit
    "nothing told": lambda sigma: {}, "unknown": lambda sigma: {"noise": "unknown"}, "sigma told": lambda sigma: {"sigma": sigma},
}
TOP = 100  # of the square, where the picture is large enough


def frame(folder: Path, name: str, size: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """A clean and a noisy square, uint8 [size, size, C]."""
    picture = read_image(folder / PICTURES[name] / f"{name}_GT.png").pixels
    top, left = (min(TOP, (side - size) // 2) for side in picture.shape[:2])
    clean = np.ascontiguousarray(picture[top : top + size, left : left + size])
    noisy = clean + np.random.default_rng(7).normal(0, sigma, clean.shape)
    return clean, np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def case(clean: np.ndarray, noisy: np.ndarray, sigma: float, iterations: int, common: dict[str, Any]) -> dict[str, Any]:
    whole = dipengine.denoise(noisy, truth=clean, iterations=iterations, stop="fixed", noise="unknown", **common)
    at, best = max(whole.history.psnr, key=lambda point: point[1])
    found: dict[str, Any] = {"psnr_noisy": whole.record["psnr_input"], "best_iteration": at, "best_psnr": best}
    for way, options in WAYS.items():
        record = dipengine.denoise(noisy, truth=clean, **options(sigma), **common).record
        kept = {name: record[name] for name in ("iterations", "delivered_iteration", "stop_reason", "psnr")}
        found[way] = {**kept, "sigma": record["parameters"]["sigma"], "below_best": best - record["psnr"]}
    return found


def summary(cases: list[dict[str, Any]], way: str) -> dict[str, float]:
    below, iterations = ([one[way][name] for one in cases] for name in ("below_best", "iterations"))
    return {"below_best_mean": float(np.mean(below)), "below_best_most": max(below), "iterations_mean": float(np.mean(iterations))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--sigmas", type=lambda text: [float(part) for part in text.split(",")], default=[25.0, 50.0])
    parser.add_argument("--pictures", type=lambda text: text.split(","), default=list(PICTURES))
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    cases = []
    for sigma in given.sigmas:
        for name in given.pictures:
            clean, noisy = frame(given.data, name, given.size, sigma)
            found = case(clean, noisy, sigma, given.iterations, {"channels": given.channels, "threads": given.threads})
            cases.append({"picture": name, "sigma": sigma, **found})
            print(cases[-1], file=sys.stderr, flush=True)
    report = {
        "size": given.size,
        "channels": given.channels,
        "summary": {
            f"{sigma:g}": {way: summary([one for one in cases if one["sigma"] == sigma], way) for way in WAYS}
            for sigma in given.sigmas
        },
        "cases": cases,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"stopping_{given.size}_{given.channels}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
