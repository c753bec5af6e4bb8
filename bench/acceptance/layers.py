"""Part "layers": what the GPU reaches, then every layer of the paper's network beside its floor and beside PyTorch's modules.

A layer is a convolution with the norm and leaky ReLU of one (dipengine/bench/operations.py). Its floor is the larger of its
operations over what mma.sync reaches in that precision, and its bytes over what the faster of two copies reaches, measured in
the same run. Operations are those of the form that the CUDA kernels take: 16 products for the 36 of a nearest source, all of
the plain convolution elsewhere. Bytes are every array of a direction once: what it reads and what it writes. Both sides are
captured as CUDA graphs, so that starting kernels does not count.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from acceptance import gpu
from acceptance.iterations import DEVICE
from acceptance.step import FAILED, MEASURED, Context, Step

SIZES = (1024, 256, 512)
WANTED = 0.5  # of their roofline, of the layers with 128 channels at 1024 x 1024
PHASES = 16 / 36  # of the products of a 3 x 3 convolution behind nearest upsampling


def ceilings(context: Context) -> dict[str, Any]:
    """Operations and bytes per second: by mma.sync and 16-byte accesses (ceilings.cu), and as PyTorch's libraries reach them."""
    result = subprocess.run([context.build / "tests/silicon/dipengine_ceilings"], capture_output=True, text=True)
    if result.returncode != 0:
        return {"status": FAILED, "reason": (result.stdout + result.stderr).strip()[:300]}
    found = json.loads(result.stdout)
    return {"status": MEASURED, **found, **library_ceilings(DEVICE), "clocks": gpu.clocks()}


def library_ceilings(device: str, side: int = 8192, elements: int = 1 << 30) -> dict[str, float]:
    """PyTorch's products of two side x side matrices in bf16 and tf32, and its copy of bf16 elements, per second."""
    import torch

    from acceptance import timing

    timing.prepare()
    found = {}
    for name, dtype in (("library_bf16", torch.bfloat16), ("library_tf32", torch.float32)):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        taken = timing.graph_seconds(lambda a=a, b=b: torch.matmul(a, b), device, least=0.1)
        found[name] = 2 * side**3 / min(taken["samples"])
    x = torch.ones(elements, device=device, dtype=torch.bfloat16)
    y = torch.empty_like(x)
    found["library_copy"] = 4 * elements / min(timing.graph_seconds(lambda: y.copy_(x), device, least=0.1)["samples"])
    return found


def operations(layer: Any) -> tuple[float, float]:
    """(forward, backward) operations in the form of the CUDA kernels."""
    forward = backward = 0.0
    for part in layer.parts:
        own = 2.0 * layer.kernel**2 * part.channels * layer.channels * layer.pixels
        own *= PHASES if part.upsample == "nearest" and layer.kernel == 3 else 1.0
        forward += own
        backward += (part.raw + 1) * own
    return forward, backward


def bytes_moved(layer: Any, element: int) -> tuple[float, float]:
    """(forward, backward): every array of a direction once. Weights and their gradients are float32, and so is the head's output."""
    inputs = element * sum(part.height * part.width * part.channels for part in layer.parts)
    wanted = element * sum(part.height * part.width * part.channels for part in layer.parts if part.raw)
    weights = 4 * layer.kernel**2 * sum(part.channels for part in layer.parts) * layer.channels
    output = layer.pixels * layer.channels * (element if layer.norm else 4)
    # Backward: the inputs, the gradient, the raw output that a norm's backward needs, weights; gradients of inputs and of weights.
    return inputs + weights + output, inputs + output * (2 if layer.norm else 1) + weights + wanted + weights


def floor(operations_: float, bytes_: float, rate: float, bandwidth: float) -> float:
    return max(operations_ / rate, bytes_ / bandwidth)


def measure(layer: Any, device: str, reached: dict[str, float], **how: Any) -> dict[str, Any]:
    """A layer's row: seconds forward and backward, floors, and PyTorch's seconds for both together."""
    import torch

    from acceptance import timing
    from dipengine.bench.native_layer import NativeLayer
    from layers import PyTorch

    with torch.device(device):
        native = NativeLayer(layer, torch.bfloat16)
        forward = timing.graph_seconds(native.forward, device, **how)
        backward = timing.graph_seconds(native.backward, device, **how)
    wide = layer.channels == 128 and any(part.channels == 128 for part in layer.parts)
    row: dict[str, Any] = {"layer": layer.name, "shape": layer.shape, "wide": wide}
    taken = {"forward": forward, "backward": backward}
    for i, direction in enumerate(("forward", "backward")):
        own, moved = operations(layer)[i], bytes_moved(layer, 2)[i]
        least = floor(own, moved, reached["mma_bf16"], max(reached["copy"], reached["library_copy"]))
        row[direction] = {"seconds": taken[direction], "operations": own, "bytes": moved, "floor": least,
                          "of_roofline": least / taken[direction]["median"]}
    row["of_roofline"] = sum(row[d]["floor"] for d in taken) / sum(t["median"] for t in taken.values())
    row["pytorch"] = {}
    for name, dtype, memory in (("tf32 contiguous", torch.float32, torch.contiguous_format),
                                ("bf16 channels_last", torch.bfloat16, torch.channels_last)):
        try:
            with torch.device(device):
                side = PyTorch(layer, dtype, memory, autocast=False)
                row["pytorch"][name] = timing.graph_seconds(lambda side=side: (side.forward(), side.backward()), device, **how)
        except torch.OutOfMemoryError:
            row["pytorch"][name] = None
        timing.free_memory(device)
    best = min((t["median"] for t in row["pytorch"].values() if t is not None), default=None)
    row["ratio"] = best / sum(t["median"] for t in taken.values()) if best is not None else None
    return row


def at(context: Context, size: int) -> dict[str, Any]:
    from acceptance import timing
    from dipengine.bench.operations import layers_of
    from dipengine.generators.architecture import Hourglass

    reached = context.result("layers", "ceilings")
    if reached is None or reached["status"] != MEASURED:
        return {"status": FAILED, "reason": "the device's ceilings are not known"}
    timing.prepare()
    rows = []
    for layer in layers_of(Hourglass.regular(upsample="nearest"), size, size):
        rows.append(measure(layer, DEVICE, reached, rounds=3))
        print(f"{layer.name}: {rows[-1]['of_roofline']:.0%} of its roofline", flush=True)
    return {"status": MEASURED, "rows": rows, "clocks": gpu.clocks()}


STEPS = [Step("ceilings", ceilings, 15, 90), *(Step(str(size), lambda context, size=size: at(context, size), 30, 240) for size in SIZES)]
