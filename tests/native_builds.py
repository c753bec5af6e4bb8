"""Builds of the C++ core and of its hosts for tests: CMake found, run, and asked for its reasons when it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEARCH_PATH = os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)])
CMAKE = shutil.which("cmake", path=SEARCH_PATH)
CORES = str(os.cpu_count() or 1)

def run(*command: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=os.environ | {"PATH": SEARCH_PATH} | environment
    )
    assert not check or result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result


def configure(source: Path, build: Path, *options: str, check: bool = True, **environment: str):
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=SEARCH_PATH) else []
    return run(CMAKE, "-S", source, "-B", build, *generator, *options, check=check, **environment)


def build(source: Path, folder: Path, *options: str) -> Path:
    configure(source, folder, *options)
    run(CMAKE, "--build", folder, "--parallel", CORES)
    return folder
