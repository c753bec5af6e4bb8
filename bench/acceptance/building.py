"""Part "build": the machine, and the engine built for its GPU alone, outside of the source tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

from acceptance import gpu
from acceptance.step import FAILED, PASSED, ROOT, Context, Step

PROGRAMS = ("dipengine_silicon_tests", "dipengine_ceilings")
TARGETS = ("_native", *PROGRAMS)


def machine(context: Context) -> dict[str, Any]:
    found = {"gpu": gpu.query(), **gpu.software()}
    if found["nvcc"] is None:
        return found | {"status": FAILED, "reason": "nvcc was not found; install the CUDA toolkit (12.8 or newer) or put it on the PATH"}
    if tuple(map(int, found["gpu"]["compute_capability"].split("."))) < (8, 0):
        return found | {"status": FAILED, "reason": "the kernels need a GPU of compute capability 8.0"}
    return found | {"status": PASSED}


def configuration(context: Context, capability: str, module: bool = True) -> list[str]:
    """CMake's arguments: for one architecture; module: with that for Python, into a copy of the package."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    return ["-S", str(ROOT), "-B", str(context.build), *generator, "-DCMAKE_BUILD_TYPE=Release", "-DDIPENGINE_CUDA=ON",
            f"-DCMAKE_CUDA_ARCHITECTURES={capability.replace('.', '')}-real",
            *([f"-DCMAKE_CUDA_COMPILER={compiler}"] if (compiler := gpu.nvcc()) else []), "-DDIPENGINE_SILICON=ON",
            f"-DDIPENGINE_PYTHON={'ON' if module else 'OFF'}",
            f"-DDIPENGINE_MODULE_DIR={context.package / 'dipengine'}", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={_pybind11()}"]


def compile_all(context: Context) -> dict[str, Any]:
    capability = context.result("build", "machine")["gpu"]["compute_capability"]
    package = context.package / "dipengine"
    _begin_build(context)
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "engine/dipengine", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    # Without Python's headers the programs can be built all the same, and what they find is most of it.
    module = next((module for module in (True, False) if _call("cmake", *configuration(context, capability, module))), None)
    if module is None:
        return {"status": FAILED, "reason": "cmake failed"}
    keep_going = ["-k", "0"] if (context.build / "build.ninja").exists() else ["-k"]
    built = _call("cmake", "--build", str(context.build), "--target", *(TARGETS if module else PROGRAMS), "--parallel",
                  str(os.cpu_count() or 1), "--", *keep_going)
    if not programs_built(context):
        return {"status": FAILED, "reason": "cmake --build failed"}
    found = {"status": PASSED, "architecture": capability}
    return found if built and module else found | {"reason": "the programs alone were built, not the Python module"}


def _begin_build(context: Context) -> None:
    """The folder of the build, empty where what lies there was made by another compiler or for another Python: CMake looks at them once."""
    found = gpu.software()
    by, mark = f"nvcc {found['nvcc']}, Python {found['python']}\n", context.build / "made_by.txt"
    if mark.exists() and mark.read_text() == by:
        return
    shutil.rmtree(context.build, ignore_errors=True)
    context.build.mkdir(parents=True)
    mark.write_text(by)


def _call(*command: str) -> bool:
    print(" ".join(command), flush=True)
    return subprocess.call(command) == 0


def programs_built(context: Context) -> bool:
    return all((context.build / "tests/silicon" / name).exists() for name in PROGRAMS)


def doctor(context: Context) -> dict[str, Any]:
    """What the built engine says of itself and of this machine. That something for images is missing is no matter here."""
    said = subprocess.run([sys.executable, "-m", "dipengine", "doctor"], capture_output=True, text=True, env=context.environment())
    print(said.stdout + said.stderr, flush=True)
    script = "import json; from dipengine.kernels import backend as b; print(json.dumps([b.build_info(), b.native.cuda_devices()]))"
    asked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=context.environment())
    if said.returncode not in (0, 1) or asked.returncode != 0:
        return {"status": FAILED, "reason": (asked.stderr.strip().splitlines() or ["doctor failed"])[-1]}
    info, (devices, missing) = json.loads(asked.stdout)
    kernels = {name: hash_ for name, hash_, _ in (entry.split() for entry in info["cuda_manifest"].split("|"))}
    found = {"doctor": said.stdout.splitlines(), "built": info["cuda"], "kernels": kernels}
    if devices == 0:
        return found | {"status": FAILED, "reason": missing}
    return found | {"status": PASSED}


def _pybind11() -> str:
    import pybind11

    return pybind11.get_cmake_dir()


def built(context: Context) -> bool:
    return programs_built(context) and any((context.package / "dipengine").glob("_native*.so"))


# A build that is cut off by the seconds of a call goes on where it was.
STEPS = [Step("machine", machine, 5, 60, needed=True), Step("compile", compile_all, 60, 3600, there=built, needed=True),
         Step("doctor", doctor, 10, 60)]
