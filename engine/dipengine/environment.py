"""The one place that reads environment variables.

| variable | meaning | default |
|---|---|---|
| `DIPENGINE_THREADS` | threads of native ops and of PyTorch on the CPU | the cores this process may use |
| `DIPENGINE_ISA` | highest instruction set of native ops: `portable`, `avx2`, `avx512`, `avx512bf16`, `avx512fp16` (read by the core itself) | the fastest that the CPU has |
| `XDG_CACHE_HOME` | folder of caches (TensorRT engines lie below it) | `~/.cache` |
| `DIPENGINE_KERNELS` | default of `--kernels`: `auto`, `native`, `torch` | `auto` |
"""

import os
from pathlib import Path

from dipengine.errors import InputError


def default_threads() -> int:
    """Threads for CPU work: `DIPENGINE_THREADS`, else the cores that this process may run on."""
    text = os.environ.get("DIPENGINE_THREADS", "")
    if not text:
        return available_cores()
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"DIPENGINE_THREADS is {text!r}; set it to a whole number of at least 1, or unset it.")
    return int(text)


def available_cores() -> int:
    """Cores that this process may run on (its affinity mask, where the platform tells it)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def memory() -> int | None:
    """Bytes of memory that this process can ever have: the machine's, or its control group's limit; None where unknown."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as file:
                total = min(total, int(file.read()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return total


def default_kernels() -> str:
    """Kernel backend when none is asked for: `DIPENGINE_KERNELS` or `auto`."""
    value = os.environ.get("DIPENGINE_KERNELS", "") or "auto"
    if value not in ("auto", "native", "torch"):
        raise InputError(f"DIPENGINE_KERNELS is {value!r}; it takes auto, native or torch.")
    return value


def cache_folder() -> Path:
    """Where caches lie: an absolute `XDG_CACHE_HOME`, as its standard demands, else `~/.cache`."""
    text = os.environ.get("XDG_CACHE_HOME", "")
    return Path(text) if os.path.isabs(text) else Path.home() / ".cache"
