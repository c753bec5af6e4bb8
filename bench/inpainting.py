"""What inpainting delivers, how soon, and how far below the best of the run; PSNR over the missing pixels.

    python bench/inpainting.py --data FOLDER [--size 128] [--channels 32] [--pictures hill,boat] [--kind scattered|text]
                               [--ways paper,delivered,best] [--workers 2]

FOLDER holds denoise25/, sr4/ and inpaint50/ with *_GT.png. Of each picture a square misses half of its pixels, or a text written over
it, and is fitted with the same mask, seed and network

- `paper`: by the published recipe, its number of iterations through, nothing averaged;
- `by the variance`: by the published step size, averaged, stopped where the outputs move least (what balanced did before);
- `delivered`: by the preset balanced as it is, stopped by pixels held out;
- `bilinear`: the same with the published network's upsampling;
- `best`: by the recipe of `delivered` with all pixels from the beginning, at the best point of `--iterations`, which nobody knows
  without the truth.

Writes bench/results/inpainting_<kind>_<size>_<channels>.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dipengine.fitting.run import FitRun
from dipengine.fitting.settings import Settings
from dipengine.images import from_array
from dipengine.images.namespaces import on_host
from dipengine.restoration import plan_restoration
from dipengine.tasks.inpaint import RECIPES
from stopping import PICTURES, RESULTS, frame

WAYS = ("paper", "by the variance", "delivered", "bilinear", "best")
RECIPE_OF = {"scattered": "missing50", "text": "text"}
LINE = 13  # pixels from one line of the text to the next


def text_mask(size: int) -> np.ndarray:
    """Bool [size, size]: True where no letter stands. Three strokes of a pixel's width make one, so that no font decides."""
    rng = np.random.default_rng(5)
    known = np.ones((size, size), bool)
    for top in range(2, size - LINE, LINE):
        for left in range(3, size - 8, 7):
            for stroke in rng.permutation(6)[:3]:
                if stroke < 3:
                    known[top : top + 9, left + 2 * stroke : left + 2 * stroke + 1] = False
                else:
                    known[top + 4 * (stroke - 3), left : left + 6] = False
    return known


def one(job: tuple[str, str, argparse.Namespace]) -> dict[str, Any]:
    name, way, given = job
    kind = given.kind
    clean, _ = frame(given.data, name, given.size, 0)
    options: dict[str, Any] = {"recipe": RECIPE_OF[kind]}
    options |= {"random_missing": 0.5} if kind == "scattered" else {"mask": text_mask(given.size)}
    skips = (given.channels,) if kind == "text" else None  # as many as channels, as in the recipe
    settings = Settings(preset="paper" if way == "paper" else "balanced", channels=(given.channels,), skips=skips, threads=1,
                        upsample=("bilinear",) if way == "bilinear" else None)
    plan = plan_restoration(from_array(clean)[0], "inpaint", options, settings)
    recipe = plan.recipe
    if way == "by the variance":
        old = RECIPES[options["recipe"]]
        recipe = replace(recipe, hold_out=0.0, learning_rate=old.learning_rate, iterations=old.iterations)
    if way == "best":
        recipe = replace(recipe, hold_out=0.0, iterations=given.iterations)
    missing = ~on_host(plan.problem.known)
    truth = clean[missing] / 255

    def psnr(image: np.ndarray) -> float:
        return float(-10 * np.log10(np.square(image[missing] - truth).mean()))

    stop = "fixed" if way == "best" else plan.stop
    run = FitRun(plan.problem, recipe, stop=stop, seed=0, placement=plan.placement, measure=psnr if way == "best" else None)
    run.advance(run.ceiling)
    outcome = run.outcome()
    found = {"picture": name, "way": way, "iterations": outcome.iterations, "stop_reason": outcome.stop_reason,
             "psnr": psnr(outcome.image), "seconds": outcome.seconds}
    if way == "best":
        found["iterations"], found["psnr"] = max(outcome.history.psnr, key=lambda point: point[1])
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def summary(cases: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    best = {case["picture"]: case["psnr"] for case in cases if case["way"] == "best"}
    found = {}
    for way in dict.fromkeys(case["way"] for case in cases):
        chosen = [case for case in cases if case["way"] == way]
        below = [best[case["picture"]] - case["psnr"] for case in chosen]
        found[way] = {
            "psnr_mean": float(np.mean([case["psnr"] for case in chosen])),
            "below_best_mean": float(np.mean(below)), "below_best_most": max(below),
            "iterations_mean": float(np.mean([case["iterations"] for case in chosen])),
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--pictures", type=lambda text: text.split(","), default=list(PICTURES))
    parser.add_argument("--kind", choices=list(RECIPE_OF), default="scattered")
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS))
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    jobs = [(name, way, given) for way in given.ways for name in given.pictures]
    with ProcessPoolExecutor(given.workers) as pool:
        cases = list(pool.map(one, jobs))
    report = {"kind": given.kind, "size": given.size, "channels": given.channels, "summary": summary(cases), "cases": cases}
    (RESULTS / f"inpainting_{given.kind}_{given.size}_{given.channels}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
