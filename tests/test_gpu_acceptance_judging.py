"""How `make gpu-acceptance` judges what programs say: tests, the memory checker, builds, the GPU itself. On a CPU."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "bench/acceptance").exists():
    pytest.skip("needs the source tree", allow_module_level=True)
sys.path.insert(0, str(ROOT / "bench"))

from acceptance import building, checking, gpu, iterations, report, testing  # noqa: E402
from acceptance.step import Context  # noqa: E402


def test_the_test_program_is_judged_by_what_it_says_and_how_it_ends():
    judge = testing.judge
    assert judge("passed a\npassed b\n2 tests, 0 failed\n", 0) == {"passed": 2, "failed": [], "status": "passed"}
    found = judge("passed a\n    sums[3] is 1 where 2 is expected\nFAILED b\n2 tests, 1 failed\n", 1)
    assert found["status"] == "failed" and found["reason"] == "1 of 2 failed, first b"
    assert found["said"][0] == "    sums[3] is 1 where 2 is expected"
    found = judge("passed a\nABORTED Giving a test's memory back: an illegal memory access was encountered\n", 3)
    assert found["status"] == "crashed"
    assert found["reason"] == "ended with status 3 behind a: ABORTED Giving a test's memory back: an illegal memory access was encountered"
    said = "".join(f"    line {i}\n" for i in range(40)) + "FAILED a\npassed b\n    c is 1 where 2 is expected\n    ended its process by signal 11\nFAILED c\n"
    found = judge(f"{said}3 tests, 2 failed\n", 1)
    assert found["status"] == "failed" and found["failed"] == ["a", "c"] and len(found["said"]) < 20
    assert found["said"][0] == "    line 0" and "    ended its process by signal 11" in found["said"]
    assert judge("0 tests, 0 failed\n", 1)["status"] == "crashed"
    assert judge("", -11)["status"] == "crashed"


def test_a_report_of_pytest_is_judged():
    case = '<testcase classname="t" name="{}">{}</testcase>'
    lacking = case.format("", '<error message="collection failure">E   ModuleNotFoundError: No module named \'pyvips\'</error>')
    skipped = case.format("s", '<skipped message="needs CuPy"/>')
    failed = case.format("f", '<failure message="AssertionError: off">trace</failure>')

    def judge(*cases):
        return testing.judge_report(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")

    assert judge(case.format("a", ""), skipped)["status"] == "passed"
    found = judge(case.format("a", ""), failed)
    assert found["status"] == "failed" and found["reason"] == "1 failed, first t::f: AssertionError: off"
    found = judge(lacking)
    assert found["status"] == "left out" and "No module named 'pyvips'" in found["reason"]
    assert judge(case.format("x", '<error message="boom">ZeroDivisionError</error>'))["status"] == "failed"
    assert judge()["status"] == "left out"


def test_files_of_pytest_are_judged_together():
    passed, left_out = {"status": "passed", "passed": 3}, {"status": "left out", "passed": 0, "reason": "no GPU"}
    assert testing.judge_files({"a": passed, "b": left_out}) == {"status": "passed", "passed": 3, "files": {"a": passed, "b": left_out}}
    cut_off = {"status": "cut off", "passed": 0, "reason": "took more than 5 s"}
    found = testing.judge_files({"a": passed, "b": cut_off})
    assert found["status"] == "failed" and found["reason"] == "b: took more than 5 s" and found["passed"] == 3
    assert testing.judge_files({"b": left_out})["status"] == "left out"


@pytest.mark.slow
def test_a_fit_that_is_right_without_overlap_alone_lets_the_rest_do_without(monkeypatch, tmp_path):
    monkeypatch.setenv("DIPENGINE_CUDA_OVERLAP", "1")  # so that it is put back
    monkeypatch.delenv("DIPENGINE_CUDA_OVERLAP")
    seen, rights = [], set()

    def run(context, beginnings):
        seen.append(os.environ.get("DIPENGINE_CUDA_OVERLAP"))
        return {"status": "passed" if seen[-1] in rights else "failed"}

    monkeypatch.setattr(testing, "run_program", run)
    results = {}
    context = Context(tmp_path, lambda part, name: results.get((part, name)))
    for right, status, overlap in ((set(), "failed", None), ({None, "0"}, "passed", None), ({"0"}, "passed", False)):
        rights = right
        results["smoke", "fit"] = testing.smoke_fit(context)
        assert results["smoke", "fit"]["status"] == status and results["smoke", "fit"].get("overlap") is overlap
        assert (testing.smoke_overlap(context)["status"] == "failed") == (overlap is False)
        assert os.environ.get("DIPENGINE_CUDA_OVERLAP") is None
    assert seen == [None, "0", None, None, "0"]
    Context(tmp_path, context.result)  # of the next step, or call
    assert os.environ["DIPENGINE_CUDA_OVERLAP"] == "0"


def test_files_of_pytest_run_at_once_and_one_that_hangs_costs_itself_alone(tmp_path):
    for name, body in (("good", "pass"), ("wrong", "assert False"), ("hung", "import time; time.sleep(600)"), ("gone", "import os; os._exit(3)")):
        (tmp_path / f"test_{name}.py").write_text(f"import pytest\n@pytest.mark.gpu\ndef test_it():\n    {body}\n")
    context = Context(tmp_path, lambda part, name: None)
    began = time.monotonic()
    found = testing.python(context, sorted(tmp_path.glob("test_*.py")), 25)
    assert time.monotonic() - began < 60 and found["status"] == "failed" and found["passed"] == 1
    assert {name: result["status"] for name, result in found["files"].items()} == {
        "test_good": "passed", "test_wrong": "failed", "test_hung": "cut off", "test_gone": "crashed"}


def test_the_checker_is_judged_by_its_summary_and_not_by_the_tests_alone():
    judge = checking.judge
    clean = "passed x\n1 tests, 0 failed\n========= ERROR SUMMARY: 0 errors\n"
    assert judge(clean, 0) == {"tests": 1, "errors": 0, "status": "passed"}
    found = judge("========= Invalid __global__ write of size 4 bytes\n1 tests, 0 failed\n========= ERROR SUMMARY: 3 errors\n", 9)
    assert found["status"] == "failed" and found["reason"] == "3 errors, 0 of 1 tests failed" and found["said"][0].endswith("4 bytes")
    race = "1 tests, 0 failed\n========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n"
    assert judge(race, 9)["status"] == "failed"
    assert judge(race.replace("2", "0"), 0)["status"] == "passed"
    assert judge("1 tests, 0 failed\n", 0)["status"] == "failed"  # nothing looked at it
    assert judge("========= Error: Device not supported. Please refer to the documentation\n", 1)["status"] == "left out"


def test_without_the_checker_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = checking.check(None, "memcheck", [])
    assert found["status"] == "left out" and found["reason"].startswith("compute-sanitizer was not found")


def test_a_gpu_is_named_after_its_card():
    names = {"NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100_80gb_hbm3", "NVIDIA GeForce RTX 4090": "rtx_4090", "Tesla T4": "t4"}
    assert {name: gpu.slug(name) for name in names} == names


NVIDIA_SMI = """#!/bin/sh
case "$*" in *{unknown}*) echo 'Field is not a valid field to query.'; exit 2;; esac
case "$*" in *mig*) echo 'NVIDIA H200, 580.159.03, 9.0, 143771, 345, 3201, 1980, 3201, 700.00, 31, P0, Disabled';;
*) echo 'NVIDIA H200, 580.159.03, 9.0, 143771';; esac
"""


@pytest.mark.parametrize(("unknown", "clock"), [("nothing", "1980"), ("mig.mode", "unknown")])
def test_a_gpu_is_asked_for_what_it_is(tmp_path, monkeypatch, unknown, clock):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(NVIDIA_SMI.format(unknown=unknown))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = gpu.query()
    assert (found["name"], found["compute_capability"], found["max_sm_clock_mhz"]) == ("NVIDIA H200", "9.0", clock)
    tool.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(RuntimeError, match="nvidia-smi failed"):
        gpu.query()


@pytest.mark.parametrize(("visible", "asked"), [(None, "0"), ("", "0"), ("2,0", "2"), ("GPU-12ab", "GPU-12ab"), ("MIG-7", "0")])
def test_the_gpu_that_is_asked_is_cudas_first(tmp_path, monkeypatch, visible, asked):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\ntest "$2" = {asked} || exit 9\necho NVIDIA H200, 580, 9.0, 143771, 1, 1, 1, 1, 1, 1, P0, Disabled\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu.query()["name"] == "NVIDIA H200"
    assert Context(tmp_path, lambda part, name: None).environment()["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_build_by_another_compiler_or_for_another_python_begins_anew(tmp_path, monkeypatch):
    context = Context(tmp_path, lambda part, name: None)
    software = {"nvcc": "12.8.61", "python": "3.11.7", "torch": "2.9.0"}
    for change, stays in (({}, False), ({"torch": "2.13.0"}, True), ({"nvcc": "13.0.48"}, False), ({"python": "3.12.1"}, False)):
        monkeypatch.setattr(gpu, "software", lambda change=change: software | change)
        context.build.mkdir(exist_ok=True)
        (context.build / "CMakeCache.txt").touch()
        building._begin_build(context)
        assert (context.build / "CMakeCache.txt").exists() == stays


def test_the_build_is_for_one_architecture_and_outside_of_the_sources(tmp_path):
    pytest.importorskip("pybind11")
    words = building.configuration(Context(tmp_path, lambda part, name: None), "9.0")
    assert {"-DCMAKE_CUDA_ARCHITECTURES=90-real", "-DDIPENGINE_CUDA=ON", "-DDIPENGINE_SILICON=ON"} <= set(words)
    assert f"-DDIPENGINE_MODULE_DIR={tmp_path}/package/dipengine" in words and words[3] == str(tmp_path / "build")


def test_every_test_file_of_the_emulator_runs_on_a_gpu_and_every_source_has_one():
    asked = [beginning for program in testing.PROGRAMS.values() for beginning in program.beginnings]
    for path in (ROOT / "tests/emulator").glob("test_*.cpp"):
        for kind, name in re.findall(r"^(SCENARIO|TEST)\((\w+)\)", path.read_text(), re.MULTILINE):
            if not name.startswith(("emulator_", "mutation_", "scenarios_", "plans_")):
                whole = f"{path.name}/{name}" if kind == "SCENARIO" else name
                assert sum(whole.startswith(beginning) for beginning in asked) == 1, whole
    listed = re.findall(r"csrc/(\S+)/(\w+)_cuda\.cu", (ROOT / "cmake/DipengineCuda.cmake").read_text())
    assert {folder for folder, _ in listed} == {program.folder for program in testing.PROGRAMS.values()} - {None}
    assert {name: report.folder_of(name) for _, name in listed} == {name: folder for folder, name in listed}
    assert testing.folder_of_tests("conv_mean") == "ops/conv" and testing.folder_of_tests("masked_mse") == "ops/masked_mse"
    assert ROOT / "tests/test_cuda_bindings.py" in testing.files_with_gpu_tests()


def test_the_order_names_steps_that_there_are_and_begins_with_what_breaks_everything():
    from acceptance import parts

    for part, names in parts.ORDER:
        assert set(names or ()) <= {step.name for step in parts.PARTS[part]}, part
    assert [part for part, _ in parts.ORDER[:2]] == ["build", "smoke"] and parts.ORDER[-2:] == [("compiled", None), ("restoration", None)]
    assert {part for part, names in parts.ORDER if names is None} == set(parts.PARTS)  # the whole of each, in the end
    compilers = [f"{size}-compiled" for size in iterations.SIZES] + ["compiled"]
    named = [step.name for part, names in parts.ORDER for step in parts.PARTS[part] if names is None or step.name in names]
    first = {name: named.index(name) for name in reversed(named)}
    assert min(first[name] for name in compilers) > max(at for name, at in first.items() if name not in compilers)  # minutes each
    steps = {f"{part}/{step.name}" for part, listed in parts.PARTS.items() for step in listed}
    assert set(parts.NEEDS) <= steps | set(parts.PARTS) and set(parts.NEEDS.values()) <= steps


def test_a_source_counts_as_run_when_all_tests_of_its_folder_have_passed():
    passed, kernels = {"status": "passed"}, {"conv_forward": "a", "conv_mean": "b", "norm": "c", "parts": "d"}
    results = {"build": {"doctor": passed | {"kernels": kernels}}, "tests": {"conv": passed, "norm": passed}}
    assert report.on_silicon(results) == {"norm": "c", "parts": "d"}  # test_conv_mean.cpp has not run
    results["tests"] |= dict.fromkeys(("conv_mean", "conv_head", "conv_operand"), passed)
    assert report.on_silicon(results) == kernels
    results["tests"]["norm"] = {"status": "crashed"}
    assert set(report.on_silicon(results)) == {"conv_forward", "conv_mean"}
    assert report.on_silicon({"build": {}, "tests": results["tests"]}) == {}
