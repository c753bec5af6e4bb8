"""How well exported generators paint what was delivered, on the images with published results.

    python bench/fidelity.py hill house vase butterfly --data FOLDER --keep FOLDER [--iterations N] [--preset balanced]

FOLDER (--data) holds denoise25/, inpaint50/, inpaint_hole/, sr4/. Fits are short (`FITS`; --iterations sets another number): what
is measured is the export, not the restoration. Generators and ONNX files go to --keep, and a generator that lies there is not
fitted again. Writes bench/results/fidelity.json: per image and preset the PSNR of what ONNX Runtime paints from the float32, float16 and
int8 files, against the delivered image (peak 1), beside the iterations and seconds of consolidation and the files' sizes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import dipengine
from dipengine.bench import machine
from dipengine.export.consolidate import Consolidated, consolidate
from dipengine.export.exporter import write
from dipengine.export.generator_file import FittedGenerator
from dipengine.fitting.progress import ProgressBar
from dipengine.images import read_image

RESULTS = Path(__file__).resolve().parent / "results"
FITS = {"hill": 300, "house": 300, "vase": 300, "butterfly": 300}  # iterations; the published recipes have 1800, 11000, 5000, 2000


def fit(name: str, data: Path, preset: str, iterations: int, threads: int | None) -> dipengine.Result:
    """The restoration of one image, cut short. "paper" delivers the network's own output, as the published recipes do; "balanced" an
    average of outputs."""
    load = lambda path: read_image(data / path).pixels
    with ProgressBar(iterations, name) as bar:
        options = {"iterations": iterations, "stop": "fixed", "threads": threads, "progress": bar, "preset": preset}
        if name == "hill":
            return dipengine.denoise(load("denoise25/hill_noisy.png"), **options)
        if name == "house":
            masked = load("inpaint50/house_masked.png")
            return dipengine.inpaint(masked, masked[:, :, 0] > 0, known="fit", **options)
        if name == "vase":
            known = load("inpaint_hole/vase_mask.png")[:, :, 0] > 127
            return dipengine.inpaint(load("inpaint_hole/vase.png"), known, recipe="hole", **options)
        from PIL import Image

        truth = Image.fromarray(load("sr4/butterfly_GT.png"))
        small = truth.resize((truth.width // 4, truth.height // 4), Image.Resampling.BICUBIC)
        return dipengine.super_resolve(np.asarray(small), 4, **options)


def measure(label: str, generator: FittedGenerator, keep: Path, threads: int | None) -> dict[str, Any]:
    """Consolidate once, write every precision, paint, compare."""
    looks = []
    start = time.perf_counter()
    consolidated: Consolidated = consolidate(
        generator, threads=threads, progress=lambda report: looks.append((report.iteration, report.psnr)))
    taken = time.perf_counter() - start
    files = {}
    for precision in ("fp32", "fp16", "int8"):
        done = write(generator, consolidated, keep / f"{label}_{precision}.onnx", precision=precision, z="seed", threads=threads)
        files[precision] = {"psnr": done.psnr, "bytes": done.bytes}
    return {
        "task": generator.task, "crop": list(generator.crop), "fitted_iterations": generator.iteration,
        "consolidation_iterations": consolidated.iterations, "consolidation_seconds": taken, "looks": looks, "files": files,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", choices=tuple(FITS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--preset", choices=("paper", "balanced"), help='default: paper, for "hill" balanced')
    parser.add_argument("--threads", type=int)
    parsed = parser.parse_args()
    parsed.keep.mkdir(parents=True, exist_ok=True)
    target = RESULTS / "fidelity.json"
    report = json.loads(target.read_text()) if target.exists() else {}
    for name in parsed.images:
        preset = parsed.preset or ("balanced" if name == "hill" else "paper")
        label = f"{name}_{preset}"
        kept = parsed.keep / f"{label}.safetensors"
        if not kept.exists():
            fit(name, parsed.data, preset, parsed.iterations or FITS[name], parsed.threads).generator.save(kept)
        found = measure(label, FittedGenerator.load(kept), parsed.keep, parsed.threads)
        report[label] = found | {"preset": preset, "cpu": machine.cpu_name()}
        target.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps({key: value for key, value in found.items() if key != "looks"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
