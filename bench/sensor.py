"""What it is worth to know a sensor's noise: one simulated frame, fitted blind, stabilised and by likelihood.

    python bench/sensor.py photons|camera|sources [--size 128] [--channels 32] [--iterations 800] [--seeds 1]

photons: a photograph at a peak of 20 photons (gain 1). camera: the same photograph through a camera (peak 20 electrons, gain
2 electrons per data unit, black level 100, read noise 1.6 electrons). sources: a field of stars and nebulae over a dark sky
through that camera (peak 200 electrons), for photometry. Frame n has the noise of seed n, and its fits the network, z and
perturbations of seed n; "summary" has mean, least and most over the frames; curves are kept of the first. "bright" compares the mean
of the restored bright sources with the clean one, "bright_to_data" with the measured one: in the photograph all that is
brighter than half the range, in the field apertures around the brightest sources, three times as wide as they are. The measured
mean has no bias but has photon noise. Writes bench/results/sensor_<case>.json and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dipengine.fitting.device import threads
from dipengine.fitting.fit import Fit
from dipengine.fitting.metrics import psnr
from dipengine.fitting.settings import Settings
from dipengine.fitting.stopping import RESIDUAL_INTERVAL, StopRule
from dipengine.images import Image
from dipengine.noise.sensor import Sensor
from dipengine.restoration import plan_restoration

RESULTS = Path(__file__).resolve().parent / "results"
INTERVAL = RESIDUAL_INTERVAL  # so that the residual is seen where a fit that stops by itself sees it
SENSORS = {
    "photons": (Sensor(1.0), 20.0),
    "camera": (Sensor(2.0, 100.0, 0.8), 20.0),
    "sources": (Sensor(2.0, 100.0, 0.8), 200.0),
}


def photograph(size: int) -> tuple[np.ndarray, np.ndarray]:
    """scikit-image's camera, a square reduced to size x size, float64 in [0, 1]; and where it is bright."""
    from skimage import data
    from skimage.transform import resize

    picture = data.camera()[64:448, 128:512].astype(float)
    picture = resize(picture, (size, size), anti_aliasing=True)
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    return picture, picture > 0.5


def sources(size: int) -> tuple[np.ndarray, np.ndarray]:
    """30 round sources of different width and brightness over a sky of 1 %, in [0, 1]; and apertures on the brightest."""
    rng = np.random.default_rng(11)
    y, x = np.mgrid[:size, :size]
    field, apertures = np.full((size, size), 0.01), np.zeros((size, size), bool)
    for _ in range(30):
        top, left = rng.uniform(8, size - 8, 2)
        width, peak = rng.uniform(1.5, 5), 10 ** rng.uniform(-1.5, 0)
        square = (y - top) ** 2 + (x - left) ** 2
        field += peak * np.exp(-square / (2 * width**2))
        if peak > 0.3:
            apertures |= square < (3 * width) ** 2
    return field / field.max(), apertures


def simulate(case: str, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Sensor]:
    """Clean and measured frame, float32 [H, W, 1] in data units, where it is bright (bool), and the sensor."""
    sensor, peak = SENSORS[case]
    rng = np.random.default_rng(seed)
    scene, bright = (sources if case == "sources" else photograph)(size)
    electrons = scene[:, :, None] * peak
    measured = rng.poisson(electrons) + sensor.read_electrons * rng.standard_normal(electrons.shape)
    return sensor.data(electrons).astype(np.float32), sensor.data(measured).astype(np.float32), bright[:, :, None], sensor


def fit(
    clean: np.ndarray, noisy: np.ndarray, bright: np.ndarray, sensor: Sensor, options: dict[str, Any], settings: Settings
) -> dict[str, Any]:
    """The run's curves (every 5 iterations), its best point, and the point where knowing the noise stops it."""
    plan = plan_restoration(Image(noisy), "denoise", options, settings)
    one = Fit(plan.problem, plan.recipe, settings.seed, plan.placement)
    rule = StopRule.for_recipe(plan.recipe)
    span = float(clean.max() - clean.min())
    light = clean - sensor.offset
    points: list[dict[str, Any]] = []
    best, image = -np.inf, noisy
    at_noise = delivered = None
    last = 0  # iteration whose average is delivered: the look-back after the residual came down to the noise's
    with threads(plan.placement, torch_is_idle=one.torch_is_idle):
        for iteration in range(1, plan.recipe.iterations + 1):
            one.step()
            if iteration % INTERVAL and iteration != last:
                continue
            now = plan.values.from_unit(one.average(), np.float64)
            point = {
                "iteration": iteration,
                "psnr": psnr(now, clean, span),
                "bright": float((now - sensor.offset)[bright].mean() / light[bright].mean() - 1),
                "bright_to_data": float((now - sensor.offset)[bright].mean() / (noisy - sensor.offset)[bright].mean() - 1),
                "discrepancy": one.discrepancy(),
            }
            if iteration == last:
                delivered = point
            if iteration % INTERVAL:
                continue
            points.append(point)
            if at_noise is None and point["discrepancy"] is not None and point["discrepancy"] <= 1:
                at_noise, last = point, iteration + rule.lag
            if point["psnr"] > best:
                best, image = point["psnr"], now
    top = max(points, key=lambda p: p["psnr"])
    return {"best": top, "at_noise": at_noise, "delivered": delivered, "curve": points, "image": image}


