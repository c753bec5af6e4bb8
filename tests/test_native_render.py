"""Painting in C and C++ hosts, built from the installed package, against the real ONNX Runtime of the Python package: the pixels are
those of `dipengine.Renderer`, to the bit; runtimes and files that are none are one sentence."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import dipengine
from conftest import synthetic_picture
from dipengine.export.exporter import value_record
from dipengine.export.onnx_format import KEY
from dipengine.images import ValueMap
from dipengine.kernels import backend
from dipengine.noise.anscombe import Anscombe
from dipengine.noise.sensor import Sensor
from native_builds import CMAKE, ROOT, build, run
from test_native_example import read_pnm
from test_rendering import LIES, changed

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs the source tree"),
    pytest.mark.skipif(CMAKE is None, reason='needs cmake: pip install "dipengine[test]"'),
    pytest.mark.skipif(not backend.native_available(), reason="needs the native core"),
]
UNSUPPORTED, OUT_OF_RESOURCES, INVALID = 13, 14, 11  # exit statuses of the test's host: 10 and the library's


@pytest.fixture(scope="module")
def runtime() -> Path:
    return next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.1*"))


@pytest.fixture(scope="module")
def host(prefix, tmp_path_factory) -> Path:
    return build(ROOT / "tests/cpp/host", tmp_path_factory.mktemp("host"), f"-DCMAKE_PREFIX_PATH={prefix}")


@pytest.fixture(scope="module")
def examples(prefix, tmp_path_factory) -> Path:
    return build(ROOT / "csrc/examples", tmp_path_factory.mktemp("examples"), f"-DCMAKE_PREFIX_PATH={prefix}")


QUICK = {"levels": 2, "channels": 8, "iterations": 4, "stop": "fixed", "threads": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder of generators of odd sizes: every kind and depth of z, stored and drawn, every precision and type of image."""
    folder = tmp_path_factory.mktemp("generators")
    colour = np.random.default_rng(0).integers(0, 255, (119, 150, 3), dtype=np.uint8)
    nearest = dipengine.denoise(colour, upsample="nearest", **QUICK)
    for name, options in {"nearest": {}, "seed": {"z": "seed"}, "half": {"precision": "fp16", "z": "seed"}, "int8": {"precision": "int8"},
                          "half_stored": {"precision": "fp16"}}.items():
        nearest.export(folder / f"{name}.onnx", enough=20, **options)
    dipengine.denoise(colour, upsample="bilinear", seed=2**63 + 5, **QUICK).export(folder / "bilinear.onnx", enough=20, z="seed")
    grey = np.random.default_rng(1).integers(0, 65535, (41, 53), dtype=np.uint16)
    dipengine.denoise(grey, **QUICK).export(folder / "sixteen.onnx", enough=10)
    floats = (synthetic_picture(37, 45)[:, :, :3] * 3 - 1).astype(np.float32)
    dipengine.denoise(floats, **QUICK).export(folder / "floats.onnx", enough=10)
    known = np.random.default_rng(2).random((119, 150)) > 0.3
    mesh = dipengine.inpaint(colour, known, recipe="hole", **QUICK)
    for z in ("stored", "seed"):
        mesh.export(folder / f"mesh_{z}.onnx", enough=10, z=z)
    dipengine.flash(colour[:60, :70], colour[:60, :70], **QUICK).export(folder / "guided.onnx", enough=10)
    for kind, top in (("uint8", 255), ("uint16", 65535), ("float32", 30000)):
        counts = np.random.default_rng(3).random((41, 53, 1)) * top
        sensor = {"noise": "poisson-gaussian", "data_term": "stabilised", "gain": 800 / top, "offset": top / 50, "read_noise": top / 300}
        dipengine.denoise(counts.astype(kind), **sensor, **QUICK).export(folder / f"stabilised_{kind}.onnx", enough=10)
    return folder


NAMES = ("nearest", "seed", "half", "half_stored", "int8", "bilinear", "sixteen", "floats", "mesh_stored", "mesh_seed", "guided",
         "stabilised_uint8", "stabilised_uint16", "stabilised_float32")


