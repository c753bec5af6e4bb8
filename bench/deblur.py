"""Deblurring beside Richardson-Lucy and Wiener (scikit-image), each at its best parameter, in the same run.

    python bench/deblur.py motion|disc|gauss [--size 128] [--channels 64] [--iterations 3000] [--perturbation X] [--sigma 2]

A photograph larger than the frame is blurred, cut to the frame, and given Gaussian noise (sigma of 255). The peers get the
frame as it is and extended by reflection (whichever serves them better), and the parameter that is best against the truth;
so does the deep image prior (best point of the run), beside what it delivers unaided. Writes bench/results/deblur_<case>.*
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import dipengine
from dipengine.fitting.metrics import psnr
from dipengine.tasks import deblur

RESULTS = Path(__file__).resolve().parent / "results"
ROOM = 16  # of the scene beyond the frame


def kernel_of(case: str) -> np.ndarray:
    """motion: a line of 11 pixels at 30 degrees; disc: out of focus, radius 3.5; gauss: deviation 1.6. Sum 1."""
    y, x = np.mgrid[-7:8:0.1, -7:8:0.1]  # 10 x 10 points a pixel
    if case == "motion":
        along, across = x * np.cos(np.pi / 6) - y * np.sin(np.pi / 6), x * np.sin(np.pi / 6) + y * np.cos(np.pi / 6)
        fine = (np.abs(along) <= 5.5) & (np.abs(across) <= 0.5)
    elif case == "disc":
        fine = np.hypot(x, y) <= 3.5
    else:
        fine = np.exp(-(x**2 + y**2) / (2 * 1.6**2))
    kernel = fine.astype(float).reshape(15, 10, 15, 10).mean(axis=(1, 3))
    return kernel / kernel.sum()


def pair(case: str, size: int, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth and blurred frame, uint8 [size, size, 3], and the kernel."""
    from scipy.signal import convolve
    from skimage import data

    kernel = kernel_of(case)
    scene = data.astronaut()[0 : size + 2 * ROOM, 150 : 150 + size + 2 * ROOM].astype(float)
    blurred = np.stack([convolve(plane, kernel, mode="same") for plane in np.moveaxis(scene, 2, 0)], axis=2)
    inner = slice(ROOM, ROOM + size)
    noise = np.random.default_rng(0).normal(0, sigma, (size, size, 3))
    frame = np.clip(np.rint(blurred[inner, inner] + noise), 0, 255).astype(np.uint8)
    return scene[inner, inner].astype(np.uint8), frame, kernel


def peers(frame: np.ndarray, truth: np.ndarray, kernel: np.ndarray) -> dict[str, Any]:
    """Best PSNR of each peer with the parameter that gave it, and its image."""
    from skimage import restoration

    def per_plane(method, image):
        return np.stack([method(image[:, :, c]) for c in range(3)], axis=2)

    def methods():
        for iterations in (2, 5, 10, 15, 20, 30, 40, 60, 80, 120, 160, 240):
            yield "richardson-lucy", iterations, lambda p: restoration.richardson_lucy(p, kernel, num_iter=iterations)
        for balance in np.logspace(-4, 0, 17):
            yield "wiener", float(balance), lambda p: restoration.wiener(p, kernel, balance)

    found: dict[str, Any] = {}
    for pad in (0, 24):
        padded = np.pad(frame / 255.0, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        for name, parameter, method in methods():
            image = per_plane(method, padded)[pad : pad + frame.shape[0], pad : pad + frame.shape[1]]
            image = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
            value = psnr(image, truth, 255)
            if name not in found or value > found[name]["psnr"]:
                found[name] = {"psnr": value, "parameter": parameter, "reflected_border": pad, "image": image}
    return found


def picture(case: str, panels: dict[str, np.ndarray]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.3))
    for axis, (title, image) in zip(axes, panels.items()):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(RESULTS / f"deblur_{case}.png", dpi=80)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("motion", "disc", "gauss"))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--perturbation", type=float, help="another than the recipe's")
    parser.add_argument("--sigma", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stop", choices=("auto", "fixed"), default="fixed")
    parser.add_argument("--told", action="store_true", help="tell the fit the noise's sigma")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    parsed = parser.parse_args()
    truth, frame, kernel = pair(parsed.case, parsed.size, parsed.sigma)
    if parsed.perturbation is not None:
        deblur.RECIPE = replace(deblur.RECIPE, perturbation=parsed.perturbation)
    result = dipengine.deblur(
        frame, kernel, truth=truth, channels=parsed.channels, iterations=parsed.iterations, stop=parsed.stop,
        threads=parsed.threads, sigma=parsed.sigma if parsed.told else None,
    )
    others = peers(frame, truth, kernel)
    iteration, best = max(result.history.psnr, key=lambda point: point[1])
    report = {
        "case": parsed.case, "size": parsed.size, "sigma": parsed.sigma, "psnr_blurred": psnr(frame, truth, 255),
        "best": {"iteration": iteration, "psnr": best}, "delivered_psnr": result.record["psnr"],
        "peers": {name: {k: v for k, v in one.items() if k != "image"} for name, one in others.items()},
        "record": result.record, "curve": result.history.psnr,
    }
    print(json.dumps({k: v for k, v in report.items() if k not in ("record", "curve")}))
    print([round(value, 2) for at, value in result.history.psnr if at % 100 == 0])
    if parsed.dry:
        return 0
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"deblur_{parsed.case}.json").write_text(json.dumps(report, indent=1) + "\n")
    picture(parsed.case, {
        "truth": truth, f"blurred {report['psnr_blurred']:.2f} dB": frame,
        f"deep image prior {result.record['psnr']:.2f} dB": result.image,
        **{f"{name} {one['psnr']:.2f} dB": one["image"] for name, one in others.items()},
    })
    return 0


if __name__ == "__main__":
    sys.exit(main())
