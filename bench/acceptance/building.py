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

TARGETS = ("_native", "dipengine_silicon_tests", "dipengine_ceilings")


def machine(context: Context) -> dict[str, Any]:
    found = {"gpu": gpu.query(), **gpu.software()}
    if found["nvcc"] is None:
        return found | {"status": FAILED, "reason": "nvcc was not found; install the CUDA toolkit (12.8 or newer) or put it on the PATH"}
    if tuple(map(int, found["gpu"]["compute_capability"].split("."))) < (8, 0):
        return found | {"status": FAILED, "reason": "the kernels need a GPU of compute capability 8.0"}
    return found | {"status": PASSED}


def configuration(context: Context, capability: str) -> list[str]:
    """CMake's arguments: for one architecture, the Python module into a copy of the package."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    return ["-S", str(ROOT), "-B", str(context.build), *generator, "-DCMAKE_BUILD_TYPE=Release", "-DDIPENGINE_CUDA=ON",
            f"-DCMAKE_CUDA_ARCHITECTURES={capability.replace('.', '')}", "-DDIPENGINE_SILICON=ON", "-DDIPENGINE_PYTHON=ON",
            f"-DDIPENGINE_MODULE_DIR={context.package / 'dipengine'}", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={_pybind11()}"]


def compile_all(context: Context) -> dict[str, Any]:
    capability = context.result("build", "machine")["gpu"]["compute_capability"]
    package = context.package / "dipengine"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "engine/dipengine", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for command in (["cmake", *configuration(context, capability)],
                    ["cmake", "--build", str(context.build), "--target", *TARGETS, "--parallel", str(os.cpu_count() or 1)]):
        print(" ".join(command), flush=True)
        if subprocess.call(command) != 0:
            return {"status": FAILED, "reason": f"{' '.join(command[:2])} failed"}
    return {"status": PASSED, "architecture": capability}


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
    programs = [context.build / "tests/silicon" / name for name in TARGETS[1:]]
    return all(path.exists() for path in programs) and any((context.package / "dipengine").glob("_native*.so"))


# A build that is cut off by the seconds of a call goes on where it was.
STEPS = [Step("machine", machine, 5, 60), Step("compile", compile_all, 60, 3600, there=built), Step("doctor", doctor, 10, 60)]
