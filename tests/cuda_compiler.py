"""What nvcc makes of the CUDA kernels: registers, spills and shared memory by kernel and architecture."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NVCC = shutil.which("nvcc")
SOURCES = sorted((ROOT / "csrc").rglob("*_cuda.cu"))
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-I", str(ROOT / "csrc"), "-I", str(ROOT / "csrc/include"))


def run(*command: object, **options) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def short_name(mangled: str) -> str:
    """`conv_forward_kernel<bf16,4,1,2,1>` of _ZN...19conv_forward_kernelINS_4cuda8Bfloat16ENS_8ConvTileILi4ELi1ELi2ELi1EEEE..."""
    name = re.search(r"\d+([a-z_]+_kernel)", mangled).group(1)
    arguments = [short for tag, short in (("Bfloat16", "bf16"), ("Float32", "float32")) if tag in mangled] + re.findall(r"Li(\d+)E", mangled)
    return name + (f"<{','.join(arguments)}>" if arguments else "")


def compile_kernels(folder: Path, architectures: tuple[int, ...], *more: str) -> dict[tuple[str, int], dict[str, int]]:
    """By (kernel, architecture): registers, stack, spill_stores, spill_loads and shared, static bytes. Objects are left in folder."""
    targets = [word for n in architectures for word in ("-gencode", f"arch=compute_{n},code=sm_{n}")]
    found = {}
    for source in SOURCES:
        log = run(NVCC, *FLAGS, *targets, *more, "--threads", os.cpu_count() or 1, "-Xptxas", "-v", "-c", source, "-o", folder / f"{source.stem}.o")
        for name, architecture, rest in re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'(.*?Used \d+ registers[^\n]*)", log, re.DOTALL):
            stack, stores, loads = map(int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", rest).groups())
            shared = re.search(r"(\d+) bytes smem", rest)
            found[short_name(name), int(architecture)] = {
                "registers": int(re.search(r"Used (\d+) registers", rest).group(1)), "stack": stack, "spill_stores": stores, "spill_loads": loads,
                "shared": int(shared.group(1)) if shared else 0,
            }
    return found
