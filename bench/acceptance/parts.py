"""The parts, and the order in which they are done: what is broken everywhere is known first, then a little of everything, what may take
minutes last."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from acceptance import bringing, building, checking, cohorts, gpu, iterations, layers, profiling, restoring, store, testing
from acceptance import report as reports
from acceptance.step import ROOT, Parts

PARTS: Parts = {
    "build": building.STEPS,
    "smoke": testing.SMOKE,
    "tests": testing.STEPS,
    "checker": checking.STEPS,
    "iterations": [step for step in iterations.STEPS if not step.name.endswith("-compiled")],
    "profile": profiling.STEPS,
    "cohorts": cohorts.STEPS,
    "layers": layers.STEPS,
    "restoration": restoring.STEPS,
    "compiled": [step for step in iterations.STEPS if step.name.endswith("-compiled")],
}

# A call may be the only one that there ever is.
ORDER = [
    ("build", None),
    ("smoke", None),
    ("iterations", ("256-ours", "512-ours", "256-apart")),
    ("profile", ("256",)),
    ("tests", tuple(testing.PROGRAMS)),
    ("checker", ("memcheck-fits", "initcheck-fits")),
    ("iterations", ("1024-ours", "15.4Mpx-ours", "256-eager", "256-graph", "512-eager", "512-graph")),
    ("tests", None),
    ("profile", None),
    ("layers", ("ceilings", "1024")),
    ("cohorts", tuple(f"{fits}-ours" for fits in cohorts.FITS)),
    ("restoration", ("ours",)),
    ("checker", ("racecheck-fits", "synccheck-fits")),
    ("iterations", ("15.4Mpx-eager", "15.4Mpx-graph")),
    ("layers", None),
    ("checker", None),
    ("cohorts", None),
    ("restoration", ("eager", "graph")),
    ("iterations", None),
    ("compiled", None),
    ("restoration", None),
]

# What says nothing while no fit runs.
_FITS = ("iterations", "profile", "cohorts", "restoration", "compiled",
         *(f"checker/{tool}-kernels" for tool in ("memcheck", "racecheck", "synccheck")))
NEEDS = dict.fromkeys(_FITS, "smoke/fit") | {"layers": "smoke/kernels"}


def fingerprint() -> str:
    """Of the sources, the GPU and the software that figures are of: results are kept for as long as all of them stay."""
    try:
        name = gpu.slug(gpu.query()["name"])
    except RuntimeError:
        name = "none"
    found = gpu.software()
    return " ".join([store.fingerprint(), name, *(f"{word} {found[word]}" for word in ("python", "torch", "nvcc"))])


def report(kept: store.Store, parts: Parts, say: Callable[[str], None]) -> None:
    """Write bench/results/GPU.json and GPU.md from what there is, and where ACCEPTANCE_OUT names a folder, all that there is into it."""
    written = reports.write(kept, parts, ROOT / "bench/results", say)
    if (out := os.environ.get("ACCEPTANCE_OUT")) and written:
        bringing.pack(kept, written, Path(out))
