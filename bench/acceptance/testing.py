"""Part "tests": the emulator's own tests on the GPU (each kernel against plain loops and the CPU's ops, whole iterations against the
plan on a CPU, fits in company against fits alone), and the tests in Python that are marked `gpu`, all their files at once. Part "smoke":
a few of the first, for what is wrong everywhere to be known within a minute."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acceptance.step import BAD, CRASHED, CUT_OFF, FAILED, LEFT_OUT, PASSED, ROOT, Context, Step, without_overlap

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
    found["said"] = _of_failures(said)
    if code in (0, 1) and failed:
        return found | {"status": FAILED, "reason": f"{len(failed)} of {len(passed) + len(failed)} failed, first {failed[0]}"}
    last = found["said"][-1].strip() if found["said"] else "nothing said"
    return found | {"status": CRASHED, "reason": f"ended with status {code} behind {passed[-1] if passed else 'no test'}: {last}"[:300]}


_LINES = 14  # that are kept of a test that failed: its first, which name the first difference


def _of_failures(said: str) -> list[str]:
    """What was said of each test that failed, and at the end."""
    kept: list[str] = []
    own: list[str] = []
    for line in said.splitlines():
        if line.startswith("passed "):
            own = []
        elif line.startswith("FAILED "):
            kept += [*own[:_LINES], line]
            own = []
        else:
            own.append(line)
    return (kept + own[-_LINES:])[:300]


def files_with_gpu_tests(tests: Path = ROOT / "tests") -> list[Path]:
    return [path for path in sorted(tests.glob("test_*.py")) if re.search(r"mark\.gpu\b", path.read_text())
            and not path.name.startswith("test_gpu_acceptance")]


def python(context: Context, paths: list[Path], seconds: float) -> dict[str, Any]:
    """All files at the same time, each in a process of its own, which has so many seconds. "files" has the result of each."""
    began, running, files = time.monotonic(), {}, {}
    folder = context.folder / "pytest"
    folder.mkdir(exist_ok=True)
    for path in paths:
        report, log = folder / f"{path.stem}.xml", folder / f"{path.stem}.txt"
        report.unlink(missing_ok=True)
        with log.open("wb") as file:
            running[path.stem] = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}",
                 str(path)], cwd=ROOT, env=context.environment(), stdout=file, stderr=subprocess.STDOUT)
    for name, process in running.items():
        try:
            code = process.wait(max(0.1, began + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
            files[name] = {"status": CUT_OFF, "reason": f"took more than {seconds:.0f} s", "passed": 0, "failed": [], "skipped": []}
        report, log = folder / f"{name}.xml", folder / f"{name}.txt"
        print(f"==== {name}", log.read_text(errors="replace"), sep="\n", flush=True)
        if name not in files:
            reason = f"pytest ended with status {code} and no report"
            crash = {"status": CRASHED, "reason": reason, "passed": 0, "failed": [], "skipped": []}
            files[name] = judge_report(report.read_text()) if report.exists() else crash
    return judge_files(files)


def judge_files(files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The results of several files as one."""
    found: dict[str, Any] = {"passed": sum(result["passed"] for result in files.values()), "files": files}
    bad = [f"{name}: {result['reason']}" for name, result in files.items() if result["status"] in (*BAD, CUT_OFF)]
    if bad:
        return found | {"status": FAILED, "reason": "; ".join(bad)[:300]}
    if found["passed"] == 0:
        reasons = [result["reason"] for result in files.values()]
        return found | {"status": LEFT_OUT, "reason": reasons[0] if reasons else "there are no such tests"}
    return found | {"status": PASSED}


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


def _program_step(name: str, beginnings: tuple[str, ...]) -> Step:
    return Step(name, lambda context: run_program(context, beginnings), 5, 300 if name in ("conv", "fits") else 120)


_FIT = ("fit_step_by_step", "fit_in_company")


def smoke_fit(context: Context) -> dict[str, Any]:
    """Whether a fit is right; where it is not, whether it is while no launch begins before another's end. Then "overlap" is False, and all
    that follows does without (Context): a GPU may be there for minutes, and what does not hang on it is to be known."""
    found = run_program(context, _FIT)
    if found["status"] == PASSED or os.environ.get("DIPENGINE_CUDA_OVERLAP") == "0":
        return found
    with without_overlap():
        apart = run_program(context, _FIT)
    return apart | {"overlap": False, "with_overlap": found} if apart["status"] == PASSED else found


def smoke_overlap(context: Context) -> dict[str, Any]:
    if (context.result("smoke", "fit") or {}).get("overlap") is False:
        return {"status": FAILED, "reason": "fits are right only with DIPENGINE_CUDA_OVERLAP=0, with which everything here was done"}
    return {"status": PASSED}


PYTHON_SECONDS = 240.0
PYTHON = Step("python", lambda context: python(context, files_with_gpu_tests(), PYTHON_SECONDS), 60, PYTHON_SECONDS + 20)
STEPS = [*(_program_step(name, asked.beginnings) for name, asked in PROGRAMS.items()), PYTHON]
SMOKE = [_program_step("kernels", ("golden_", "test_philox.cpp/", "test_iteration.cpp/", "test_conv.cpp/conv_nearest_with_skip")),
         Step("fit", smoke_fit, 5, 240), Step("overlap", smoke_overlap, 1, 10)]
