"""The report of `dipengine bench iteration` as text."""

from __future__ import annotations

from typing import Any

from dipengine.bench.setting import OURS

_BLANK = "-"


def table(report: dict[str, Any]) -> str:
    """Everything that was measured, as lines of at most 130 characters."""
    lines = [*_head(report), "", *_sides(report), *_ratios(report)]
    for entry in report["skipped"]:
        lines.append(f"{entry['name']}: left out ({entry['reason'][:160]})")
    for row in report["sides"]:
        if row["compile_seconds"] is not None:
            lines.append(f"{row['name']}: {row['compile_seconds']:.0f} s to its first result, not counted; no memory measured")
    lines += report["notes"]
    if "layers" in report:
        lines += ["", *_layers(report["layers"])]
    return "\n".join(lines)


def _head(report: dict[str, Any]) -> list[str]:
    peers = f", PyTorch {report['torch']}" if report["torch"] else ""
    ceilings = [
        f"{name} {_giga(entry['before'])} before, {_giga(entry['after'])} after" for name, entry in report["ceilings"].items()
    ]
    lines = [
        f"{report['height']}x{report['width']}, {' and '.join(report['upsample'])}, {report['parameters']:,} parameters, "
        f"{report['precision']}, {report['threads']} threads; {report['path']}",
        f"{report['cpu']}, {report['instruction_set']}{peers}",
        f"an iteration: {report['operations'] / 1e9:.1f} GFLOP as plain convolutions, "
        f"{report['fewest_operations'] / 1e9:.1f} at fewest; matrix product, GFLOP/s: {'; '.join(ceilings)}",
    ]
    if not report["idle"]:
        rounds = ", ".join(map(str, report["disturbed_rounds"]))
        changed = "The matrix product changed its speed"
        lines.append(f"{f'Some side was far slower than at its median in round {rounds}' if rounds else changed}: the machine was not idle; measure again.")
    return lines


def _sides(report: dict[str, Any]) -> list[str]:
    yours = report["sides"][0]["peak_memory_bytes"]
    lines = [f"{'':<30}{'s an iteration':>15}{'quartiles':>17}{'ratio':>8}{'quartiles':>15}{'GFLOP/s':>9}{'ceiling':>9}"
             f"{'peak MB':>9}{'ours':>7}"]
    for row in report["sides"]:
        seconds, ratio, peak = row["seconds"], row["ratio"], row["peak_memory_bytes"]
        text = f"{row['name']:<30}{seconds['median']:>15.4f}{_between(seconds, 4):>17}"
        text += f"{ratio['median']:>8.2f}{_between(ratio, 2):>15}" if ratio else f"{'':>23}"
        text += f"{row['operations_per_second'] / 1e9:>9.0f}{_percent(row['of_ceiling']):>9}"
        text += f"{_BLANK if peak is None else format(peak / 1e6, '.0f'):>9}"
        text += f"{_percent(yours / peak if peak and yours is not None and row['name'] != OURS else None, ''):>7}"
        lines.append(text)
    return lines


def _ratios(report: dict[str, Any]) -> list[str]:
    """One sentence for the fastest peer."""
    row = next((row for row in report["sides"] if row["name"] == report["best"]), None)
    if row is None:
        return []
    ratio = row["ratio"]
    return [f"best PyTorch: {row['name']}, {ratio['median']:.2f} times our time (quartiles {_between(ratio, 2)}, "
            f"{report['rounds']} rounds)"]


def _layers(layers: dict[str, Any] | None) -> list[str]:
    if layers is None:
        return ["This path of the engine has no times of single layers."]
    lines = [f"Layers, ms ({layers['by']}); floor: fewest operations over the ceiling; share: of the iteration",
             f"{'':<14}{'':<29}" + "".join(f"{'':>3}{name:>8}{'floor':>8}" for name in ("forward", "backward")) + f"{'share':>8}"]
    for row in layers["rows"]:
        text, share = f"{row['name']:<14}{row['shape']:<29}", 0.0
        for direction in ("forward", "backward"):
            cell = row.get(direction, {"seconds": None, "floor": None, "share": 0.0})
            text += f"{'':>3}{_milli(cell['seconds']):>8}{_milli(cell['floor']):>8}"
            share += cell["share"]
        lines.append(f"{text}{_percent(share):>8}")
    width = 14 + 29 + 3 + 16 + 3  # to where the backward columns begin
    lines += [
        f"{'all layers':<{width}}{_milli(layers['seconds']):>8}{_milli(layers['floor']):>8}{_percent(layers['share']):>8}",
        f"{'elsewhere':<{width}}{_milli(layers['elsewhere']):>8}{'':>8}{_percent(layers['elsewhere_share']):>8}",
    ]
    return lines


def _between(spread: dict[str, Any], digits: int) -> str:
    return f"{spread['lower_quartile']:.{digits}f}-{spread['upper_quartile']:.{digits}f}"


def _giga(rate: float | None) -> str:
    return _BLANK if rate is None else f"{rate / 1e9:.0f}"


def _milli(seconds: float | None) -> str:
    return _BLANK if seconds is None else f"{1000 * seconds:.2f}"


def _percent(share: float | None, blank: str = _BLANK) -> str:
    return blank if share is None else f"{100 * share:.0f} %"
