"""The manifest of CUDA sources: what changes a hash and what does not, and what doctor makes of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from emulated import CMAKE

from dipengine.cli.doctor import cuda_kernels, on_silicon

ROOT = Path(__file__).resolve().parent.parent


def manifest(tree: Path) -> dict[str, tuple[str, str]]:
    """Name: (hash now, hash on silicon), as CMake finds them."""
    script = tree / "manifest.cmake"
    script.write_text(f"""cmake_minimum_required(VERSION 3.20)
set(PROJECT_SOURCE_DIR "{tree}")
set(DIPENGINE_CUDA_FLAGS -fmad=false)
set(DIPENGINE_CUDA_SOURCES csrc/ops/adam/adam_cuda.cu csrc/ops/philox/philox_cuda.cu)
macro(set_property)
endmacro()
include("{tree}/cmake/DipengineManifest.cmake")
message(NOTICE "${{DIPENGINE_KERNEL_MANIFEST}}")
""")
    result = subprocess.run([CMAKE, "-P", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return {name: (now, then) for name, now, then in (entry.split() for entry in result.stderr.strip().split("|"))}


def silicon(tree: Path, gpu: str, date: str, kernels: dict[str, str]) -> None:
    """A results file as bench/acceptance/report.py writes them, of a GPU that there is not."""
    path = tree / f"bench/results/{gpu}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"format": "dipengine GPU acceptance 1", "gpu": gpu, "date": date, "silicon": kernels, "kernels": {"adam": "e" * 16}}
    path.write_text(json.dumps(found, indent=1))


@pytest.mark.skipif(CMAKE is None, reason='needs cmake: pip install "dipengine[test]"')
@pytest.mark.skipif(not (ROOT / "cmake").exists(), reason="needs the source tree")
def test_a_hash_changes_with_source_headers_and_silicon_and_not_with_comments(tmp_path):
    for folder in ("csrc", "cmake"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    first = manifest(tmp_path)
    assert set(first) == {"adam", "philox"} and {then for _, then in first.values()} == {"none"}
    source = tmp_path / "csrc/ops/adam/adam_cuda.cu"
    source.write_text(source.read_text().replace("\n", "  // a remark\n", 1) + "\n\n/* another\n * one */\n")
    assert manifest(tmp_path) == first
    header = tmp_path / "csrc/ops/adam/adam_math.h"
    header.write_text(header.read_text().replace("double power = 1;", "double power = 2;"))
    second = manifest(tmp_path)
    assert second["adam"] != first["adam"] and second["philox"] == first["philox"]
    silicon(tmp_path, "h200", "2026-01-01", {"adam": first["adam"][0]})
    assert manifest(tmp_path) == {"adam": (second["adam"][0], first["adam"][0]), "philox": second["philox"]}


@pytest.mark.skipif(CMAKE is None, reason='needs cmake: pip install "dipengine[test]"')
@pytest.mark.skipif(not (ROOT / "cmake").exists(), reason="needs the source tree")
def test_the_last_run_on_any_gpu_counts_and_one_of_the_present_source_before_all(tmp_path):
    for folder in ("csrc", "cmake"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    now = {name: hash_ for name, (hash_, _) in manifest(tmp_path).items()}
    silicon(tmp_path, "a100", "2026-02-01", {"adam": "a" * 16, "philox": now["philox"]})
    silicon(tmp_path, "h200", "2026-01-01", {"adam": "b" * 16})
    (tmp_path / "bench/results/roofline_h200.json").write_text('{"measured": false, "silicon": {"adam": "cccccccccccccccc"}}')
    assert {name: then for name, (_, then) in manifest(tmp_path).items()} == {"adam": "a" * 16, "philox": now["philox"]}
    silicon(tmp_path, "l4", "2026-03-01", {"philox": "d" * 16})  # an older state on another GPU, later
    assert manifest(tmp_path)["philox"] == (now["philox"], now["philox"])


def test_doctor_tells_whether_the_kernels_can_run():
    assert cuda_kernels("none (built with DIPENGINE_CUDA=OFF)", 0, "Built without.") == "none (built with DIPENGINE_CUDA=OFF)"
    assert cuda_kernels("for 90 (nvcc 13.0.88)", 1, "") == "for 90 (nvcc 13.0.88); 1 device"
    assert cuda_kernels("for 90 (nvcc 13.0.88)", 0, "No driver.") == "for 90 (nvcc 13.0.88); No driver."


def test_doctor_tells_what_ran_what_changed_and_what_never_ran():
    said = on_silicon("adam aa aa|conv_forward bb cc|philox dd none")
    assert said == "1 of 3 CUDA sources as they are; changed since: conv_forward (bb, then cc); never: philox (dd)"


@pytest.mark.skipif(not (ROOT / "bench").exists(), reason="needs the source tree")
def test_the_readme_says_on_which_gpus_the_kernels_have_run():
    words = " ".join((ROOT / "README.md").read_text().split())
    found = [path for path in (ROOT / "bench/results").glob("*.json") if '"format": "dipengine GPU acceptance' in path.read_text()[:200]]
    assert ("on no GPU yet" in words) == (not found)
    for path in found:
        assert path.with_suffix(".md").name in words and path.with_suffix(".md").exists()
