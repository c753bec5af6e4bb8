"""Part "tests": the emulator's own tests on the GPU (each kernel against plain loops and the CPU's ops, whole iterations against the
plan on a CPU, fits in company against fits alone), and the tests in Python that are marked `gpu`."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acceptance.step import CRASHED, FAILED, LEFT_OUT, PASSED, ROOT, Context, Step

EMULATOR = ROOT / "tests/emulator"


@dataclass(frozen=True)
class Program:
    """A part of the test program: the beginnings of its tests' names, and the folder of csrc whose sources they run."""

    beginnings: tuple[str, ...]
    folder: str | None = None


def folder_of_tests(name: str) -> str:
    """test_conv.cpp and test_conv_mean.cpp are of ops/conv; what is no op's is the fit's."""
    ops = [op.name for op in (ROOT / "csrc/ops").iterdir() if name == op.name or name.startswith(f"{op.name}_")]
    return f"ops/{max(ops, key=len)}" if ops else "fit"


def _programs() -> dict[str, Program]:
    scenarios = [path for path in sorted(EMULATOR.glob("test_*.cpp")) if "\nSCENARIO(" in path.read_text()]
    of_files = {(name := path.stem.removeprefix("test_")): Program((f"{path.name}/",), folder_of_tests(name)) for path in scenarios}
    return {"layouts": Program(("golden_", "sums_of_products")), **of_files, "fits": Program(("fit_",))}


PROGRAMS = _programs()


def program(context: Context) -> Path:
    return context.build / "tests/silicon/dipengine_silicon_tests"


def run_program(context: Context, beginnings: tuple[str, ...]) -> dict[str, Any]:
    result = subprocess.run([program(context), *beginnings], capture_output=True, text=True, errors="replace")
    print(result.stdout + result.stderr, flush=True)
    return judge(result.stdout, result.returncode)


def judge(said: str, code: int) -> dict[str, Any]:
    """What the test program said and how it ended, as a result."""
    passed = re.findall(r"^passed (\S+)$", said, re.MULTILINE)
    failed = re.findall(r"^FAILED (\S+)$", said, re.MULTILINE)
    found = {"passed": len(passed), "failed": failed}
    if code == 0 and passed and not failed:
        return found | {"status": PASSED}
    found["said"] = [line for line in said.splitlines() if not line.startswith("passed ")][-60:]
    if code in (0, 1) and failed:
        return found | {"status": FAILED, "reason": f"{len(failed)} of {len(passed) + len(failed)} failed, first {failed[0]}"}
    last = found["said"][-1].strip() if found["said"] else "nothing said"
    return found | {"status": CRASHED, "reason": f"ended with status {code} behind {passed[-1] if passed else 'no test'}: {last}"[:300]}


def files_with_gpu_tests(tests: Path = ROOT / "tests") -> list[Path]:
    return [path for path in sorted(tests.glob("test_*.py")) if re.search(r"mark\.gpu\b", path.read_text())
            and path.name != "test_gpu_acceptance.py"]


def python(context: Context, path: Path) -> dict[str, Any]:
    report = context.folder / f"{path.stem}.xml"
    report.unlink(missing_ok=True)
    subprocess.call([sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider", f"--junitxml={report}", str(path)],
                    cwd=ROOT, env=context.environment())
    if not report.exists():
        return {"status": CRASHED, "reason": "pytest wrote no report; see the log"}
    return judge_report(report.read_text())


def judge_report(xml: str) -> dict[str, Any]:
    """A report of pytest's as a result. A file that cannot be imported for want of a package is left out, as its tests would be."""
    counts: Counter[str] = Counter()
    failed, skipped = [], []
    for case in ElementTree.fromstring(xml).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}".lstrip(":")
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        if outcome is None:
            counts["passed"] += 1
            continue
        text = f"{outcome.get('message') or ''} {outcome.text or ''}"
        lacking = re.search(r"(?:ModuleNotFoundError|DependencyError): (.+)", text)
        if outcome.tag == "skipped" or (outcome.tag == "error" and lacking):
            skipped.append(f"{name}: {(lacking.group(1) if lacking else outcome.get('message') or '').strip()}")
        else:
            failed.append(f"{name}: {(outcome.get('message') or '').strip().splitlines()[0][:200] if outcome.get('message') else ''}")
    found = {"passed": counts["passed"], "failed": failed, "skipped": skipped}
    if failed:
        return found | {"status": FAILED, "reason": f"{len(failed)} failed, first {failed[0]}"[:300]}
    if not counts["passed"]:
        return found | {"status": LEFT_OUT, "reason": skipped[0][:300] if skipped else "it has no test that could run"}
    return found | {"status": PASSED}


def _program_step(name: str, asked: Program) -> Step:
    limit = 400 if name in ("conv", "fits") else 120
    return Step(name, lambda context: run_program(context, asked.beginnings), 10, limit)


def _python_step(path: Path) -> Step:
    return Step(path.stem, lambda context: python(context, path), 20, 400)


STEPS = [*(_program_step(name, asked) for name, asked in PROGRAMS.items()),
         *(_python_step(path) for path in files_with_gpu_tests())]
