"""Part "cohorts": so many fits of 256 x 256 at a time, in one plan; PyTorch's side by side on streams of their own, each an iteration
captured as a graph, and as one network of grouped convolutions. What counts is iterations a second in sum."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from acceptance import gpu
from acceptance.iterations import DEVICE, beside, measure_peer, setting_of
from acceptance.step import MEASURED, Context, Step

FITS = (1, 4, 16, 64)
SIDE = 256
CONFIGURATION = "bf16 channels_last, graph"


class OurCohort:
    """Equal images with seeds of their own, in one plan."""

    def __init__(self, setting: Any, fits: int) -> None:
        from dipengine.bench.ours import problem_of
        from dipengine.fitting.device import place
        from dipengine.fitting.native_cohort import NativeCohort
        from dipengine.fitting.settings import Settings

        problem, recipe = problem_of(setting)
        placement = place(Settings(device=setting.device, precision=setting.precision, threads=setting.threads))
        self._cohort = NativeCohort(problem, recipe, placement, "fixed", fits)
        self._slots = [self._cohort.open(problem, recipe, seed, "fixed") for seed in range(fits)]
        self.memory_bytes = self._cohort.arena_bytes

    def run(self, n: int) -> None:
        before = [slot.iteration for slot in self._slots]
        self._cohort.advance(n)
        if [slot.iteration for slot in self._slots] != [i + n for i in before]:
            raise RuntimeError("Some fit of the cohort ended; nothing can be measured.")


class OnStreams:
    """PyTorch's fits, each on a stream of its own."""

    def __init__(self, configuration: Any, setting: Any, fits: int) -> None:
        import torch

        from dipengine.bench.peers import PyTorchFit

        self._device = setting.device
        cuda = setting.device.startswith("cuda")
        self._places = [torch.cuda.stream(torch.cuda.Stream()) if cuda else nullcontext() for _ in range(fits)]
        self._fits = []
        for place in self._places:
            with place:
                self._fits.append(PyTorchFit(configuration, setting))
            _synchronise(setting.device)

    def run(self, n: int) -> None:
        for _ in range(n):
            for place, fit in zip(self._places, self._fits, strict=True):
                with place:
                    fit.begin()
        _synchronise(self._device)


def measure_ours(setting: Any, fits: int, **how: Any) -> dict[str, Any]:
    from acceptance import timing

    timing.free_memory(setting.device)
    OurCohort(setting_of(64, 64, setting.device), 1).run(1)  # the kernels' code is on the device then
    before = timing.held(setting.device)
    side = OurCohort(setting, fits)
    found = _in_sum({"seconds": timing.measured(side, **how), "arena_bytes": side.memory_bytes}, fits)
    return found if before is None else found | {"memory_bytes": timing.held(setting.device) - before}


def measure_streams(setting: Any, fits: int, name: str = CONFIGURATION, **how: Any) -> dict[str, Any]:
    import torch

    from acceptance import timing
    from dipengine.bench.peers import CUDA_CONFIGURATIONS

    timing.prepare()
    timing.free_memory(setting.device)
    side = OnStreams(CUDA_CONFIGURATIONS[name], setting, fits)
    found = _in_sum({"seconds": timing.measured(side, **how)}, fits)
    return found | ({"memory_bytes": torch.cuda.max_memory_reserved()} if setting.device.startswith("cuda") else {})


def measure_grouped(setting: Any, fits: int, name: str = CONFIGURATION, **how: Any) -> dict[str, Any]:
    return _in_sum(measure_peer(setting, name, fits, **how), fits)


def _in_sum(found: dict[str, Any], fits: int) -> dict[str, Any]:
    return found | {"fits": fits, "iterations_per_second": fits / found["seconds"]["median"]}


def _synchronise(device: str) -> None:
    from acceptance import timing

    timing.synchronise(device)


def ours(context: Context, fits: int) -> dict[str, Any]:
    return {"status": MEASURED, **measure_ours(setting_of(SIDE, SIDE, DEVICE), fits), "clocks": gpu.clocks()}


def peer(context: Context, kind: str, fits: int) -> dict[str, Any]:
    setting = setting_of(SIDE, SIDE, DEVICE)
    measure = {"streams": measure_streams, "grouped": measure_grouped}[kind]
    found = beside(lambda: measure_ours(setting, fits, rounds=3), lambda: measure(setting, fits))
    return {"status": MEASURED, **found, "peer": f"{CONFIGURATION}, {kind}", "clocks": gpu.clocks()}


def _steps() -> list[Step]:
    found = [Step(f"{fits}-ours", lambda context, fits=fits: ours(context, fits), 10, 120) for fits in FITS]
    for fits in FITS:
        for kind in ("streams", "grouped"):
            found.append(Step(f"{fits}-{kind}", lambda context, kind=kind, fits=fits: peer(context, kind, fits), 15 + fits / 2, 240,
                              peer=True))
    return found


STEPS = _steps()
