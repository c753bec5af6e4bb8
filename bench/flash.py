"""Flash / no-flash on a pair of photographs, to be looked at: there is no truth.

    python bench/flash.py FLASH NOFLASH [--size 192] [--preset fast] [--channels 64] [--iterations 600] [--seeds 1]

The pair is reduced so that its shorter side is `--size` pixels. Writes bench/results/flash.json and flash.png: both
pictures and one result a seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import dipengine
from dipengine.images import read_image

RESULTS = Path(__file__).resolve().parent / "results"


def reduced(path: Path, size: int) -> np.ndarray:
    """uint8 [H, W, 3]; the shorter side is `size` pixels."""
    from skimage.transform import resize

    pixels = read_image(path).pixels
    scale = size / min(pixels.shape[:2])
    shape = tuple(round(side * scale) for side in pixels.shape[:2])
    return np.rint(resize(pixels / 255.0, shape, anti_aliasing=True) * 255).astype(np.uint8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flash", type=Path)
    parser.add_argument("noflash", type=Path)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--channels", type=int)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--stop", choices=("auto", "fixed"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="flash", help="of the files in bench/results")
    parsed = parser.parse_args()
    guide, dark = reduced(parsed.flash, parsed.size), reduced(parsed.noflash, parsed.size)
    panels, records = {"flash": guide, "no flash": dark}, []
    for seed in range(parsed.seeds):
        result = dipengine.flash(
            dark, guide, preset=parsed.preset, channels=parsed.channels, iterations=parsed.iterations, stop=parsed.stop,
            seed=seed, threads=parsed.threads,
        )
        records.append({**result.record, "losses": result.history.loss[::10]})
        at, reason = result.record["delivered_iteration"], result.record["stop_reason"]
        panels[f"seed {seed}: iteration {at} ({reason})"] = result.image
        print(seed, at, reason, result.record["iterations"], result.record["rollbacks"], result.record["loss"], flush=True)

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4.2))
    for axis, (title, image) in zip(axes, panels.items()):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{parsed.name}.png", dpi=100)
    (RESULTS / f"{parsed.name}.json").write_text(json.dumps(records, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
