"""What do tiles cost in quality? PSNR of images restored in tiles less that of the whole frame, for sides and overlaps.

    python bench/tiles.py --data FOLDER [--crop 256] [--channels 32] [--iterations 1000] [--seeds 2] [--json FILE]
    python bench/tiles.py --frames PICTURE... --crop 960x512 --tiles 512,64 --json bench/results/tiles_512.json

FOLDER holds denoise25/ (undamaged and noisy photographs, sigma 25); undamaged PICTUREs are given noise of sigma 25 here. `balanced`
denoising told its sigma, that stops by itself, of the middles of two photographs or more. The tiles cover the middle of that as far as
whole tiles with exactly that overlap go, and both results are compared with the truth there. The same command goes on where it was
stopped.
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
from precision import IMAGES, RESULTS

import dipengine
from dipengine.fitting import metrics
from dipengine.fitting.settings import Settings
from dipengine.images import Image, read_image
from dipengine.kernels import backend
from dipengine.tiling import TileRequest, plan_tiles, restore_tile

SIGMA = 25.0
TILES = [f"{side},{overlap}" for side in (64, 96, 128) for overlap in (8, 16, 32)]


def size_of(text: str) -> tuple[int, int]:
    """(height, width) of "WIDTHxHEIGHT" or of the side of a square."""
    width, _, height = text.partition("x")
    return int(height or width), int(width)


def pairs(parsed: argparse.Namespace) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Noisy and undamaged middles by name, uint8 [height, width, C]."""
    if parsed.data:
        files = {name: [parsed.data / "denoise25" / f"{name}_{kind}.png" for kind in ("noisy", "GT")] for name in IMAGES}
        return {name: tuple(middle(read_image(path).pixels, parsed.crop) for path in both) for name, both in files.items()}
    found = {}
    for path in parsed.frames:
        truth = middle(read_image(path).pixels, parsed.crop)
        noise = np.random.default_rng(0).normal(0, SIGMA, truth.shape)
        found[path.stem] = np.clip(np.rint(truth + noise), 0, 255).astype(np.uint8), truth
    return found


def middle(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of `size`, uint8 [height, width, C]."""
    top, left = ((length - part) // 2 for length, part in zip(pixels.shape, size, strict=False))
    return np.ascontiguousarray(pixels[top : top + size[0], left : left + size[1]])


def covered(crop: tuple[int, int], tile: TileRequest) -> tuple[int, int]:
    """The largest (height, width) that whole tiles with that overlap cover."""
    counts = ((length - tile.overlap) // (tile.side - tile.overlap) for length in crop)
    return tuple(count * tile.side - (count - 1) * tile.overlap for count in counts)


def text_of(size: tuple[int, int]) -> str:
    height, width = size
    return str(width) if width == height else f"{width}x{height}"


def whole(noisy: np.ndarray, truth: np.ndarray, settings: Settings, sizes: set[tuple[int, int]]) -> dict:
    """One fit of the whole frame, with its PSNR in the middle that each kind of tiles covers."""
    result = dipengine.denoise(
        noisy, sigma=SIGMA, seed=settings.seed, iterations=settings.iterations, channels=settings.channels, threads=settings.threads
    )
    record = result.record
    psnr = {text_of(size): metrics.psnr(middle(result.image, size), middle(truth, size), 255) for size in sorted(sizes)}
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
            "overlap": request.overlap, "size": text_of(noisy.shape[:2]),
            "pixels_fitted": len(plan.grid) * rows.tile**2 / (noisy.shape[0] * noisy.shape[1]),
            "iterations": [min(iterations), statistics.mean(iterations), max(iterations)], "seconds": seconds,
        }


def summary(results: dict, tiles: list[str]) -> dict:
    """Mean PSNR of the tiles over photographs and seeds less that of the whole frames, dB, by side and overlap; least and most."""
    differences = {}
    for case in tiles:
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
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path)
    source.add_argument("--frames", type=Path, nargs="+")
    parser.add_argument("--crop", type=size_of, default="256")
    parser.add_argument("--tiles", nargs="+", default=TILES)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS / "tiles.json")
    parsed = parser.parse_args()
    images, requests = pairs(parsed), {case: TileRequest.parse(case) for case in parsed.tiles}
    sizes = {case: covered(parsed.crop, request) for case, request in requests.items()}
    about = {"crop": text_of(parsed.crop), "channels": parsed.channels, "iterations": parsed.iterations, "sigma": SIGMA,
             "instruction_set": backend.instruction_set(), "images": sorted(images)}
    record = json.loads(parsed.json.read_text()) if parsed.json.exists() else {}
    if any(record.get(name) != value for name, value in about.items()):
        record = {**about, "results": {name: {} for name in images}}
    for seed in range(parsed.seeds):
        settings = Settings(
            channels=(parsed.channels,), iterations=parsed.iterations, seed=seed, threads=parsed.threads
        )
        for case in ("whole", *requests):
            for name, (noisy, truth) in images.items():
                done = record["results"][name].setdefault(case, {})
                if str(seed) in done:
                    continue
                if case == "whole":
                    got = whole(noisy, truth, settings, {parsed.crop, *sizes.values()})
                else:
                    got = tiled(middle(noisy, sizes[case]), middle(truth, sizes[case]), settings, requests[case])
                print(f"{name} {case} seed {seed}: {got['psnr']} dB in {got['seconds']:.0f} s", file=sys.stderr, flush=True)
                done[str(seed)] = got
                record["date"] = date.today().isoformat()
                parsed.json.write_text(json.dumps(record, indent=2) + "\n")
    record["difference"] = summary(record["results"], parsed.tiles)
    parsed.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
