"""The results of a GPU as Markdown: what ran, and every figure beside what it is compared with."""

from __future__ import annotations

from typing import Any

from acceptance.step import MEASURED
from acceptance.targets import GPU

FORETOLD = "MB, said before"  # of our side; MB: taken


def text(found: dict[str, Any]) -> str:
    results, machine = found["results"], found["machine"]
    card = machine["gpu"]
    lines = [
        f"# Acceptance on {found['gpu']}", "",
        f"{found['date']}; driver {card['driver']}, compute capability {card['compute_capability']}, {card['memory_mib']} MiB, "
        f"at most {card['max_sm_clock_mhz']} MHz; PyTorch {machine['torch']}, nvcc {machine['nvcc']}, Python {machine['python']}. Written by "
        "`make gpu-acceptance`; everything here was measured on that GPU, all in the JSON file beside this one.", "",
    ]
    if not found["complete"]:
        names = "; ".join(_missing(part, names, found["results"][part]) for part, names in found["missing"].items())
        lines += [f"**Not complete.** Not done yet: {names}.", ""]
    lines += [*_targets(found), *_kernels(found), *_checks(results), *_ceilings(results), *_iterations(results), *_profile(results), *_cohorts(results),
              *_layers(results), *_restoration(results)]
    return "\n".join(lines).rstrip() + "\n"


def _missing(part: str, names: list[str], done: dict[str, Any]) -> str:
    return f"{part}: {', '.join(names)}" if done else f"all of {part}"


def _targets(found: dict[str, Any]) -> list[str]:
    rows = []
    for target in found["targets"]:
        value, met = target["measured"], target["met"]
        rows.append((target["what"], f"{'at most' if target['at_most'] else 'at least'} {target['wanted']:g} {target['unit']}".rstrip(),
                     "not measured" if value is None else f"{value:.3g}", "" if met is None else "met" if met else "missed"))
    return ["## Targets", "", f"Set for an {GPU.removeprefix('NVIDIA ')}.", "", *_rows(("", "wanted", "measured", ""), rows)]


def _kernels(found: dict[str, Any]) -> list[str]:
    known, ran = found["kernels"], found["silicon"]
    if not known:
        return []
    lines = ["## Kernels", "", f"{len(ran)} of {len(known)} CUDA sources have passed their tests on this GPU as they are.", ""]
    return [*lines, *_rows(("source", "hash", "tests on the GPU"),
                           [(name, f"`{hash_}`", "passed" if name in ran else "not passed") for name, hash_ in known.items()])]


def _checks(results: dict[str, Any]) -> list[str]:
    rows = []
    for part in ("tests", "checker"):
        for name, result in results.get(part, {}).items():
            count = result.get("passed", result.get("tests"))
            rows.append((part, name, result["status"], "" if count is None else count, result.get("reason", "")))
    return ["## Tests and memory checker", "", *_rows(("part", "step", "result", "tests", ""), rows)] if rows else []


def _ceilings(results: dict[str, Any]) -> list[str]:
    found = results.get("layers", {}).get("ceilings")
    if found is None or found["status"] != MEASURED:
        return []
    return ["## What the GPU reaches", "", *_rows(("", "mma.sync / 16-byte accesses", "PyTorch's libraries"), [
        ("bf16 products, TFLOP/s", f"{found['mma_bf16'] / 1e12:.0f}", f"{found['library_bf16'] / 1e12:.0f}"),
        ("tf32 products, TFLOP/s", f"{found['mma_tf32'] / 1e12:.0f}", f"{found['library_tf32'] / 1e12:.0f}"),
        ("copy, read and written, TB/s", f"{found['copy'] / 1e12:.2f}", f"{found['library_copy'] / 1e12:.2f}"),
        ("read, TB/s", f"{found['read'] / 1e12:.2f}", ""),
    ])]


def _iterations(results: dict[str, Any]) -> list[str]:
    found = {**results.get("iterations", {}), **results.get("compiled", {})}
    rows = []
    for name, result in found.items():
        size, _, side = name.rpartition("-")
        if result["status"] != MEASURED:
            rows.append((size, result.get("peer", side), result["status"], "", "", "", "", result.get("reason", "")))
            continue
        seconds = result["seconds"]["median"]
        memory = result.get("memory_bytes")
        rows.append((size, result.get("peer", "ours"), f"{1000 * seconds:.3f}", _ratio(result), _mega(result.get("arena_bytes")),
                     _mega(memory), "" if memory is None else f"{memory / result['pixels'] / 1000:.2f}", ""))
    head = ("size", "side", "ms an iteration", "times ours", FORETOLD, "MB", "GB a Mpx", "")
    return ["## Whole iterations", "", "The paper's network, nearest, ours in bf16. A peer's ratio is to ours before and behind it.", "",
            *_rows(head, rows)] if rows else []


