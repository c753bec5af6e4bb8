"""Restore images with published results and lay the curves beside them.

    python bench/published.py hill --data FOLDER
    python bench/published.py butterfly --data FOLDER
    python bench/published.py house --data FOLDER --authors CLONE

FOLDER holds denoise25/, sr4/, inpaint50/ (undamaged, damaged and published images); CLONE is the authors' repository.
Each case writes bench/results/published_<case>.json and a plot of its curves.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import dipengine
from dipengine.fitting.metrics import psnr
from dipengine.fitting.progress import ProgressBar
from dipengine.images import read_image

RESULTS = Path(__file__).resolve().parent / "results"


def load(path: Path) -> np.ndarray:
    """uint8 [H, W, C]; a published result saved with an opaque alpha loses it."""
    return read_image(path).pixels


def luma(pixels: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 luma, float64 [H, W, 1], from uint8 RGB."""
    weights = np.array([65.481, 128.553, 24.966]) / 255
    return (pixels.astype(np.float64) @ weights)[:, :, None] + 16


def luma_psnr(image: np.ndarray, truth: np.ndarray, border: int) -> float:
    """PSNR of the luma, `border` pixels left off on each side (the habit of the super-resolution literature)."""
    inner = slice(border, -border or None)
    return psnr(luma(image)[inner, inner], luma(truth)[inner, inner], 255)


def curve(result: dipengine.Result) -> dict[str, Any]:
    history = result.history
    return {"psnr": history.psnr, "loss": history.loss[::10], "variance": history.variance[::10]}


