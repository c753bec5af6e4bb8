"""Compare the engine's hourglass with the authors' own network: same weights, same output, same gradients.

    git clone https://github.com/DmitryUlyanov/deep-image-prior authors
    python bench/authors_parity.py --repo authors

For each row of the recipe table their network is built by their code, its weights are carried over by the documented
map of names, and output and every gradient of a masked MSE are compared in float64. Exit status 1 above 1e-9.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from generator_parity import RECIPES, compare, narrowed, randomise  # noqa: E402

from dipengine.generators.architecture import Hourglass  # noqa: E402

LIMIT = 1e-9


def load_builder(repository: Path) -> Any:
    """Their `skip` function. Importing it adds an `add` method to torch.nn.Module, on which their code relies."""
    if not (repository / "models" / "skip.py").is_file():
        raise SystemExit(f"{repository} holds no models/skip.py; give the authors' repository with --repo.")
    sys.path.insert(0, str(repository))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module("models.skip").skip
    finally:
        sys.path.remove(str(repository))


def build(skip: Any, a: Hourglass) -> nn.Module:
    """Their network for an architecture, sigmoid included."""
    with contextlib.redirect_stdout(io.StringIO()):
        return skip(
            a.input_depth,
            a.output_channels,
            num_channels_down=list(a.channels_down),
            num_channels_up=list(a.channels_up),
            num_channels_skip=list(a.channels_skip),
            filter_size_down=list(a.kernel_down),
            filter_size_up=list(a.kernel_up),
            upsample_mode=list(a.upsample),
            downsample_mode="avg" if a.downsample == "average" else "stride",
            need1x1_up=a.one_by_one_up,
            need_sigmoid=True,
            need_bias=True,
            pad=a.padding,
            act_fun="LeakyReLU",
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repo", type=Path, required=True, help="the authors' repository, unpacked")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--channels", type=int, default=128, help="hold every channel count to this (default: as is)")
    arguments = parser.parse_args()

    skip = load_builder(arguments.repo.resolve())
    rows: list[dict[str, Any]] = []
    print(f"{'recipe':<14}{'size':>9}{'parameters':>12}{'output':>10}{'gradient':>10}  {'worst gradient'}")
    for seed, (name, recipe) in enumerate(RECIPES.items()):
        architecture = narrowed(recipe, arguments.channels)
        peer = build(skip, architecture)
        randomise(peer, seed)
        height, width = architecture.canvas(1, architecture.smallest_canvas + 1)
        parity = compare(architecture, peer, height=height, width=width, sigmoid=True, seed=seed)
        good = max(parity.output, parity.live, parity.dead) <= LIMIT and parity.ours_dead_have_none
        count = architecture.parameter_count
        size = {"height": height, "width": width, "parameters": count}
        rows.append({"recipe": name, "good": good} | size | asdict(parity))
        figures = f"{count:>12}{parity.output:>10.1e}{parity.live:>10.1e}"
        print(f"{name:<14}{f'{height}x{width}':>9}{figures}  {parity.worst}")
    good = all(row["good"] for row in rows)
    print(f"every difference at most {LIMIT:g}, relative: {'yes' if good else 'NO'}")
    if arguments.json:
        report = {"format": 1, "torch": torch.__version__, "limit": LIMIT, "good": good, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
