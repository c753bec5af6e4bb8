"""Builds the Python package: setuptools for the Python files, CMake for the compiled module `dipengine._native`."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "engine/dipengine/_version.py").read_text()).group(1)

# The environment's own tools come last: in an isolated build, pip has put those of the build requirements first.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])


class BuildWithCMake(build_ext):
    """Configure and build CMakeLists.txt; the module goes where setuptools wants it (in place for an editable install).

    CMAKE_ARGS in the environment is passed on, for instance -DDIPENGINE_CUDA=ON.
    """

    def build_extension(self, ext: Extension) -> None:
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        module.parent.mkdir(parents=True, exist_ok=True)
        # A cache from an isolated build names tools in a folder that is gone.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        generator = ["-G", "Ninja"] if shutil.which("ninja", path=SEARCH_PATH) else []
        self._run([
            "cmake", "-S", str(ROOT), "-B", str(build), *generator, "-DDIPENGINE_PYTHON=ON",
            f"-DDIPENGINE_MODULE_DIR={module.parent}", f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}", *os.environ.get("CMAKE_ARGS", "").split(),
        ])
        self._run(["cmake", "--build", str(build), "--target", "_native", "--parallel", str(os.cpu_count() or 1)])

    def _run(self, command: list[str]) -> None:
        # Quiet unless it fails; then everything.
        tool = shutil.which(command[0], path=SEARCH_PATH)
        if tool is None:
            raise SystemExit(f"{command[0]} was not found; install it with: pip install cmake ninja pybind11")
        result = subprocess.run(
            [tool, *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PATH": SEARCH_PATH},
        )
        if result.returncode != 0:
            print(result.stdout, file=sys.stderr)
            raise SystemExit(f"Building the native core failed in: {' '.join(command)}")


FITTING = ["torch>=2.9", "onnx"]

setup(
    name="dipengine",
    version=VERSION,
    description="Deep image prior, fast enough to be a tool: denoising, super-resolution, inpainting with no training data",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "bindings/third_party/dlpack/README.md", "csrc/third_party/onnxruntime/LICENSE-onnxruntime"],
    python_requires=">=3.11",
    package_dir={"": "engine"},
    packages=find_packages("engine"),
    ext_modules=[Extension("dipengine._native", sources=[])],
    cmdclass={"build_ext": BuildWithCMake},
    entry_points={"console_scripts": ["dipengine = dipengine.cli.main:main"]},
    install_requires=["numpy>=1.26", "pillow>=10", "pyvips[binary]>=3.0", "safetensors>=0.4", "tifffile>=2023.1", "tqdm>=4.60"],
    extras_require={
        "cpu": [*FITTING, "onnxruntime"],
        "gpu": [*FITTING, "onnxruntime-gpu[cuda,cudnn]", "cupy-cuda13x"],
        "render": ["onnx", "onnxruntime"],
        "astro": ["astropy"],
        "test": ["pytest", "pytest-xdist>=3.7", "hypothesis", "array-api-strict>=2.3", "astropy", "pillow", "scikit-image>=0.22", "cmake", "ninja",
                 "pybind11", 'nvidia-cuda-cuobjdump; sys_platform == "linux"', 'nvidia-cuda-nvdisasm; sys_platform == "linux"'],
    },
    zip_safe=False,
)
