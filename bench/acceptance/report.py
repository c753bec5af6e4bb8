"""The results file of a GPU, and the table beside it, from what the store holds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from acceptance import gpu, table, targets
from acceptance.step import PASSED, ROOT, Parts
from acceptance.store import Store
from acceptance.testing import PROGRAMS

FORMAT = "dipengine GPU acceptance 1"  # how cmake/DipengineManifest.cmake knows these files


def write(store: Store, parts: Parts, folder: Path, say: Callable[[str], None]) -> list[Path]:
    """GPU.json and GPU.md in `folder`; nothing before it is known what GPU this is. What was written."""
    machine = store.result("build", "machine")
    if machine is None or "gpu" not in machine:
        return []
    found = compose(store, parts)
    path = folder / f"{gpu.slug(machine['gpu']['name'])}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".md").write_text(table.text(found))
    say(f"Written: {path} and {path.with_suffix('.md').name}")
    return [path, path.with_suffix(".md")]


def compose(store: Store, parts: Parts) -> dict[str, Any]:
    """Everything that was found, with what is not done yet named."""
    results = {part: {s.name: result for s in steps if (result := store.result(part, s.name)) is not None}
               for part, steps in parts.items()}
    machine = results["build"]["machine"]
    return {
        "format": FORMAT,
        "gpu": machine["gpu"]["name"],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        # Of the kernels whose tests have passed on the GPU, as they were then.
        "silicon": on_silicon(results),
        "kernels": results["build"].get("doctor", {}).get("kernels", {}),
        "machine": {name: value for name, value in machine.items() if name not in ("status", "took", "ended")},
        "complete": not any(s.name not in results[part] for part, steps in parts.items() for s in steps),
        "missing": {part: names for part, steps in parts.items() if (names := [s.name for s in steps if s.name not in results[part]])},
        "targets": targets.judged(results),
        "results": results,
    }


def on_silicon(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Name and hash of the CUDA sources whose own tests, those of their folder, have all passed on the GPU."""
    doctor, tests = results["build"].get("doctor"), results.get("tests", {})
    if doctor is None or doctor["status"] != PASSED:
        return {}
    tested = {asked.folder for asked in PROGRAMS.values()}
    failed = {asked.folder for name, asked in PROGRAMS.items() if tests.get(name, {}).get("status") != PASSED}
    return {name: hash_ for name, hash_ in doctor["kernels"].items() if folder_of(name) in tested - failed}


def folder_of(name: str) -> str:
    """The folder of csrc that the CUDA source of a name in the manifest lies in."""
    found = [path.parent for path in (ROOT / "csrc").rglob(f"{name}_cuda.cu")]
    return found[0].relative_to(ROOT / "csrc").as_posix() if found else ""
