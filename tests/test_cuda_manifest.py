"""The manifest of CUDA sources: what changes a hash and what does not, and what doctor makes of it."""

from __future__ import annotations

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
    silicon = tmp_path / "csrc/platform/cuda/silicon.txt"
    silicon.write_text(silicon.read_text() + f"adam {first['adam'][0]} H200 2026-01-01\n")
    assert manifest(tmp_path)["adam"] == (second["adam"][0], first["adam"][0])


def test_doctor_tells_whether_the_kernels_can_run():
    assert cuda_kernels("none (built with DIPENGINE_CUDA=OFF)", 0, "Built without.") == "none (built with DIPENGINE_CUDA=OFF)"
    assert cuda_kernels("for 90 (nvcc 13.0.88)", 1, "") == "for 90 (nvcc 13.0.88); 1 device"
    assert cuda_kernels("for 90 (nvcc 13.0.88)", 0, "No driver.") == "for 90 (nvcc 13.0.88); No driver."


def test_doctor_tells_what_ran_what_changed_and_what_never_ran():
    said = on_silicon("adam aa aa|conv_forward bb cc|philox dd none")
    assert said == "1 of 3 CUDA sources as they are; changed since: conv_forward (bb, then cc); never: philox (dd)"
