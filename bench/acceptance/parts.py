"""The parts, in the order in which they are done: correctness first."""

from __future__ import annotations

from collections.abc import Callable

from acceptance import building, checking, cohorts, iterations, layers, report as reports, restoring, testing
from acceptance.step import ROOT, Parts
from acceptance.store import Store, fingerprint

__all__ = ["PARTS", "fingerprint", "report"]

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


def report(store: Store, parts: Parts, say: Callable[[str], None]) -> None:
    """Write bench/results/GPU.json and GPU.md from what there is."""
    reports.write(store, parts, ROOT / "bench/results", say)
