"""What do tiles cost in quality? PSNR of images restored in tiles less that of the whole frame, for sides and overlaps.

    python bench/tiles.py --data FOLDER [--crop 256] [--channels 32] [--iterations 1000] [--seeds 2] [--json FILE]

FOLDER holds denoise25/ (undamaged and noisy photographs, sigma 25). `balanced` denoising told its sigma, that stops by itself, of the
middle squares of two photographs. The tiles cover the middle of the square as far as whole tiles with exactly that overlap go, and
both results are compared with the truth there. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from precision import IMAGES, RESULTS, middle

import dipengine
from dipengine.fitting import metrics
from dipengine.fitting.settings import Settings
from dipengine.images import Image, read_image
from dipengine.kernels import backend
from dipengine.tiling import TileRequest, plan_tiles, restore_tile

SIGMA = 25.0
SIDES, OVERLAPS = (64, 96, 128), (8, 16, 32)


def covered(crop: int, side: int, overlap: int) -> int:
    """The longest side that whole tiles with that overlap cover."""
    count = (crop - overlap) // (side - overlap)
    return count * side - (count - 1) * overlap


def whole(noisy: np.ndarray, truth: np.ndarray, settings: Settings) -> dict:
    """One fit of the whole frame, with its PSNR in the middle that each kind of tiles covers."""
    result = dipengine.denoise(
        noisy, sigma=SIGMA, seed=settings.seed, iterations=settings.iterations, channels=settings.channels, threads=settings.threads
    )
    record, crop = result.record, len(truth)
    sizes = sorted({crop, *(covered(crop, side, overlap) for side in SIDES for overlap in OVERLAPS)})
    psnr = {str(size): metrics.psnr(middle(result.image, size), middle(truth, size), 255) for size in sizes}
    return {"psnr": psnr, "iterations": record["iterations"], "seconds": record["seconds"]}


def tiled(noisy: np.ndarray, truth: np.ndarray, settings: Settings, request: TileRequest) -> dict:
    """The same in tiles."""
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_tiles(Image(noisy), "denoise", {"sigma": SIGMA}, settings, folder=folder, tile=request)
        start = time.perf_counter()
        for tile in plan.tiles:
            restore_tile(plan, tile.index)
        seconds = time.perf_counter() - start
        image = plan.assemble().read()
        iterations = [record["iterations"] for record in plan.records().values()]
        rows = plan.grid.rows
        return {
            "psnr": metrics.psnr(image, truth, 255), "tiles": len(plan.grid), "tile": rows.tile,
            "overlap": rows.tile - rows.starts[1], "size": len(noisy),
            "pixels_fitted": len(plan.grid) * rows.tile**2 / noisy.shape[0] ** 2,
            "iterations": [min(iterations), statistics.mean(iterations), max(iterations)], "seconds": seconds,
        }


def summary(results: dict) -> dict:
    """Mean PSNR of the tiles over photographs and seeds less that of the whole frames, dB, by side and overlap; least and most."""
    differences = {}
    for case in (f"{side},{overlap}" for side in SIDES for overlap in OVERLAPS):
        each = [
            runs[case][seed]["psnr"] - runs["whole"][seed]["psnr"][str(runs[case][seed]["size"])]
            for runs in results.values() for seed in runs.get(case, {}) if seed in runs.get("whole", {})
        ]
        if each:
            differences[case] = {"mean": statistics.mean(each), "least": min(each), "most": max(each), "runs": len(each)}
            print(f"tiles of {case}: {statistics.mean(each):+.2f} dB ({min(each):+.2f} to {max(each):+.2f})")
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS / "tiles.json")
    parsed = parser.parse_args()
    about = {"crop": parsed.crop, "channels": parsed.channels, "iterations": parsed.iterations, "sigma": SIGMA,
             "instruction_set": backend.instruction_set()}
    record = json.loads(parsed.json.read_text()) if parsed.json.exists() else {}
    if any(record.get(name) != value for name, value in about.items()):
        record = {**about, "results": {name: {} for name in IMAGES}}
    cases = ["whole", *(f"{side},{overlap}" for side in SIDES for overlap in OVERLAPS)]
    for seed in range(parsed.seeds):
        settings = Settings(
            channels=(parsed.channels,), iterations=parsed.iterations, seed=seed, threads=parsed.threads
        )
        for case in cases:
            for name in IMAGES:
                done = record["results"][name].setdefault(case, {})
                if str(seed) in done:
                    continue
                noisy, truth = (
                    middle(read_image(parsed.data / "denoise25" / f"{name}_{kind}.png").pixels, parsed.crop) for kind in ("noisy", "GT")
                )
                if case == "whole":
                    got = whole(noisy, truth, settings)
                else:
                    request = TileRequest.parse(case)
                    size = covered(parsed.crop, request.side, request.overlap)
                    got = tiled(middle(noisy, size), middle(truth, size), settings, request)
                print(f"{name} {case} seed {seed}: {got['psnr']} dB in {got['seconds']:.0f} s", file=sys.stderr, flush=True)
                done[str(seed)] = got
                record["date"] = date.today().isoformat()
                parsed.json.write_text(json.dumps(record, indent=2) + "\n")
    record["difference"] = summary(record["results"])
    parsed.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