def painted(host: Path, runtime: Path, model: object, out: Path, kind: str, *more: object, **environment: str) -> np.ndarray:
    run(host / "host_render", runtime, model, out, kind, *more, **environment)
    return np.fromfile(out, np.float32 if kind in ("units", "at once") else kind)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_python_to_the_bit(host, runtime, files, tmp_path, name):
    path = files / f"{name}.onnx"
    python = dipengine.Renderer(path, provider="cpu", threads=2)
    whole, dtype = python.render(), np.dtype(python.model.about["dtype"])
    assert np.array_equal(painted(host, runtime, path, tmp_path / "raw", "units", 2), whole.ravel())
    for kind in ("uint8", "uint16", "float32", "float64"):
        expected = python.model.values.from_unit(whole, kind)
        assert np.array_equal(painted(host, runtime, path, tmp_path / "raw", kind, 2), expected.ravel())
        assert kind != dtype or np.array_equal(expected, python.image())
    height, width = python.size
    for region in ((0, 0, 1, 1), (width - 1, height - 1, 1, 1), (width // 2, 3, 7, 5), (1, height // 3, width - 2, 1), (0, 0, width, height)):
        part = painted(host, runtime, path, tmp_path / "raw", "units", 2, *region)
        assert np.array_equal(part, python.render(region).ravel()), region


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(),  # before `host` is built for it
                    reason="needs an ONNX Runtime with CUDAExecutionProvider: pip install onnxruntime-gpu")
@pytest.mark.parametrize("name", NAMES)
def test_pixels_on_a_gpu_are_those_of_python_to_the_bit(host, runtime, files, tmp_path, name):
    python = dipengine.Renderer(files / f"{name}.onnx", provider="cuda", strict=True)
    for region in ((), (5, 3, 11, 9)):
        part = painted(host, runtime, files / f"{name}.onnx", tmp_path / "raw", "units", 2, *region, RENDER_PROVIDER="cuda")
        assert np.array_equal(part, python.render(*([region] if region else [])).ravel()), region


CURVES = {  # gain, offset and read noise; low and high
    "below all light, where the table begins": (Sensor(1.0, 1000.0, 30.0), -1000.0, 122.0),
    "without read noise": (Sensor(0.7, 3.0), 0.0, 90.0),
    "across the table's end": (Sensor(3.0, 20.0, 1.1), 15.0, 255.0),
    "far beyond it": (Sensor(50.0, 0.0, 2.0), 1000.0, 60000.0),
    "read noise that the table hardly resolves": (Sensor(1.0, 0.0, 1e6), -1e6, 1e6),
}


@pytest.mark.parametrize("curve", CURVES)
def test_every_part_of_a_curve_is_python_to_the_bit(host, runtime, files, tmp_path, curve):
    sensor, low, high = CURVES[curve]
    values = ValueMap(low, high, Anscombe(sensor))
    path = tmp_path / "curved.onnx"
    path.write_bytes(changed(files, lambda model, about: about.update(values=value_record(values))))
    python = dipengine.Renderer(path, provider="cpu", threads=2)
    units = python.render()
    for kind in ("uint8", "uint16", "float32", "float64"):
        expected = python.model.values.from_unit(units, kind)
        assert np.array_equal(painted(host, runtime, path, tmp_path / "raw", kind, 2), expected.ravel())
        assert np.array_equal(expected, values.from_unit(units, kind))  # from the file as from the transform itself
    assert np.isfinite(expected).all() and np.unique(expected).size > 1000


def test_a_curve_without_its_inverse_is_painted_by_python_alone(host, runtime, files, tmp_path):
    """As earlier versions exported it."""
    import onnx

    path = tmp_path / "older.onnx"
    model = onnx.load(files / "stabilised_uint16.onnx")
    about = json.loads(model.metadata_props[0].value)
    del about["values"]["inverse"]
    onnx.helper.set_model_props(model, {KEY: json.dumps(about)})
    path.write_bytes(model.SerializeToString())
    older, newer = (dipengine.Renderer(name, provider="cpu", threads=2) for name in (path, files / "stabilised_uint16.onnx"))
    assert np.array_equal(older.image(), newer.image())
    assert np.array_equal(painted(host, runtime, path, tmp_path / "units", "units", 2), newer.render().ravel())
    result = run(host / "host_render", runtime, path, tmp_path / "raw", "uint16", 2, check=False)
    assert result.returncode == UNSUPPORTED and "export it again" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "raw").exists()


