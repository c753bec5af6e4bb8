"""The machine that a measurement ran on: what it is, what it reaches in a matrix product, and whether it was idle."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dipengine._version import __version__
from dipengine.environment import available_cores
from dipengine.kernels import backend

PRODUCT = 2048  # side of the matrices
REPEATS = 5
_VARIABLES = ("DIPENGINE_ISA", "DIPENGINE_KERNELS", "DIPENGINE_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA",
              "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_NUMPY_PRODUCT = """
import time, numpy
a = numpy.random.default_rng(0).random(({n}, {n}), numpy.float32)
b = a.copy()
def seconds():
    start = time.perf_counter()
    a @ b
    return time.perf_counter() - start
seconds()
print(min(seconds() for _ in range({repeats})))
"""


def torch_installed() -> bool:
    return find_spec("torch") is not None


def ceiling(precision: str, threads: int) -> float | None:
    """Floating-point operations per second in a product of two 2048 x 2048 matrices: the best of several.

    precision: "bf16" or "fp32"; for bf16 the faster of both, since a product of bf16 numbers may also be taken in float32
    (Intel's AVX-512 cores do that at twice the rate). By PyTorch; without it by NumPy, which has no bf16 product: None then.
    """
    if torch_installed():
        seconds = min(_torch_product(name, threads) for name in {precision, "fp32"})
    elif precision == "fp32":
        seconds = _numpy_product(threads)
    else:
        return None
    return 2 * PRODUCT**3 / seconds


def idle(before: float | None, after: float | None) -> bool:
    """Whether two ceilings, from before and after a measurement, differ by so little that nothing else ran meanwhile."""
    return before is None or after is None or 0.85 < after / before < 1.18


def facts() -> dict[str, Any]:
    """Machine, versions and the environment variables that choose kernels and threads (JSON-able)."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": cpu_name(),
        "cores": available_cores(),
        "instruction_set": backend.instruction_set(),
        "dipengine": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("numpy", "torch")},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def cpu_name() -> str:
    """The processor's name as the system states it."""
    with contextlib.suppress(OSError):
        for text in Path("/proc/cpuinfo").read_text().splitlines():
            if text.startswith("model name"):
                return text.split(":", 1)[1].strip()
    return platform.processor()


def _torch_product(precision: str, threads: int) -> float:
    import torch

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(PRODUCT, PRODUCT, generator=generator).to(dtype) for _ in range(2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a @ b
        return min(_seconds(lambda: a @ b) for _ in range(REPEATS))
    finally:
        torch.set_num_threads(before)


def _numpy_product(threads: int) -> float:
    # In a process of its own: a BLAS reads its thread count once, when it is loaded, and its workers spin.
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    code = _NUMPY_PRODUCT.format(n=PRODUCT, repeats=REPEATS)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            env=os.environ | dict.fromkeys(names, str(threads)))
    return float(result.stdout)


def _seconds(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
