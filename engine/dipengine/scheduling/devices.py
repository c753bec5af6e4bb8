"""What this machine's devices are given: workers, slots, memory."""

from __future__ import annotations

from dipengine import environment
from dipengine.errors import DeviceError, InputError
from dipengine.fitting.device import cuda_devices, place
from dipengine.fitting.settings import Settings
from dipengine.scheduling.pool import DevicePlan

_SLOTS = 32  # of a GPU, at most: so many fits share a plan, where the memory has room for them
SHARE = 0.9  # of the memory: the rest is the system's, the driver's, and the images' being read


def plan_devices(
    wish: str = "auto", *, workers: int | None = None, threads: int | None = None, limit_memory: int | None = None
) -> list[DevicePlan]:
    """The devices to be used.

    wish: "auto" (all GPUs, else the CPU), "cpu", or devices separated by commas such as "cuda:0,cuda:1". workers: processes of
    the CPU; by default one a core, because two fits on one core each are faster than two in turn on two. threads: cores of the
    CPU. limit_memory: bytes that all fits of a device may hold together.

    Raises DeviceError for a device that is not here, InputError for numbers below 1.
    """
    for name, value in (("workers", workers), ("threads", threads), ("limit-memory", limit_memory)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; ask for at least 1.")
    cores = threads or environment.default_threads()
    names = [place(Settings(device=part.strip())).device for part in wish.split(",")] if wish != "auto" else cuda_devices()
    if len(set(names)) < len(names):
        raise DeviceError(f"{wish!r} names a device twice; name each once.")
    plans = []
    for name in names or ["cpu"]:
        if name == "cpu":
            there = environment.memory()
            budget = limit_memory or (None if there is None else int(SHARE * there))
            plans.append(DevicePlan("cpu", workers or cores, 1, budget, max(cores, workers or 1), limit_memory is not None))
        else:
            # Its worker finds out how much memory there is: a look from here would be a second process on the device.
            plans.append(DevicePlan(name, 1, _SLOTS, limit_memory, max(1, cores // len(names)), limit_memory is not None))
    return plans