def test_the_model_may_be_bytes_and_threads_may_paint_at_once(host, runtime, files, tmp_path):
    python = dipengine.Renderer(files / "seed.onnx", provider="cpu", threads=1)
    assert np.array_equal(painted(host, runtime, f"@{files / 'seed.onnx'}", tmp_path / "raw", "units", 1), python.render().ravel())
    assert np.array_equal(painted(host, runtime, files / "seed.onnx", tmp_path / "raw", "at once", 1), python.render().ravel())
    told = run(host / "host_render", runtime, files / "seed.onnx", tmp_path / "raw", "units", 0).stdout.split()
    assert told == ["150", "119", "3", "uint8", "denoise", "cpu", onnxruntime.__version__]


def test_one_c_program_fits_and_paints(host, runtime, files, tmp_path):
    run(host / "host_c", runtime, files / "nearest.onnx", tmp_path / "raw")
    expected = dipengine.Renderer(files / "nearest.onnx", provider="cpu", threads=1).render()
    assert np.array_equal(np.fromfile(tmp_path / "raw", np.float32), expected.ravel())


# ---- runtimes -------------------------------------------------------------------------------------------------------


def refused(host: Path, runtime: object, model: object, out: Path, *more: object, status: int = INVALID) -> str:
    result = run(host / "host_render", runtime, model, out, "units", 1, *more, check=False)
    lines = result.stderr.strip().splitlines()
    assert result.returncode == status and len(lines) == 1 and lines[0].endswith("."), result
    assert not out.exists()
    return lines[0]


def library(folder: Path, name: str, source: str) -> Path:
    (folder / "source.c").write_text(source)
    run("cc", "-shared", "-fPIC", folder / "source.c", "-o", folder / name)
    return folder / name


def test_runtimes_that_are_none_are_one_sentence(host, files, tmp_path):
    model, out = files / "nearest.onnx", tmp_path / "raw"
    assert "cannot be opened" in refused(host, tmp_path / "absent.so", model, out)
    assert "cannot be opened" in refused(host, files / "nearest.onnx", model, out)
    assert "is no ONNX Runtime" in refused(host, library(tmp_path, "other.so", "int answer(void) { return 42; }"), model, out)
    api = """
static const char* version(void) { return "%s"; }
static const void* get(unsigned number) { return 0; }
struct base { const void* (*get)(unsigned); const char* (*version)(void); };
const struct base* OrtGetApiBase(void) { static const struct base it = { get, version }; return &it; }
"""
    for version in ("1.11.1", "0.9", "2.0.0", "none", "1.40.0"):  # the last one offers no interface that is known here
        fake = library(tmp_path, f"{version}.so", api % version)
        assert version in refused(host, fake, model, out, status=UNSUPPORTED)


def test_no_runtime_comes_from_the_working_directory_or_the_search_path(host, runtime, files, tmp_path, monkeypatch):
    shutil.copy(runtime, tmp_path / "libonnxruntime.so")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    for name in ("libonnxruntime.so", "./libonnxruntime.so", ""):
        assert "whole path" in refused(host, name, files / "nearest.onnx", tmp_path / "raw")
    run(host / "host_render", tmp_path / "libonnxruntime.so", files / "nearest.onnx", tmp_path / "raw", "units", 1)


# ---- files that lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", LIES)
def test_files_that_are_no_generators_are_one_error(host, runtime, files, tmp_path, lie):
    change, said = LIES[lie]
    (tmp_path / "lie.onnx").write_bytes(changed(files, change))
    status = OUT_OF_RESOURCES if lie == "terabytes" else INVALID
    sentence = refused(host, runtime, tmp_path / "lie.onnx", tmp_path / "raw", status=status)
    assert any(part in sentence for part in said.split("|")) and len(sentence) < 400


