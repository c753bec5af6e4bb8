"""The GPU and the software around it, as their own tools name them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_QUERY = {"name": "name", "driver": "driver_version", "compute_capability": "compute_cap", "memory_mib": "memory.total",
          "sm_clock_mhz": "clocks.sm", "memory_clock_mhz": "clocks.mem", "max_sm_clock_mhz": "clocks.max.sm",
          "max_memory_clock_mhz": "clocks.max.mem", "power_limit_w": "power.limit", "temperature_c": "temperature.gpu",
          "pstate": "pstate", "mig": "mig.mode.current"}
_NEEDED = ("name", "driver", "compute_capability", "memory_mib")


def query() -> dict[str, str]:
    """What nvidia-smi says of CUDA's first GPU, now. Raises RuntimeError where there is none."""
    try:
        return _asked(_QUERY)
    except RuntimeError:  # a driver that does not know one of the words
        return dict.fromkeys(_QUERY, "unknown") | _asked({name: _QUERY[name] for name in _NEEDED})


# CUDA's devices are numbered as nvidia-smi numbers them, not the fastest first; in the environment of all that is run.
ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def first() -> str:
    """CUDA's first GPU as nvidia-smi is asked for it: a number or a UUID."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return "0" if not seen or seen.startswith("MIG") else seen


def _asked(words: dict[str, str]) -> dict[str, str]:
    said = _run("nvidia-smi", "-i", first(), f"--query-gpu={','.join(words.values())}", "--format=csv,noheader,nounits")
    return dict(zip(words, (field.strip() for field in said.strip().split(",")), strict=True))


def slug(name: str) -> str:
    """A file's name for a GPU: "NVIDIA H200" is h200."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"^(nvidia|tesla|geforce|\s)+", "", name.lower())).strip("_")


def clocks() -> dict[str, str]:
    """Beside every measurement: what the GPU ran at when it ended."""
    found = query()
    return {name: found[name] for name in ("sm_clock_mhz", "memory_clock_mhz", "temperature_c", "pstate")}


def nvcc() -> str | None:
    """The compiler: on the PATH, or where the toolkit is by itself."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", os.defpath), *(str(Path(home) / "bin") for home in homes if home)]
    return os.environ.get("CUDACXX") or shutil.which("nvcc", path=os.pathsep.join(folders))


def software() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}"}
    for name in ("torch", "numpy", "triton", "cupy-cuda13x", "pytest"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found | {"nvcc": _version_of(nvcc())}


def _version_of(compiler: str | None) -> str | None:
    """None where there is none that says what it is."""
    try:
        said = re.search(r"release [\d.]+, V([\d.]+)", _run(compiler, "--version")) if compiler else None
    except RuntimeError:
        return None
    return said.group(1) if said else None


def _run(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise RuntimeError(f"{command[0]} was not found; this machine has no NVIDIA driver.") from None
    if result.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {(result.stdout + result.stderr).strip()[:200]}")
    return result.stdout
