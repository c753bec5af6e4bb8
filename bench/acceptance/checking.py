"""Part "checker": the same program under compute-sanitizer: accesses outside of memory, races in shared memory, reads of what nobody
wrote, barriers that not all threads come to. Whole fits have memory of the device, which is what `initcheck` looks at."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from acceptance import gpu
from acceptance.step import FAILED, LEFT_OUT, PASSED, Context, Step
from acceptance.testing import program

ONE_ITERATION = ["fit_step_by_step_and_replayed", "fit_in_company"]
# What each tool looks at: name, tool, beginnings of tests, seconds it is given.
RUNS = (
    ("memcheck-fits", "memcheck", ONE_ITERATION, 100),
    ("initcheck-fits", "initcheck", ONE_ITERATION[:1], 100),
    ("racecheck-fits", "racecheck", ONE_ITERATION[:1], 120),
    ("synccheck-fits", "synccheck", ONE_ITERATION[:1], 100),
    ("memcheck-kernels", "memcheck", ["test_", "golden_"], 200),
    ("racecheck-kernels", "racecheck", ["test_"], 240),
    ("synccheck-kernels", "synccheck", ["test_"], 200),
)


def check(context: Context, tool: str, beginnings: list[str]) -> dict[str, Any]:
    sanitizer = _sanitizer()
    if sanitizer is None:
        return {"status": LEFT_OUT, "reason": "compute-sanitizer was not found; it comes with the CUDA toolkit"}
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", str(program(context)), "--here", *beginnings]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace",
                            env=os.environ | {"DIPENGINE_SILICON_EXACT": "1"})
    said = result.stdout + result.stderr
    print(said, flush=True)
    return judge(said, result.returncode)


def _sanitizer() -> str | None:
    """On the PATH, or beside the compiler."""
    compiler = gpu.nvcc()
    folders = [os.environ.get("PATH", os.defpath), *([str(Path(compiler).resolve().parent)] if compiler else [])]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def judge(said: str, code: int) -> dict[str, Any]:
    """What the checker said and how it ended, as a result."""
    if re.search(r"Device not supported|device is not supported", said, re.IGNORECASE):
        return {"status": LEFT_OUT, "reason": "compute-sanitizer does not support this device here"}
    tests = re.search(r"^(\d+) tests, (\d+) failed$", said, re.MULTILINE)
    found: dict[str, Any] = {"tests": int(tests.group(1)) if tests else None}
    errors = re.search(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", said)
    found["errors"] = int(errors.group(1) or errors.group(2)) if errors else None
    if code == 0 and tests and tests.group(2) == "0" and found["errors"] == 0:
        return found | {"status": PASSED}
    found["said"] = [line for line in said.splitlines() if line.startswith("=========") or "FAILED" in line][:60]
    if errors is None or tests is None:
        return found | {"status": FAILED, "reason": f"the checker ended with status {code} and no summary"}
    return found | {"status": FAILED, "reason": f"{found['errors']} errors, {tests.group(2)} of {tests.group(1)} tests failed"}


STEPS = [Step(name, lambda context, tool=tool, beginnings=beginnings: check(context, tool, beginnings), limit / 4, limit)
         for name, tool, beginnings, limit in RUNS]
