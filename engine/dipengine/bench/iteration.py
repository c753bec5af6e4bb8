"""`dipengine bench iteration`: an iteration of the engine's fit beside plain PyTorch's, in turns in one run, as a report.

The report is one JSON-able object that holds everything that `table` prints, the raw samples and the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from dipengine.bench import machine, memory
from dipengine.bench.operations import Layer, iteration_operations, layers_of
from dipengine.bench.ours import LayerTime, Ours, make_ours
from dipengine.bench.setting import OURS, Setting
from dipengine.bench.turns import Side, Spread, disturbed_rounds, ratios, seconds, spread_of, take_turns
from dipengine.errors import FitError, InputError

FORMAT = 1
PEERS = ("all", "eager", "none")
Say = Callable[[str], None]


def measure(
    setting: Setting, *, rounds: int = 5, peers: str = "all", layers: bool = False, say: Say = lambda text: None,
    arguments: list[str] | None = None,
) -> dict[str, Any]:
    """Measure and report.

    peers: "all", "eager" (eager float32 alone) or "none", which it is without PyTorch. layers: time the engine's layers too.
    say: told what is being done. arguments: the command line, for the report. Raises InputError for what cannot be measured.
    """
    if rounds < 1:
        raise InputError(f"rounds is {rounds}; ask for at least 1.")
    if peers not in PEERS:
        raise InputError(f"There are no peers {peers!r}; choose {', '.join(PEERS)}.")
    notes = []
    if peers != "none" and not machine.torch_installed():
        peers = "none"
        notes.append('PyTorch is not installed: nothing is compared (pip install "dipengine[cpu]").')
    configurations = _configurations(peers)
    precisions = {OURS: setting.precision} | {name: peer.precision for name, peer in configurations.items()}

    peaks: dict[str, int | None] = dict.fromkeys(precisions)
    for name in precisions:
        if name in configurations and configurations[name].compiled:
            continue  # compiling takes more than the iterations do
        say(f"memory: {name}")
        try:
            peaks[name] = memory.peak_memory(name, setting)
        except FitError as error:
            notes.append(str(error))

    before = {precision: machine.ceiling(precision, setting.threads) for precision in sorted(set(precisions.values()))}
    with peer_threads(setting.threads, bool(configurations)):
        say(f"building: {OURS}")
        ours = make_ours(setting)
        ours.run(1)
        sides: dict[str, Side] = {OURS: ours}
        built, skipped, compile_seconds = _built(configurations, setting, say)
        samples = take_turns(sides | built, rounds, say)
        times = ours.layers() if layers else None
    after = {precision: machine.ceiling(precision, setting.threads) for precision in before}
    if None in before.values():
        notes.append("Without PyTorch there is no bf16 matrix product to compare with.")

    found = layers_of(setting.architecture, setting.height, setting.width)
    ceilings = {precision: _ceiling(before[precision], after[precision]) for precision in before}
    operations = iteration_operations(found)
    rows = [
        _side(name, precisions[name], taken, samples[OURS], operations, ceilings[precisions[name]], peaks[name],
              compile_seconds.get(name))
        for name, taken in samples.items()
    ]
    disturbed = disturbed_rounds(samples)
    report = {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command_line": ["dipengine", *(sys.argv[1:] if arguments is None else arguments)],
        **machine.facts(),
        **setting.to_dict(),
        "upsample": sorted(set(setting.architecture.upsample)),
        "parameters": setting.architecture.parameter_count,
        "rounds": rounds,
        "path": ours.path,
        "operations": operations,
        "fewest_operations": iteration_operations(found, reduced=True),
        "ceilings": ceilings,
        "idle": not disturbed and all(ceiling["idle"] for ceiling in ceilings.values()),
        "disturbed_rounds": disturbed,
        "sides": rows,
        "best": _best(rows),
        "skipped": skipped,
        "notes": notes,
    }
    if layers:
        iteration = Spread.of(samples[OURS]).median
        report["layers"] = _layers(ours, times, found, ceilings[setting.precision]["rate"], iteration)
    return report


def _configurations(peers: str) -> dict[str, Any]:
    if peers == "none":
        return {}
    from dipengine.bench.peers import CONFIGURATIONS, EAGER

    return {name: peer for name, peer in CONFIGURATIONS.items() if peers == "all" or name == EAGER}


@contextmanager
def peer_threads(threads: int, needed: bool):
    if not needed:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _built(configurations: dict[str, Any], setting: Setting, say: Say) -> tuple[dict[str, Side], list[dict], dict[str, float]]:
    """The peers, each after its first iteration; those that do not run here with the reason; seconds of compiling."""
    if not configurations:
        return {}, [], {}
    from dipengine.bench.peers import PyTorchFit

    built, skipped, compile_seconds = {}, [], {}
    for name, configuration in configurations.items():
        say(f"building: {name}")
        side = PyTorchFit(configuration, setting)
        try:
            first = seconds(side, 1)
        except Exception as error:
            if not configuration.compiled:
                raise
            # Whatever a compiler, or its absence, raises: the others are measured all the same.
            skipped.append({"name": name, "reason": _first_line(error)})
            continue
        built[name] = side
        if configuration.compiled:
            compile_seconds[name] = first
    return built, skipped, compile_seconds


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _ceiling(before: float | None, after: float | None) -> dict[str, Any]:
    """A ceiling is the most that the machine was seen to do."""
    rate = None if before is None or after is None else max(before, after)
    return {"before": before, "after": after, "rate": rate, "idle": machine.idle(before, after)}


def _side(
    name: str, precision: str, samples: list[float], ours: list[float], operations: float, ceiling: dict[str, Any],
    peak: int | None, compile_seconds: float | None,
) -> dict[str, Any]:
    rate = operations / Spread.of(samples).median
    return {
        "name": name,
        "precision": precision,
        "seconds": spread_of(samples),
        "ratio": None if name == OURS else spread_of(ratios(samples, ours)),
        "operations_per_second": rate,
        "of_ceiling": rate / ceiling["rate"] if ceiling["rate"] else None,
        "peak_memory_bytes": peak,
        "compile_seconds": compile_seconds,
    }


def _best(rows: list[dict[str, Any]]) -> str | None:
    """The fastest peer."""
    peers = [row for row in rows if row["name"] != OURS]
    return min(peers, key=lambda row: row["seconds"]["median"])["name"] if peers else None


def _layers(
    ours: Ours, times: list[LayerTime] | None, layers: list[Layer], rate: float | None, iteration: float
) -> dict[str, Any] | None:
    """Each layer's seconds, floors and share of the iteration, with their sum; None where the engine's path cannot tell."""
    if times is None:
        return None
    known = {layer.name: layer for layer in layers}
    rows: dict[str, dict[str, Any]] = {}
    for time in times:
        layer = known.get(time.name)
        row = rows.setdefault(time.name, {"name": time.name, "shape": layer.shape if layer else ""})
        place = ("forward", "backward").index(time.direction)
        row[time.direction] = {
            "seconds": time.seconds,
            "floor": layer.operations(True)[place] / rate if layer and rate else None,
            "direct_floor": layer.operations(False)[place] / rate if layer and rate else None,
            "share": time.seconds / iteration,
        }
    total = sum(time.seconds for time in times)
    return {
        "by": ours.layers_by, "rows": list(rows.values()), "seconds": total, "share": total / iteration,
        "floor": iteration_operations(layers, reduced=True) / rate if rate else None,
        "elsewhere": iteration - total, "elsewhere_share": 1 - total / iteration,
    }
