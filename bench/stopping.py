"""What stopping by itself costs: the delivered image beside the best of the whole run, by each way to know the noise.

    python bench/stopping.py --data FOLDER [--size 128] [--channels 32] [--sigmas 25,50] [--pictures hill,F16] [--iterations 1000]

FOLDER holds denoise25/, sr4/ and inpaint50/ with *_GT.png. Of each picture a square with Gaussian noise is fitted with the same bits to the
iterations given, for the best point of the run, and until it stops: with nothing told (white noise is estimated), by the outputs'
variance alone (--noise unknown), and with sigma told. Writes bench/results/stopping_<size>_<channels>.json.

    python bench/stopping.py --sensors [--seeds 3] ...

The same for the simulated frames of `sensor.py`, of whose sensor nothing is told; writes stopping_sensors_<size>_<channels>.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import dipengine
from dipengine.images import read_image
from sensor import SENSORS, simulate

RESULTS = Path(__file__).resolve().parent / "results"
PICTURES = {
    "hill": "denoise25", "F16": "denoise25", "peppers": "denoise25", "butterfly": "sr4", "house": "inpaint50", "boat": "inpaint50",
}
NOTHING_TOLD: dict[str, dict[str, Any]] = {"nothing told": {}, "unknown": {"noise": "unknown"}}
TOP = 100  # of the square, where the picture is large enough


def frame(folder: Path, name: str, size: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """A clean and a noisy square, uint8 [size, size, C]."""
    picture = read_image(folder / PICTURES[name] / f"{name}_GT.png").pixels
    top, left = (min(TOP, (side - size) // 2) for side in picture.shape[:2])
    clean = np.ascontiguousarray(picture[top : top + size, left : left + size])
    noisy = clean + np.random.default_rng(7).normal(0, sigma, clean.shape)
    return clean, np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def case(clean: np.ndarray, noisy: np.ndarray, ways: dict[str, dict[str, Any]], common: dict[str, Any]) -> dict[str, Any]:
    """common: options of every fit; the longest one's number of iterations among them."""
    whole = dipengine.denoise(noisy, truth=clean, stop="fixed", noise="unknown", **common)
    at, best = max(whole.history.psnr, key=lambda point: point[1])
    found: dict[str, Any] = {"psnr_noisy": whole.record["psnr_input"], "best_iteration": at, "best_psnr": best}
    for way, options in ways.items():
        record = dipengine.denoise(noisy, truth=clean, **options, **{**common, "iterations": None}).record
        kept = {name: record[name] for name in ("iterations", "delivered_iteration", "stop_reason", "psnr")}
        found[way] = {**kept, "sigma": record["parameters"]["sigma"], "below_best": best - record["psnr"]}
    return found


def summary(cases: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    found = {}
    for way in (name for name, told in cases[0].items() if isinstance(told, dict)):
        below, iterations = ([one[way][name] for one in cases] for name in ("below_best", "iterations"))
        found[way] = {
            "below_best_mean": float(np.mean(below)), "below_best_most": max(below), "iterations_mean": float(np.mean(iterations)),
        }
    return found


def photographs(given: argparse.Namespace, common: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for sigma in given.sigmas:
        for name in given.pictures:
            clean, noisy = frame(given.data, name, given.size, sigma)
            found = case(clean, noisy, {**NOTHING_TOLD, "sigma told": {"sigma": sigma}}, common)
            yield {"of": f"sigma {sigma:g}", "picture": name, **found}


def sensors(given: argparse.Namespace, common: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in SENSORS:
        for seed in range(given.seeds):
            clean, noisy, _, _ = simulate(name, given.size, seed)
            yield {"of": name, "seed": seed, **case(clean, noisy, NOTHING_TOLD, {**common, "seed": seed})}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sensors", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--sigmas", type=lambda text: [float(part) for part in text.split(",")], default=[25.0, 50.0])
    parser.add_argument("--pictures", type=lambda text: text.split(","), default=list(PICTURES))
    parser.add_argument("--iterations", type=int, default=1800)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.data is None and not given.sensors:
        parser.error("give --data FOLDER, or --sensors")
    common = {"channels": given.channels, "threads": given.threads, "iterations": given.iterations}
    cases = []
    for one in (sensors if given.sensors else photographs)(given, common):
        cases.append(one)
        print(one, file=sys.stderr, flush=True)
    groups = dict.fromkeys(one["of"] for one in cases)
    report = {
        "size": given.size, "channels": given.channels,
        "summary": {group: summary([one for one in cases if one["of"] == group]) for group in groups}, "cases": cases,
    }
    RESULTS.mkdir(exist_ok=True)
    which = "stopping_sensors" if given.sensors else "stopping"
    (RESULTS / f"{which}_{given.size}_{given.channels}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