def run(case: str, size: int, seed: int, settings: Settings) -> dict[str, Any]:
    settings = replace(settings, seed=seed)
    clean, noisy, bright, sensor = simulate(case, size, seed)
    known = {"noise": "poisson-gaussian" if sensor.read_noise else "poisson", "gain": sensor.gain, "offset": sensor.offset}
    if sensor.read_noise:
        known["read_noise"] = sensor.read_noise
    light = clean - sensor.offset
    fits = {
        "blind": fit(clean, noisy, bright, sensor, {"noise": "unknown"}, settings),
        "stabilised": fit(clean, noisy, bright, sensor, {**known, "data_term": "stabilised"}, settings),
        "likelihood": fit(clean, noisy, bright, sensor, {**known, "data_term": "likelihood"}, settings),
    }
    return {
        "seed": seed,
        "psnr_noisy": psnr(noisy, clean, float(clean.max() - clean.min())),
        "bright_of_data": float((noisy - sensor.offset)[bright].mean() / light[bright].mean() - 1),
        "bright_pixels": int(bright.sum()),
        "gain_over_blind": {name: one["best"]["psnr"] - fits["blind"]["best"]["psnr"] for name, one in fits.items()},
        "fits": fits,
        "clean": clean,
        "noisy": noisy,
    }


def summary(frames: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, least and most over the frames of what each fit reaches and delivers (nothing delivered where none came down to
    its noise), light in fractions.
    """
    def spread(values: list[float]) -> dict[str, Any]:
        return {"mean": float(np.mean(values)), "least": min(values), "most": max(values), "frames": len(values)}

    table: dict[str, Any] = {}
    for name in frames[0]["fits"]:
        fits = [frame["fits"][name] for frame in frames]
        done = [one for one in fits if one["delivered"] is not None]
        table[name] = {
            "best": spread([one["best"]["psnr"] for one in fits]),
            "best_light": spread([one["best"]["bright"] for one in fits]),
            "gain_over_blind": spread([frame["gain_over_blind"][name] for frame in frames]),
        }
        if done:
            table[name] |= {
                "delivered": spread([one["delivered"]["psnr"] for one in done]),
                "delivered_light": spread([one["delivered"]["bright"] for one in done]),
                "below_best": spread([one["best"]["psnr"] - one["delivered"]["psnr"] for one in done]),
            }
    return table


def picture(case: str, report: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(10, 6.5))
    clean = report["clean"][:, :, 0]
    low, high = clean.min(), clean.max()
    shown = {"clean": clean, "measured": report["noisy"][:, :, 0]}
    shown |= {f"{name} {f['best']['psnr']:.2f} dB": f["image"][:, :, 0] for name, f in report["fits"].items()}
    for axis, (title, image) in zip(axes.flat, shown.items()):
        # A root shows the dark end, where photon noise is judged.
        axis.imshow(np.sqrt(np.clip((image - low) / (high - low), 0, 1)), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    last = axes.flat[5]
    for name, one in report["fits"].items():
        last.plot([p["iteration"] for p in one["curve"]], [p["psnr"] for p in one["curve"]], label=name)
    last.set(xlabel="iteration", ylabel="PSNR (dB)")
    last.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / f"sensor_{case}.png", dpi=80)


def without_images(report: dict[str, Any]) -> dict[str, Any]:
    return {
        key: without_images(value) if isinstance(value, dict) else value
        for key, value in report.items() if not isinstance(value, np.ndarray)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=tuple(SENSORS))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=1, help="frames, each with a noise and a fit of its own")
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args()
    settings = Settings(channels=(parsed.channels,), iterations=parsed.iterations, threads=parsed.threads)
    frames = [run(parsed.case, parsed.size, seed, settings) for seed in range(parsed.seeds)]
    RESULTS.mkdir(exist_ok=True)
    picture(parsed.case, frames[0])
    sensor, peak = SENSORS[parsed.case]
    report = {
        "case": parsed.case, "size": parsed.size, "channels": parsed.channels, "iterations": parsed.iterations,
        "peak_electrons": peak, "sensor": sensor.to_dict(), "summary": summary(frames),
        "frames": [without_images(frame) for frame in frames],
    }
    for frame in report["frames"][1:]:
        for one in frame["fits"].values():
            del one["curve"]  # the first frame's are enough to look at
    (RESULTS / f"sensor_{parsed.case}.json").write_text(json.dumps(report, indent=1) + "\n")
    for frame in report["frames"]:
        for name, one in frame["fits"].items():
            print(name, {k: one[k] for k in ("best", "at_noise", "delivered")})
        print({k: v for k, v in frame.items() if k != "fits"})
    print(json.dumps(report["summary"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
