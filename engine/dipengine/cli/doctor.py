"""`dipengine doctor`: what is built, what can run here, what is missing and the command that mends it."""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from dipengine._version import __version__
from dipengine.cli.reports import tell
from dipengine.kernels import backend


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is a command, or empty when nothing is missing."""

    what: str
    state: str
    remedy: str = ""


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("doctor", help="what is built, what can run here, and what is missing")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print the report; exit status 0 when a fit can run here, 1 when something that it needs is missing."""
    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        tell(f"{finding.what:<{width}}  {finding.state}")
        if finding.remedy:
            tell(f"{'':<{width}}  -> {finding.remedy}")
    return 0 if can_fit() else 1


def can_fit() -> bool:
    """True where an image can be read and a built-in task can run: by the native core, or by PyTorch in its place."""
    return (backend.native_available() or find_spec("torch") is not None) and find_spec("pyvips") is not None


def examine() -> list[Finding]:
    """All findings, in the order in which they are printed."""
    return [
        Finding("dipengine", f"{__version__}, Python {sys.version.split()[0]}"),
        *_native(),
        *_torch(),
        *_onnx_runtime(),
        _package("pyvips", "images (PNG, JPEG, WebP, TIFF)", 'pip install "pyvips[binary]"'),
        _package("astropy", "FITS", 'pip install "dipengine[astro]"'),
    ]


def _native() -> list[Finding]:
    if not backend.native_available():
        return [Finding("native core", f"not usable ({backend.native_error()})", backend.BUILD_COMMAND)]
    info = backend.build_info()
    built = ", ".join(info["instruction_sets_built"])
    return [
        Finding("native core", f"{info['version']}, ABI {info['abi_version']}, {info['compiler']}"),
        Finding("instruction set", f"{info['instruction_set']} chosen at run time (built: {built})"),
        Finding("CUDA kernels", cuda_kernels(info["cuda"], *backend.native.cuda_devices())),
        Finding("run on a GPU", on_silicon(info["cuda_manifest"])),
    ]


def cuda_kernels(built: str, devices: int, missing: str) -> str:
    """What CUDA kernels there are, from the build's words for them, and on how many devices they could run."""
    if built.startswith("none"):
        return built
    return f"{built}; {missing}" if missing else f"{built}; {devices} device{'' if devices == 1 else 's'}"


def on_silicon(manifest: str) -> str:
    """Which CUDA sources have run on a GPU since they last changed, from the core's manifest ("NAME HASH SILICON|...")."""
    sources = [entry.split() for entry in manifest.split("|")]
    never = [f"{name} ({now})" for name, now, then in sources if then == "none"]
    changed = [f"{name} ({now}, then {then})" for name, now, then in sources if then not in ("none", now)]
    ran = len(sources) - len(never) - len(changed)
    words = [f"{ran} of {len(sources)} CUDA sources as they are"]
    if changed:
        words.append("changed since: " + ", ".join(changed))
    if never:
        words.append("never: " + ", ".join(never))
    return "; ".join(words)


def _torch() -> list[Finding]:
    if find_spec("torch") is None:
        return [Finding("PyTorch", "not installed (custom operators, GPUs)", 'pip install "dipengine[cpu]"')]
    import torch

    found = [Finding("PyTorch", f"{torch.__version__}, {torch.get_num_threads()} CPU threads")]
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        found.append(Finding("GPU", names))
    elif torch.version.cuda:
        found.append(Finding("GPU", "PyTorch has CUDA but no device is usable", "nvidia-smi"))
    else:
        found.append(_cpu_build())
    return found


def _cpu_build() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "none found; this PyTorch is a CPU build")
    return Finding("GPU", "unused: this PyTorch is a CPU build", "pip uninstall -y torch && pip install torch")


def _onnx_runtime() -> list[Finding]:
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if not installed:
        return [Finding("ONNX Runtime", "not installed; rendering needs it", 'pip install "dipengine[render]"')]
    if len(installed) == 2:
        # Both wheels own one folder and the last installed wins, without a word from pip.
        return [
            Finding(
                "ONNX Runtime",
                "onnxruntime and onnxruntime-gpu are installed on top of each other",
                "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
            )
        ]
    import onnxruntime

    return [Finding("ONNX Runtime", f"{onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}")]


def _package(module: str, purpose: str, remedy: str, distribution: str | None = None) -> Finding:
    version = _version(distribution or module)
    if version and find_spec(module) is not None:
        return Finding(distribution or module, f"{version} ({purpose})")
    return Finding(distribution or module, f"not installed ({purpose})", remedy)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
