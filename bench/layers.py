"""Every layer of the paper's network: native kernels against PyTorch's own, forward and backward, in one run.

    python bench/layers.py [--size 256] [--upsample nearest|bilinear] [--dtype bf16|fp32] [--json FILE]

A layer is a convolution with the norm and the leaky ReLU of one convolution, and whatever stands between. PyTorch's is
its modules in a row, [upsample, concatenate, BatchNorm,] reflection pad, convolution, BatchNorm, LeakyReLU, and autograd
backwards to the data, weight, gamma and beta. Ours folds the same: its source's norm and slope into the load, its own
statistics into the store, the norm's backward into both. Weights lie ready in each side's own layout and precision.
PyTorch runs in several configurations, of which the best at each layer counts.

Both sides have the same number of threads and take turns. PyTorch's workers spin for a while after each operation, which
would take a core from ours (and ours from theirs), so each turn begins with a pause of 20 ms, in which they fall asleep,
and an untimed call, which fetches the data and wakes the side's own workers. Medians over the rounds.

The floor is operations over what PyTorch reaches in a 2048^3 matrix product in the same run and precision: `floor` with
the fewest products known for the layer (9 of 36 behind an upsampling; 16 of 36 forward and to the data of a 3x3
convolution of stride 1, all 36 to its weights), `direct` with every product of the plain convolution. The product is
timed before and after: where the two differ by much, the machine was not idle and the table says so ("idle" in the JSON).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dipengine.bench.machine import ceiling, cpu_name, idle
from dipengine.bench.native_layer import NativeLayer
from dipengine.bench.operations import Layer, layers_of
from dipengine.bench.turns import PAUSE
from dipengine.generators.architecture import NORM_EPSILON, Hourglass
from dipengine.kernels import backend, pool

TARGET = 2.5  # for one decoder block, forward and backward


class PyTorch:
    """The same layer on PyTorch's modules, in one configuration: memory format, and bfloat16 tensors or autocast; on PyTorch's
    default device."""

    def __init__(self, layer: Layer, dtype: torch.dtype, memory: torch.memory_format, autocast: bool) -> None:
        self.layer, self.autocast = layer, autocast
        self.device = torch.get_default_device().type
        self.parts = [
            torch.randn(1, part.channels, part.height, part.width).to(dtype).contiguous(memory_format=memory)
            .requires_grad_(part.raw)
            for part in layer.parts
        ]
        inputs = sum(part.channels for part in layer.parts)
        weight = torch.randn(layer.channels, inputs, layer.kernel, layer.kernel) / (layer.kernel * inputs**0.5)
        self.weight = weight.to(torch.float32 if autocast else dtype).contiguous(memory_format=memory).requires_grad_()
        # Norms keep float32 parameters beside bfloat16 images, as PyTorch does under autocast.
        self.merge = [(torch.ones(inputs) * (1 - k)).requires_grad_() for k in (0, 1)] if len(self.parts) > 1 else None
        self.norm = [(torch.ones(layer.channels) * (1 - k)).requires_grad_() for k in (0, 1)] if layer.norm else None
        self.leaves = [leaf for leaf in (*self.parts, self.weight, *(self.merge or ()), *(self.norm or ())) if leaf.requires_grad]
        self.gradient = None
        self.memory = memory

    def forward(self) -> None:
        with torch.autocast(self.device, torch.bfloat16) if self.autocast else contextlib.nullcontext():
            parts = [
                x if part.upsample == "none" else
                F.interpolate(x, scale_factor=2, mode=part.upsample, align_corners=False if part.upsample == "bilinear" else None)
                for part, x in zip(self.layer.parts, self.parts)
            ]
            y = parts[0]
            if self.merge:
                y = F.batch_norm(torch.cat(parts, 1), None, None, *self.merge, training=True, eps=NORM_EPSILON)
            pad = self.layer.kernel // 2
            if pad:
                with torch.autocast(self.device, enabled=False):  # else the copy is widened to float32
                    y = F.pad(y, (pad,) * 4, mode="reflect")
            y = F.conv2d(y, self.weight, stride=self.layer.stride)
            if self.norm:
                y = F.leaky_relu(F.batch_norm(y, None, None, *self.norm, training=True, eps=NORM_EPSILON), 0.2, inplace=True)
        self.y = y
        if self.gradient is None:
            self.gradient = torch.randn(y.shape, device=y.device).to(y.dtype).contiguous(memory_format=self.memory)

    def backward(self) -> None:
        torch.autograd.grad(self.y, self.leaves, self.gradient)


def configurations(dtype: torch.dtype) -> dict[str, tuple[torch.memory_format, bool]]:
    formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    found = {name: (memory, False) for name, memory in formats.items()}
    return found | ({"channels_last, autocast": (torch.channels_last, True)} if dtype == torch.bfloat16 else {})


def milliseconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def take_turn(side: Any) -> tuple[float, float]:
    """(forward, backward) in milliseconds, after a pause and an untimed call."""
    time.sleep(PAUSE)
    side.forward()
    side.backward()
    pairs = [(milliseconds(side.forward), milliseconds(side.backward)) for _ in range(2)]
    return min(a for a, _ in pairs), min(b for _, b in pairs)


def measure(layer: Layer, dtype: torch.dtype, rounds: int, rate: float) -> dict[str, Any]:
    sides: dict[str, Any] = {"ours": NativeLayer(layer, dtype)}
    sides |= {name: PyTorch(layer, dtype, memory, autocast) for name, (memory, autocast) in configurations(dtype).items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(take_turn(side))
    medians = {name: [statistics.median(column) for column in zip(*pairs)] for name, pairs in times.items()}
    ours = medians.pop("ours")
    best = min(medians, key=lambda name: sum(medians[name]))
    row: dict[str, Any] = {"layer": layer.name, "shape": layer.shape, "pytorch_configuration": best}
    for i, direction in enumerate(("forward", "backward")):
        row[direction] = {
            "ours_ms": ours[i], "pytorch_ms": medians[best][i], "ratio": medians[best][i] / ours[i],
            "floor_ms": 1000 * layer.operations(True)[i] / rate, "direct_floor_ms": 1000 * layer.operations(False)[i] / rate,
        }
    row["both"] = both(row["forward"], row["backward"])
    return row


def both(*rows: dict[str, float]) -> dict[str, float]:
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key != "ratio"}
    return total | {"ratio": total["pytorch_ms"] / total["ours_ms"]}


def line(name: str, shape: str, *cells: dict[str, float]) -> str:
    text = f"{name:<14}{shape:<29}"
    for cell in cells:
        text += f"{cell['ours_ms']:>9.2f}{cell['pytorch_ms']:>9.2f}{cell['ratio']:>7.2f}{cell['floor_ms']:>8.2f}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="side of the image, a multiple of 32 of at least 64")
    parser.add_argument("--upsample", choices=("nearest", "bilinear"), default="nearest")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="layers whose names contain this")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    architecture = Hourglass.regular(upsample=arguments.upsample)
    if (arguments.size, arguments.size) != architecture.canvas(arguments.size, arguments.size):
        parser.error(f"--size {arguments.size} is no multiple of 32 of at least 64")
    backend.resolve("native")
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    pool.set_threads(arguments.threads)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[arguments.dtype]

    rate = ceiling(arguments.dtype, arguments.threads)
    print(f"{arguments.dtype}, {arguments.upsample}, {arguments.size}x{arguments.size}, {arguments.threads} threads, "
          f"{backend.instruction_set()}; PyTorch {torch.__version__}: {rate / 1e9:.0f} GFLOP/s in a matrix product. Milliseconds.")
    print(f"{'':<43}{'forward':^33}{'backward':^33}{'both':^33}")
    print(f"{'layer':<14}{'shape':<29}" + f"{'ours':>9}{'PyTorch':>9}{'ratio':>7}{'floor':>8}" * 3)
    rows = []
    for layer in layers_of(architecture, arguments.size, arguments.size):
        if arguments.only in layer.name:
            rows.append(measure(layer, dtype, arguments.rounds, rate))
            print(line(layer.name, layer.shape, *(rows[-1][key] for key in ("forward", "backward", "both"))), flush=True)
    again = ceiling(arguments.dtype, arguments.threads)
    was_idle = idle(rate, again)
    if not was_idle:
        print(f"Afterwards {again / 1e9:.0f} GFLOP/s: the machine was not idle; measure again.")
    total = {key: both(*(row[key] for row in rows)) for key in ("forward", "backward", "both")}
    print(line("all", "", *total.values()))
    report = {
        "format": 1, "size": arguments.size, "upsample": arguments.upsample, "dtype": arguments.dtype,
        "threads": arguments.threads, "rounds": arguments.rounds, "machine": platform.machine(), "cpu": cpu_name(),
        "instruction_set": backend.instruction_set(), "torch": torch.__version__, "python": platform.python_version(),
        "matrix_product_gflops": rate / 1e9, "matrix_product_gflops_afterwards": again / 1e9, "idle": was_idle,
        "layers": rows, "all": total,
    }
    block = next((row["both"] for row in rows if row["layer"] == "level0.up"), None)
    if block:
        report["decoder_block"] = block | {"target_ratio": TARGET, "met": block["ratio"] >= TARGET}
        print(f"one decoder block (level0.up), forward + backward: {block['ours_ms']:.1f} ms against {block['pytorch_ms']:.1f} ms, "
              f"{block['ratio']:.2f}x (target {TARGET}x)")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
