"""What agreement of the delivered image with the measured one wins, in super-resolution and for JPEG; PSNR of what is delivered.

    python bench/agreement.py superres|dejpeg --data FOLDER [--size 128] [--channels 32] [--levels 2,4] [--pictures hill,boat]
                              [--workers 2]

FOLDER holds denoise25/, sr4/ and inpaint50/ with *_GT.png. Of each picture a square is made smaller by the levels' factors (Lanczos-2,
rounded to 8 bits), or coded by libjpeg at their qualities with colours at half the size, and restored with the same seed

- `paper`: by the published recipe, its number of iterations through;
- `as painted`: by the preset balanced as it was before, nearest upsampling and stopped where the outputs move least (--known fit);
- `delivered`: by the preset balanced as it is;
- `best`: the best point of a run of `delivered` of --iterations, which nobody knows without the truth.

`input` is the JPEG itself, or the small image enlarged by Pillow's bicubic filter, `input agreeing` that one brought to agree.
Writes bench/results/agreement_superres_<size>_<channels>.json or agreement_dejpeg_<size>.json (which keeps the channels of its recipe).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import dipengine
from dipengine.fitting.metrics import psnr
from dipengine.tasks.back_projection import BackProjection, matrix
from dipengine.tasks.downsampling import Downsampling
from stopping import PICTURES, RESULTS, frame

LEVELS = {"superres": "2,4", "dejpeg": "10,30,50,70,90"}
WAYS: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper"},
    "as painted": {"known": "fit", "upsample": "nearest"},
    "delivered": {},
    "best": {"stop": "fixed"},
}


def measured(task: str, level: int, clean: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What is restored, and other images of the size of `clean` to compare with."""
    if task == "dejpeg":
        file = io.BytesIO()
        Image.fromarray(clean if clean.shape[2] == 3 else clean[:, :, 0]).save(file, "JPEG", quality=level, subsampling="4:2:0")
        decoded = np.asarray(Image.open(file)).reshape(clean.shape)
        return decoded, {"input": decoded}
    operator = Downsampling(level)
    rows, columns = (matrix(operator, side) for side in clean.shape[:2])
    small = np.clip(np.rint(np.einsum("ih,hwc,jw->ijc", rows, clean, columns)), 0, 255).astype(np.uint8)
    planes = [Image.fromarray(plane).resize(clean.shape[1::-1], Image.Resampling.BICUBIC) for plane in np.moveaxis(small, 2, 0)]
    enlarged = np.stack([np.asarray(plane) for plane in planes], axis=2)
    agreeing = BackProjection(operator, small / np.float32(255), bounded=True).apply(enlarged / np.float32(255))
    return small, {"input": enlarged, "input agreeing": np.rint(255 * agreeing)}


def one(job: tuple[str, int, str, argparse.Namespace]) -> dict[str, Any]:
    task, level, name, given = job
    clean, _ = frame(given.data, name, given.size, 0)
    image, others = measured(task, level, clean)
    found: dict[str, Any] = {"level": level, "picture": name}
    for way, other in others.items():
        found[way] = {"psnr": psnr(other, clean, 255)}
    for way, options in WAYS.items():
        if task == "superres":
            options = {**options, "factor": level, "channels": given.channels}
        if way == "best":
            options = {**options, "iterations": given.iterations}
        result = dipengine.restore(image, task, truth=clean, threads=1, **options)
        record = result.record
        found[way] = {name: record[name] for name in ("psnr", "iterations", "stop_reason", "seconds")}
        if way == "best":
            found[way]["iterations"], found[way]["psnr"] = max(result.history.psnr, key=lambda point: point[1])
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def summary(cases: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the pictures."""
    found = {}
    for way in (name for name, what in cases[0].items() if isinstance(what, dict)):
        numbers = {name: float(np.mean([case[way][name] for case in cases])) for name in ("psnr", "iterations", "seconds") if name in cases[0][way]}
        below = [case["best"]["psnr"] - case[way]["psnr"] for case in cases]
        found[way] = {**numbers, "below_best_most": max(below)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=list(LEVELS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--levels")
    parser.add_argument("--pictures", type=lambda text: text.split(","), default=list(PICTURES))
    parser.add_argument("--iterations", type=int, help="of the runs that show the best point (1200, superres 2000)")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    given.iterations = given.iterations or (2000 if given.task == "superres" else 1200)
    levels = [int(level) for level in (given.levels or LEVELS[given.task]).split(",")]
    jobs = [(given.task, level, name, given) for level in levels for name in given.pictures]
    with ProcessPoolExecutor(given.workers) as pool:
        cases = list(pool.map(one, jobs))
    report = {
        "task": given.task, "size": given.size, "channels": given.channels,
        "summary": {level: summary([case for case in cases if case["level"] == level]) for level in levels}, "cases": cases,
    }
    channels = f"_{given.channels}" if given.task == "superres" else ""
    (RESULTS / f"agreement_{given.task}_{given.size}{channels}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