def test_no_weights_are_read_from_beside_the_model_or_the_working_directory(host, runtime, files, tmp_path, monkeypatch):
    """ONNX Runtime itself reads them from the working directory, even of a model that it is given as bytes."""
    import onnx

    model = onnx.load(files / "nearest.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    (tmp_path / "weights.bin").write_bytes(onnx.numpy_helper.to_array(tensor).tobytes())
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    (tmp_path / "beside.onnx").write_bytes(model.SerializeToString())
    monkeypatch.chdir(tmp_path)
    for name in ("beside.onnx", "@beside.onnx"):
        assert "another file" in refused(host, runtime, name, tmp_path / "raw")


def test_truncated_and_missing_files_are_one_error(host, runtime, files, tmp_path):
    data = (files / "nearest.onnx").read_bytes()
    for length in (0, 10, 5000, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.onnx").write_bytes(data[:length])
        refused(host, runtime, tmp_path / "cut.onnx", tmp_path / "raw")
    assert "does not exist" in refused(host, runtime, tmp_path / "absent.onnx", tmp_path / "raw")
    assert "is no file" in refused(host, runtime, tmp_path, tmp_path / "raw")
    with open(tmp_path / "large.onnx", "wb") as file:
        file.truncate(2**31)
    assert "2^31" in refused(host, runtime, tmp_path / "large.onnx", tmp_path / "raw")


def test_a_region_outside_the_image_is_refused(host, runtime, files, tmp_path):
    for region in ((-1, 0, 5, 5), (0, 0, 151, 5), (0, 0, 0, 5), (149, 0, 2, 1), (0, 0, 2**62, 2**62)):
        assert "150x119" in refused(host, runtime, files / "nearest.onnx", tmp_path / "raw", *region)


# ---- the example ----------------------------------------------------------------------------------------------------


def test_the_example_paints_what_python_paints(examples, runtime, files, tmp_path):
    out = tmp_path / "out.ppm"
    result = run(examples / "render", files / "seed.onnx", out, "--runtime", runtime)
    assert np.array_equal(read_pnm(out), dipengine.Renderer(files / "seed.onnx", provider="cpu").image())
    assert "150 x 119 pixels on cpu" in result.stderr and result.stdout == ""
    run(examples / "render", files / "nearest.onnx", out, "--runtime", runtime, "--region", "3,4,20,10", "--threads", "1")
    assert np.array_equal(read_pnm(out), dipengine.Renderer(files / "nearest.onnx", provider="cpu", threads=1).image((3, 4, 20, 10)))
    for name in ("sixteen", "stabilised_uint8", "stabilised_uint16"):
        run(examples / "render", files / f"{name}.onnx", out, "--runtime", runtime)
        assert np.array_equal(read_pnm(out), dipengine.Renderer(files / f"{name}.onnx", provider="cpu").image().squeeze())
    run(examples / "render", files / "floats.onnx", out, "--runtime", runtime)
    units = dipengine.Renderer(files / "floats.onnx", provider="cpu").render()
    assert np.array_equal(read_pnm(out), np.rint(units.astype(np.float64) * 65535))


def test_the_example_refuses_in_one_sentence_with_status_2(examples, runtime, files, tmp_path):
    model, out = files / "nearest.onnx", tmp_path / "out.ppm"
    cases = {
        "are needed": [model, out],
        "too many": [model, out, out, "--runtime", runtime],
        "value behind": [model, out, "--runtime"],
        "no option": [model, out, "--runtime", runtime, "--fast", "yes"],
        "give x,y,width,height": [model, out, "--runtime", runtime, "--region", "1,2,3"],
        "1 to 1024": [model, out, "--runtime", runtime, "--threads", "many"],
        "within the image": [model, out, "--runtime", runtime, "--region", "140,0,20,1"],
        "no provider 'npu'": [model, out, "--runtime", runtime, "--provider", "npu"],
        "whole path": [model, out, "--runtime", "libonnxruntime.so"],
        "cannot be written": [model, tmp_path / "absent" / "out.ppm", "--runtime", runtime],
    }
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        cases["no provider cuda"] = [model, out, "--runtime", runtime, "--provider", "cuda"]
    for sentence, words in cases.items():
        result = run(examples / "render", *words, check=False)
        lines = result.stderr.splitlines()
        assert result.returncode == 2 and len(lines) == 1 and sentence in lines[0] and lines[0].endswith("."), (sentence, result)
        assert result.stdout == "" and not out.exists()


def test_the_host_is_linked_with_neither_python_nor_a_runtime(examples):
    libraries = run("ldd", examples / "render").stdout.lower()
    assert "libdipengine.so" in libraries and "python" not in libraries and "onnx" not in libraries


def test_the_first_pixel_of_the_papers_network_comes_soon(host, runtime, tmp_path):
    """A cold process, 256x256, 128 channels: half a second is asked for on an idle machine of two cores; this bound is for busy ones."""
    image = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    paper = dipengine.denoise(image, iterations=1, stop="fixed")
    paper.export(tmp_path / "paper.onnx", enough=1, z="seed")
    command = (host / "host_render", runtime, tmp_path / "paper.onnx", tmp_path / "raw", "uint8", 0)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run(*command)
        seconds.append(time.perf_counter() - start)
    assert os.path.getsize(tmp_path / "raw") == 256 * 256 * 3
    assert min(seconds) < 3, seconds
