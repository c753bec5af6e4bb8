"""The parts, in the order in which they are done: correctness first."""

from __future__ import annotations

from collections.abc import Callable

from acceptance import building, checking, cohorts, gpu, iterations, layers, restoring, store, testing
from acceptance import report as reports
from acceptance.step import ROOT, Parts

PARTS: Parts = {
    "build": building.STEPS,
    "tests": testing.STEPS,
    "checker": checking.STEPS,
    "iterations": [step for step in iterations.STEPS if not step.name.endswith("-compiled")],
    "cohorts": cohorts.STEPS,
    "layers": layers.STEPS,
    "restoration": restoring.STEPS,
    "compiled": [step for step in iterations.STEPS if step.name.endswith("-compiled")],
}


def fingerprint() -> str:
    """Of the sources and the GPU: results are kept for as long as both stay."""
    try:
        name = gpu.slug(gpu.query()["name"])
    except RuntimeError:
        name = "none"
    return f"{store.fingerprint()} {name}"


def report(kept: store.Store, parts: Parts, say: Callable[[str], None]) -> None:
    """Write bench/results/GPU.json and GPU.md from what there is."""
    reports.write(kept, parts, ROOT / "bench/results", say)
