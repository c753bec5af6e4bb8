"""GPU providers: what the runtime is told and what it really gave, buffers that stay, the cache of engines.

Without a GPU a runtime stands in that claims the providers and runs on the CPU; tests marked `gpu` are the real thing.
"""

from __future__ import annotations

import os
import types

import numpy as np
import onnxruntime
import pytest
from conftest import skip_without_provider

import dipengine
from dipengine.cli.main import main
from dipengine.errors import DependencyError, DeviceError, OutputError
from dipengine.kernels import backend
from dipengine.rendering import cache, providers
from dipengine.rendering.bound import BoundPainting, fixed
from dipengine.rendering.renderer import Renderer

pytestmark = pytest.mark.skipif(not backend.native_available(), reason="needs the native core")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """nearest.onnx, an image of 70 x 53 pixels, deblurred: its window lies inside the canvas."""
    path = tmp_path_factory.mktemp("generators") / "nearest.onnx"
    image = np.random.default_rng(0).integers(0, 255, (53, 70, 3), dtype=np.uint8)
    result = dipengine.deblur(image, np.ones((3, 5)), levels=2, channels=8, iterations=4, stop="fixed", threads=1)
    result.export(path, enough=10)
    return path


@pytest.fixture
def claiming(monkeypatch, tmp_path):
    """A runtime that claims every provider: `given` is what a session reports, `opened` what sessions were told."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    claims = types.SimpleNamespace(given=None, opened=[], breaks_on_replay=False)

    class Session:
        def __init__(self, data, options, providers):
            self.asked = [entry if isinstance(entry, tuple) else (entry, {}) for entry in providers]
            self.replays = "1" in (self.asked[0][1].get("enable_cuda_graph"), self.asked[0][1].get("trt_cuda_graph_enable"))
            claims.opened.append(self.asked)
            print("EP Error: the runtime says on standard output that it falls back")
            self.real = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return [self.asked[0][0]] if claims.given is None else [providers.PROVIDERS[claims.given]]

        def run_with_iobinding(self, binding):
            if claims.breaks_on_replay and self.replays:
                raise RuntimeError("This session cannot use the graph capture feature.")
            self.real.run_with_iobinding(binding)

        def __getattr__(self, name):
            return getattr(self.real, name)

    on_host = types.SimpleNamespace(
        ortvalue_from_numpy=lambda array, device, number: onnxruntime.OrtValue.ortvalue_from_numpy(array),
        ortvalue_from_shape_and_type=lambda shape, kind, *place: onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind),
    )
    runtime = types.SimpleNamespace(
        __version__="1.99", set_default_logger_severity=onnxruntime.set_default_logger_severity, SessionOptions=onnxruntime.SessionOptions,
        InferenceSession=Session, OrtValue=on_host,
        get_available_providers=lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(providers, "runtime", lambda: runtime)
    return claims


# ---- what the runtime is told ---------------------------------------------------------------------------------------


def test_cuda_replays_the_whole_image_and_paints_regions_freely(model, claiming, capsys):
    renderer = Renderer(model, provider="cuda", strict=True)
    assert renderer.provider == "cuda" and renderer.replays and not renderer.notice
    (name, options), (last, _) = claiming.opened[0]
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1"}
    cpu = Renderer(model, provider="cpu").render()
    assert np.abs(renderer.render() - cpu).max() < 1e-5 and len(claiming.opened) == 2
    part = renderer.render((3, 5, 20, 10))
    assert np.abs(part - cpu[5:15, 3:23]).max() < 1e-5
    assert claiming.opened[2][0][1]["enable_cuda_graph"] == "0"
    assert capsys.readouterr().out == ""


def test_a_network_that_cannot_be_captured_is_painted_without_replay(model, claiming):
    claiming.breaks_on_replay = True
    renderer = Renderer(model, provider="cuda", strict=True)
    assert not renderer.replays and [asked[0][1]["enable_cuda_graph"] for asked in claiming.opened] == ["1", "0"]
    assert renderer.render().shape == (53, 70, 3)


def test_tensorrt_keeps_engines_and_timings_in_a_private_folder(model, claiming, monkeypatch):
    monkeypatch.setattr(providers, "gpu_name", lambda device: "NVIDIA H100, 9.0, 580.1")
    renderer = Renderer(model, provider="tensorrt", strict=True)
    (name, options), (second, _), (third, _) = claiming.opened[0]
    assert [name, second, third] == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    folder = options["trt_engine_cache_path"]
    assert options["trt_timing_cache_path"] == folder and options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
    assert options["trt_cuda_graph_enable"] == "1" and options["trt_fp16_enable"] == "0"
    assert folder.endswith("-NVIDIA_H100_9.0_580.1-1.99") and os.stat(folder).st_mode & 0o777 == 0o700
    renderer.render((0, 0, 4, 4))
    assert [name for name, _ in claiming.opened[-1]] == ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_silent_fallback_is_told_and_fails_under_strict(model, claiming, tmp_path, capsys, provider):
    claiming.given = "cpu"
    renderer = Renderer(model, provider=provider)
    assert renderer.provider == "cpu" and f"could not use {provider} and paints on cpu" in renderer.notice
    assert np.array_equal(renderer.render(), Renderer(model, provider="cpu").render())
    with pytest.raises(DeviceError, match=f"could not use {provider}"):
        Renderer(model, provider=provider, strict=True)
    words = ["render", str(model), "-o", str(tmp_path / "out.png"), "--provider", provider]
    assert main([*words, "--strict"]) == 2 and not (tmp_path / "out.png").exists()
    assert "could not use" in capsys.readouterr().err
    assert main(words) == 0
    assert capsys.readouterr().err.count("could not use") == 1


def test_tensorrt_that_gave_cuda_says_so(model, claiming):
    claiming.given = "cuda"
    renderer = Renderer(model, provider="tensorrt")
    assert renderer.provider == "cuda" and "paints on cuda" in renderer.notice and "NVIDIA's index" in renderer.notice


# ---- buffers --------------------------------------------------------------------------------------------------------


def test_the_fixed_graph_paints_the_whole_image_from_bound_buffers(model):
    renderer = Renderer(model, provider="cpu")
    opened = providers.session(onnxruntime, fixed(renderer.model), [("cpu", {})], 1)
    assert [value.name for value in opened.get_inputs()] == ["z"] and opened.get_outputs()[0].shape == [1, 3, 53, 70]
    painting = BoundPainting(onnxruntime, opened, renderer.model, "cpu")
    expected = renderer.render()
    first, second = painting.there(np), painting.there(np)
    assert np.abs(first - expected).max() < 1e-5 and np.array_equal(painting.host(), first)
    first[:] = 7
    assert not (second == 7).any() and first.flags.c_contiguous and first.shape == (53, 70, 3)


def test_images_leave_by_dlpack(model, claiming, monkeypatch):
    torch = pytest.importorskip("torch")
    renderer = Renderer(model, provider="cpu")
    assert np.array_equal(torch.from_dlpack(renderer.tensor()).numpy(), renderer.render())
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    with pytest.raises(DependencyError, match="CuPy"):
        Renderer(model, provider="cuda").tensor()
    monkeypatch.setitem(__import__("sys").modules, "cupy", np)
    there = Renderer(model, provider="cuda")
    assert np.abs(there.tensor() - renderer.render()).max() < 1e-5 and there.tensor((1, 2, 5, 3)).shape == (3, 5, 3)


# ---- the cache's folder ---------------------------------------------------------------------------------------------


def test_engines_of_another_model_gpu_or_runtime_lie_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = {cache.engine_folder(*key) for key in ((b"a", "H100", "1"), (b"b", "H100", "1"), (b"a", "H200", "1"), (b"a", "H100", "2"))}
    assert len(folders) == 4 and cache.engine_folder(b"a", "H100", "1") in folders
    assert cache.engine_folder(b"a", "../../x", "1").parent == tmp_path / "dipengine" / "tensorrt"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX")
@pytest.mark.parametrize("trap", ["open", "group", "link", "file", "others"])
def test_a_folder_that_others_may_have_written_is_refused(monkeypatch, tmp_path, trap):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache.engine_folder(b"a", "H100", "1")
    if trap in ("open", "group"):
        folder.chmod(0o777 if trap == "open" else 0o750)
    elif trap == "others":
        monkeypatch.setattr(os, "getuid", lambda: os.stat(folder).st_uid + 1)
    else:
        folder.rmdir()
        folder.symlink_to(tmp_path) if trap == "link" else folder.write_bytes(b"")
    with pytest.raises(OutputError, match="XDG_CACHE_HOME") as caught:
        cache.engine_folder(b"a", "H100", "1")
    assert "\n" not in str(caught.value)


def test_a_relative_cache_home_is_ignored(monkeypatch, tmp_path):
    from dipengine import environment

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert environment.cache_folder() == tmp_path / ".cache"


# ---- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_paints_what_the_cpu_paints(model, provider, tmp_path, monkeypatch):
    skip_without_provider(provider)
    import cupy
    import torch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    renderer, cpu = Renderer(model, provider=provider, strict=True), Renderer(model, provider="cpu").render()
    assert renderer.provider == provider
    limit = 1e-4 if provider == "cuda" else 5e-3  # TensorRT multiplies in TF32
    for _ in range(3):  # captured, then replayed
        assert np.abs(renderer.render() - cpu).max() < limit
    there = renderer.tensor()
    assert isinstance(there, cupy.ndarray) and np.abs(cupy.asnumpy(there) - cpu).max() < limit
    assert torch.from_dlpack(there).is_cuda
    assert np.abs(renderer.render((3, 5, 20, 10)) - cpu[5:15, 3:23]).max() < 1e-4
    if provider == "tensorrt":
        kept = list((tmp_path / "dipengine" / "tensorrt").glob("*/*"))
        assert any(path.suffix == ".engine" for path in kept)
        before = {path: path.stat().st_mtime_ns for path in kept if path.suffix == ".engine"}
        Renderer(model, provider=provider, strict=True)
        assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.gpu
def test_cuda_replays_a_graph(model):
    skip_without_provider("cuda")
    assert Renderer(model, provider="cuda", strict=True).replays
