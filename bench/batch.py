"""Throughput of a batch: one engine, against one process an image in turn, against eager float32 PyTorch.

    python bench/batch.py [--images 32] [--side 128] [--iterations 500] [--rounds 1] [--json bench/results/batch_128.json]

Engine: `dipengine batch` on a folder. Processes: `dipengine denoise` on each image of it, one after the other, with all cores.
PyTorch: the same network in plain PyTorch (engine/dipengine/bench/peers.py), eager float32, on all cores; its seconds an iteration are
measured over some iterations of one image and multiplied up, which leaves out its start and its files, in its favour.
The two ways of ours write the same bits; this is checked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dipengine.bench.machine import facts
from dipengine.images import Image, write_image

_PEER_ITERATIONS = 12


def pictures(folder: Path, count: int, side: int) -> None:
    """Noise around smooth shades: what is in them changes nothing about the time."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    for i in range(count):
        shade = np.stack([0.5 + 0.3 * np.sin(3 * x + i), 0.5 + 0.3 * np.cos(4 * y + i), x * y], axis=2)
        pixels = np.rint(np.clip(shade + rng.normal(0, 0.1, shade.shape), 0, 1) * 255).astype(np.uint8)
        write_image(folder / f"{i:03}.png", pixels, Image(pixels))


def run(*arguments: Any) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dipengine", *map(str, arguments)], check=True)
    return time.perf_counter() - begin


def engine(source: Path, out: Path, fit: list[str]) -> float:
    return run("batch", source, "-o", out, "--quiet", *fit)


def processes(source: Path, out: Path, fit: list[str]) -> float:
    out.mkdir()
    return sum(run("denoise", path, "-o", out / path.name, "--quiet", *fit) for path in sorted(source.iterdir()))


def eager_seconds(side: int) -> float:
    """Seconds an iteration of eager float32 PyTorch on all cores, in a process of its own."""
    said = subprocess.run([sys.executable, __file__, "--eager", str(side)], check=True, capture_output=True, text=True)
    return float(said.stdout)


def measure_eager(side: int) -> float:
    import torch

    from dipengine import environment
    from dipengine.bench.peers import CONFIGURATIONS, EAGER, PyTorchFit
    from dipengine.bench.setting import Setting
    from dipengine.tasks.denoise import RECIPE
    from dipengine.tasks.presets import apply_preset

    threads = environment.default_threads()
    torch.set_num_threads(threads)
    architecture = apply_preset(RECIPE, "balanced").generator
    fit = PyTorchFit(CONFIGURATIONS[EAGER], Setting(architecture, side, side, "fp32", threads))
    fit.run(2)
    begin = time.perf_counter()
    fit.run(_PEER_ITERATIONS)
    return (time.perf_counter() - begin) / _PEER_ITERATIONS


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.png"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--eager", type=int, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.eager:
        print(measure_eager(parsed.eager))
        return
    fit = ["--iterations", str(parsed.iterations), "--stop", "fixed"]
    rounds = []
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "in"
        pictures(source, parsed.images, parsed.side)
        for number in range(parsed.rounds):
            one, other = Path(place) / f"engine{number}", Path(place) / f"processes{number}"
            ways = [("engine", lambda: engine(source, one, fit)), ("processes", lambda: processes(source, other, fit)),
                    ("eager", lambda: eager_seconds(parsed.side) * parsed.iterations * parsed.images)]
            rounds.append({name: way() for name, way in ways[number % 3 :] + ways[: number % 3]})
            if digests(one) != digests(other):
                raise SystemExit("The engine's images are not those of single commands.")
            print({name: round(value, 1) for name, value in rounds[-1].items()}, flush=True)
    middle = {name: median(found[name] for found in rounds) for name in rounds[0]}
    print(f"{parsed.images} images of {parsed.side}x{parsed.side}, {parsed.iterations} iterations, medians of {parsed.rounds}: engine "
          f"{middle['engine']:.1f} s; one process an image {middle['processes']:.1f} s, {middle['processes'] / middle['engine']:.2f}x; "
          f"eager PyTorch {middle['eager']:.0f} s, {middle['eager'] / middle['engine']:.2f}x")
    if parsed.json:
        about = {"images": parsed.images, "side": parsed.side, "iterations": parsed.iterations, "rounds": rounds, "medians": middle}
        parsed.json.write_text(json.dumps({**about, "machine": facts()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
