"""ONNX Runtime's execution providers: which are asked for, with which options, and what a session really got.

The runtime never fails because a provider cannot run: it takes the next. So a session is asked afterwards.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import subprocess
from collections.abc import Sequence
from typing import Any

from dipengine.errors import DependencyError, DeviceError, InputError
from dipengine.rendering.cache import engine_folder

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
BEHIND = {"cpu": (), "cuda": ("cpu",), "tensorrt": ("cuda", "cpu")}  # what runs what a provider cannot


def runtime() -> Any:
    """The onnxruntime module. Raises DependencyError where it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError('Rendering needs ONNX Runtime; install it with: pip install "dipengine[render]"') from error
    return onnxruntime


def chosen(ort: Any, provider: str) -> tuple[str, ...]:
    """The providers to ask for, by our names: the wanted one and those behind it.

    "auto" is CUDA where this build has it, else the CPU: TensorRT builds engines for minutes, which nobody asked for. Raises
    InputError for another name, DeviceError for a provider that this build lacks.
    """
    if provider != "auto" and provider not in PROVIDERS:
        raise InputError(f"There is no provider {provider!r}; choose auto, {', '.join(PROVIDERS)}.")
    there = ort.get_available_providers()
    if provider == "auto":
        provider = "cuda" if PROVIDERS["cuda"] in there else "cpu"
    if PROVIDERS[provider] not in there:
        raise DeviceError(f"This ONNX Runtime has no provider {provider} (it has: {', '.join(map(short, there))}); install "
                          f'"dipengine[gpu]" or use --provider cpu.')
    return (provider, *(name for name in BEHIND[provider] if PROVIDERS[name] in there))


def options(name: str, model: bytes, *, precision: str, version: str, replay: bool, device: int = 0) -> dict[str, str]:
    """What a provider is told. replay: capture the network as a CUDA graph, whose inputs and outputs keep their places.

    Raises OutputError where TensorRT's engines cannot be kept safely.
    """
    if name == "cuda":
        # TF32 keeps 10 bits: a region would no longer have the pixels of the whole to 1e-5.
        return {"device_id": str(device), "use_tf32": "0", "enable_cuda_graph": str(int(replay))}
    if name == "tensorrt":
        folder = str(engine_folder(model, gpu_name(device), version))
        return {
            "device_id": str(device),
            "trt_engine_cache_enable": "1", "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1", "trt_timing_cache_path": folder,
            "trt_fp16_enable": str(int(precision == "fp16")),
            "trt_cuda_graph_enable": str(int(replay)),
        }
    return {}


def session(ort: Any, model: bytes, wanted: Sequence[tuple[str, dict[str, str]]], threads: int) -> Any:
    """A session over our names with their options. Raises what the runtime raises."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3  # its warnings speak of z and crop, which are inputs on purpose
    settings.intra_op_num_threads = threads
    providers = [(PROVIDERS[name], given) if given else PROVIDERS[name] for name, given in wanted]
    # Where a provider cannot run it prints, on both streams, what the caller says in one sentence.
    ort.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if wanted[0][0] != "cpu" and hasattr(ort, "preload_dlls"):
                ort.preload_dlls()  # CUDA and cuDNN from NVIDIA's wheels or PyTorch's, where they are installed
            if wanted[0][0] == "tensorrt":
                with contextlib.suppress(ImportError, OSError):
                    importlib.import_module("tensorrt")  # its wheel loads the libraries that the provider looks for
            opened = ort.InferenceSession(model, settings, providers=providers)
    finally:
        ort.set_default_logger_severity(2)
    opened.disable_fallback()  # a provider that fails later is an error, not a slower one
    return opened


def got(opened: Any) -> str:
    """The provider that a session really runs on first, by our name."""
    return short(opened.get_providers()[0])


def fallback(wanted: str, found: str) -> str:
    """The sentence that says so; empty where the wish was granted."""
    if wanted == found:
        return ""
    remedy = {"cuda": "a driver, CUDA and cuDNN for this onnxruntime-gpu", "tensorrt": "TensorRT's libraries from NVIDIA's index"}
    return f"ONNX Runtime could not use {wanted} and paints on {found}; {wanted} needs {remedy.get(wanted, 'another build of it')}."


def gpu_name(device: int) -> str:
    """Name and driver of a GPU, as its tool states them: engines serve no other."""
    query = ["nvidia-smi", f"--id={device}", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def short(provider: str) -> str:
    """Our name of one of the runtime's."""
    return next((name for name, full in PROVIDERS.items() if full == provider), provider)