def hill(data: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Denoising, sigma 25: the default preset, nothing told of the noise, stopped by itself."""
    folder = data / "denoise25"
    noisy, truth = load(folder / "hill_noisy.png"), load(folder / "hill_GT.png")
    with ProgressBar(options.get("iterations") or 1800, "hill") as bar:
        result = dipengine.denoise(noisy, truth=truth, progress=bar, **options)
    peak_iteration, peak = max(result.history.psnr, key=lambda point: point[1])
    return {
        "record": result.record,
        "curve": curve(result),
        "peak_psnr": peak,
        "peak_iteration": peak_iteration,
        "delivered_psnr": result.record["psnr"],
        "published_psnr": {
            "deep image prior": psnr(load(folder / "hill_deep_prior.png"), truth, 255),
            "bm3d": psnr(load(folder / "hill_bm3d.png"), truth, 255),
        },
    }


def butterfly(data: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Super-resolution x4 by the paper's recipe. The small image is a bicubic reduction, as the published inputs were."""
    from PIL import Image

    folder = data / "sr4"
    truth = load(folder / "butterfly_GT.png")
    small = Image.fromarray(truth)
    small = np.asarray(small.resize((small.width // 4, small.height // 4), Image.Resampling.BICUBIC))
    with ProgressBar(2000, "butterfly") as bar:
        result = dipengine.super_resolve(small, 4, truth=truth, progress=bar, **{"preset": "paper", **options})
    others = {name: load(folder / f"butterfly_{name}.png") for name in ("deep_prior", "bicubic")}
    return {
        "record": result.record,
        "curve": curve(result),
        "luma_psnr": {str(border): luma_psnr(result.image, truth, border) for border in (0, 4)},
        "published_luma_psnr": {
            name: {str(border): luma_psnr(image, truth, border) for border in (0, 4)} for name, image in others.items()
        },
    }


def house(data: Path, options: dict[str, Any], authors: Path) -> dict[str, Any]:
    """Half of the pixels missing, the paper's recipe: our first iterations and those of the authors' own network.

    Both run at the same time, each in its own process with the same number of threads, on the same data and precision;
    each has its own random start, as in use.
    """
    folder = data / "inpaint50"
    truth, masked = load(folder / "house_GT.png"), load(folder / "house_masked.png")
    known = masked[:, :, 0] > 0
    iterations = options.pop("iterations", None) or 1500
    threads = options.get("threads") or 1
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor, ProgressBar(iterations, "house") as bar:
        peer = executor.submit(authors_curve, authors, masked, known, truth, options["precision"], iterations, threads)
        result = dipengine.inpaint(
            masked, known, truth=truth, progress=bar, iterations=iterations, preset="paper", known="fit",
            **{**options, "threads": threads},
        )
        peer_curve, peer_seconds = peer.result()
    return {
        "record": result.record,
        "curve": curve(result),
        "authors_curve": peer_curve,
        "seconds_per_iteration": {"dipengine": result.record["seconds_per_iteration"], "authors": peer_seconds},
        "last_psnr": {"dipengine": result.history.psnr[-1][1], "authors": peer_curve[-1][1]},
        "published_psnr_after_11000": psnr(load(folder / "house_deep_prior.png"), truth, 255),
    }


def authors_curve(
    clone: Path, masked: np.ndarray, known: np.ndarray, truth: np.ndarray, precision: str, iterations: int, threads: int
) -> tuple[list[tuple[int, float]], float]:
    """PSNR of the authors' outputs every ten iterations, and their seconds an iteration."""
    import torch

    torch.set_num_threads(threads)
    peer = AuthorsInpainting(clone, masked, known, precision)
    points = []
    start = time.perf_counter()
    for iteration in range(1, iterations + 1):
        output = peer.step()
        if iteration % 10 == 0 or iteration == 1:
            points.append((iteration, psnr(output, truth / 255.0, 1.0)))
    return points, (time.perf_counter() - start) / iterations


class AuthorsInpainting:
    """The authors' network and loop (restoration notebook) without their prints, plots and PSNRs within the loop."""

    def __init__(self, clone: Path, masked: np.ndarray, known: np.ndarray, precision: str) -> None:
        import torch

        sys.path.insert(0, str(clone))
        from models.skip import skip

        torch.manual_seed(0)
        self.torch = torch
        self.bf16 = precision != "fp32"
        self.network = skip(
            32, 1, [128] * 5, [128] * 5, [4] * 5, upsample_mode="bilinear", pad="reflection", act_fun="LeakyReLU"
        ).to(memory_format=torch.channels_last)
        self.z = (0.1 * torch.rand(1, 32, *known.shape)).to(memory_format=torch.channels_last)
        self.mask = torch.from_numpy(known.astype(np.float32))[None, None]
        self.target = torch.from_numpy(masked[:, :, 0].astype(np.float32) / 255)[None, None]
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.001)

    def step(self) -> np.ndarray:
        """One iteration; returns the output, float [H, W, 1]."""
        torch = self.torch
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            output = self.network(self.z + 0.03 * torch.randn_like(self.z))
        loss = torch.nn.functional.mse_loss(output.float() * self.mask, self.target * self.mask)
        loss.backward()
        self.optimizer.step()
        return output.detach().float()[0, 0, :, :, None].numpy()


def plot(case: str, report: dict[str, Any]) -> None:
    """PSNR over iterations, with the published figure as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(*zip(*report["curve"]["psnr"]), label="dipengine")
    if "authors_curve" in report:
        axes.plot(*zip(*report["authors_curve"]), label="authors' network")
    delivered = report["record"]["delivered_iteration"]
    axes.axvline(delivered, color="grey", linestyle=":", label=f"delivered ({delivered})")
    axes.set(xlabel="iteration", ylabel="PSNR (dB)", title=case)
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / f"published_{case}.png", dpi=100)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("hill", "butterfly", "house"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int)
    parsed = parser.parse_args()
    options = {"iterations": parsed.iterations, "precision": parsed.precision, "threads": parsed.threads}
    if parsed.case == "house":
        if parsed.authors is None:
            parser.error("house compares with the authors' network: --authors CLONE")
        report = house(parsed.data, options, parsed.authors)
    else:
        report = {"hill": hill, "butterfly": butterfly}[parsed.case](parsed.data, options)
    report["machine"] = f"{platform.machine()}, {report['record']['instruction_set']}, {report['record']['threads']} threads"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"published_{parsed.case}.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(parsed.case, report)
    print(json.dumps({key: value for key, value in report.items() if "curve" not in key and key != "record"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
