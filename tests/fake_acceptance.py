"""A FAKE acceptance for the tests of the driver (test_gpu_acceptance.py): parts of steps that measure nothing on a GPU that there is
not. Its results say "fake" and go where FAKE_ACCEPTANCE says, a test's own folder, never to bench/results.

FAKE_ACCEPTANCE: a folder, in which plan.json holds {part: [[step, what it does, expected, limit, peer], ...]}, and each step that is
begun adds its name to begun.txt.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from acceptance import bringing
from acceptance import report as reports
from acceptance.step import FAILED, MEASURED, PASSED, Parts, Step
from acceptance.store import Store

FOLDER = Path(os.environ["FAKE_ACCEPTANCE"])
MACHINE = {"status": PASSED, "gpu": {"name": "NVIDIA Fake 1000", "driver": "0.0", "compute_capability": "8.0", "memory_mib": "1",
                                     "max_sm_clock_mhz": "1"}, "torch": "0", "nvcc": "0", "python": "0"}


def _run(name: str, does: str) -> dict[str, Any]:
    with (FOLDER / "begun.txt").open("a") as file:
        file.write(f"{name}\n")
    kind, _, detail = does.partition(" ")
    if kind == "sleep":
        time.sleep(float(detail))
    elif kind == "memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 1 TiB.")
    elif kind == "raise":
        raise ValueError("this fake step fails")
    elif kind == "device":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "fail":
        return {"status": FAILED, "reason": "as planned"}
    elif kind == "make":
        (FOLDER / detail).touch()
    elif kind == "machine":
        return MACHINE
    elif kind == "process":
        return {"status": MEASURED, "process": os.getpid()}
    elif kind == "result":
        return json.loads(detail)
    return {"status": MEASURED, "fake": True}


def _there(does: str) -> Any:
    """What "make FILE" makes."""
    return (lambda context: (FOLDER / does.split()[1]).exists()) if does.startswith("make ") else None


def _parts() -> Parts:
    plan = json.loads((FOLDER / "plan.json").read_text())
    return {part: [Step(name, lambda context, name=name, does=does: _run(name, does), expected, limit, peer, _there(does), needed=part == "build")
                   for name, does, expected, limit, peer in steps]
            for part, steps in plan.items()}


PARTS = _parts()
NEEDS = json.loads((FOLDER / "needs.json").read_text()) if (FOLDER / "needs.json").exists() else {}
ORDER = json.loads((FOLDER / "order.json").read_text()) if (FOLDER / "order.json").exists() else []


def fingerprint() -> str:
    path = FOLDER / "fingerprint.txt"
    return path.read_text() if path.exists() else "sources"


def report(store: Store, parts: Parts, say: Any) -> None:
    if "build" in parts and (written := reports.write(store, parts, FOLDER, say)) and (out := os.environ.get("ACCEPTANCE_OUT")):
        bringing.pack(store, written, Path(out))


__all__ = ["NEEDS", "ORDER", "PARTS", "fingerprint", "report"]