def _cohorts(results: dict[str, Any]) -> list[str]:
    rows = []
    for name, result in results.get("cohorts", {}).items():
        fits, _, side = name.partition("-")
        if result["status"] != MEASURED:
            rows.append((fits, side, result["status"], "", "", "", result.get("reason", "")))
            continue
        rows.append((fits, result.get("peer", "ours"), f"{result['iterations_per_second']:.0f}", _ratio(result),
                     _mega(result.get("arena_bytes")), _mega(result.get("memory_bytes")), ""))
    head = ("fits", "side", "iterations/s in sum", "times ours", FORETOLD, "MB", "")
    return ["## Cohorts at 256x256", "", *_rows(head, rows)] if rows else []


def _layers(results: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for size, result in results.get("layers", {}).items():
        if size == "ceilings":
            continue
        if result["status"] != MEASURED:
            lines += [f"### {size}x{size}", "", f"{result['status']}: {result.get('reason', '')}", ""]
            continue
        rows = []
        for row in result["rows"]:
            cells = [row["layer"], row["shape"]]
            for direction in ("forward", "backward"):
                own = row[direction]
                cells += [f"{1e6 * own['seconds']['median']:.1f}", f"{1e6 * own['floor']:.1f}", f"{own['operations'] / 1e9:.2f}",
                          f"{own['bytes'] / 1e6:.1f}"]
            rows.append((*cells, f"{row['of_roofline']:.0%}", "" if row["ratio"] is None else f"{row['ratio']:.2f}"))
        head = ("layer", "shape", "forward us", "floor", "GFLOP", "MB", "backward us", "floor", "GFLOP", "MB", "of its roofline",
                "best PyTorch, times ours")
        lines += [f"### {size}x{size}", "", *_rows(head, rows)]
        wide = [row["of_roofline"] for row in result["rows"] if row["wide"]]
        if wide:
            lines += [f"Layers of 128 channels: {min(wide):.0%} to {max(wide):.0%} of their roofline.", ""]
    return ["## Layers", "", *lines] if lines else []


MOST_KERNELS = 16  # in the table; all are in the JSON file


def _profile(results: dict[str, Any]) -> list[str]:
    lines = []
    for size, result in results.get("profile", {}).items():
        if result["status"] != MEASURED:
            lines += [f"{size}x{size}: {result['status']} {result.get('reason', '')}".rstrip(), ""]
            continue
        lines += [f"### {size}x{size}", "", f"{result['launches']:g} launches an iteration; {result['us']:.0f} us, of which kernels run "
                  f"{result['busy_us']:.0f} us.", ""]
        shown = result["kernels"][:MOST_KERNELS]
        lines += _rows(("kernel", "launches", "us", "of the kernels' time"), [
            (f"`{row['kernel']}`", f"{row['launches']:g}", f"{row['us']:.1f}", f"{row['us'] / result['busy_us']:.1%}") for row in shown])
    return ["## Kernels of an iteration", "", *lines] if lines else []


def _restoration(results: dict[str, Any]) -> list[str]:
    rows = []
    for name, result in results.get("restoration", {}).items():
        if result["status"] != MEASURED:
            rows.append((name, result["status"], "", "", "", result.get("reason", "")))
            continue
        rows.append((result.get("peer", "ours"), f"{result['psnr']:.2f}", result["iterations"], f"{result['seconds']:.2f}",
                     f"{result['ratio']:.1f}" if "ratio" in result else "",
                     f"stopped by {result['stopped_by']}, delivered iteration {result['delivered_iteration']}" if name == "ours" else ""))
    noisy = next((r["psnr_noisy"] for r in results.get("restoration", {}).values() if "psnr_noisy" in r), None)
    head = ("side", "PSNR, dB", "iterations", "seconds", "times ours", "")
    about = "The demo's photograph, 256x256" + ("" if noisy is None else f", noisy {noisy:.2f} dB") + ", blind."
    return ["## A restoration", "", about, "", *_rows(head, rows)] if rows else []


def _ratio(result: dict[str, Any]) -> str:
    return "" if result.get("ratio") is None else f"{result['ratio']:.2f}"


def _mega(bytes_: int | None) -> str:
    return "" if bytes_ is None else f"{bytes_ / 1e6:.0f}"


def _rows(head: tuple[str, ...], rows: list[tuple]) -> list[str]:
    cells = lambda row: "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"  # noqa: E731
    return [cells(head), "|" + "---|" * len(head), *map(cells, rows), ""]
