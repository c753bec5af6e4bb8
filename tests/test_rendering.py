"""Painting ONNX generators: regions and tiles against the whole, providers, the command line, files that lie."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from conftest import skip_without_provider
from onnx import TensorProto, helper

import dipengine
from dipengine import environment
from dipengine.cli.main import main
from dipengine.errors import DeviceError, InputError
from dipengine.export.exporter import value_record
from dipengine.export.onnx_format import KEY
from dipengine.generators.architecture import Hourglass
from dipengine.images import Image, ValueMap, read_image, write_image
from dipengine.kernels import backend
from dipengine.noise.anscombe import Anscombe
from dipengine.noise.sensor import Sensor
from dipengine.rendering.regions import halo, needed, window
from dipengine.rendering.renderer import Renderer

pytestmark = pytest.mark.skipif(not backend.native_available(), reason="needs the native core")


def run(*arguments) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        return leaving.code


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with nearest.onnx, bilinear.onnx (an image of 150 x 119 pixels, two levels) and a generator file."""
    folder = tmp_path_factory.mktemp("generators")
    image = np.random.default_rng(0).integers(0, 255, (119, 150, 3), dtype=np.uint8)
    for mode in ("nearest", "bilinear"):
        result = dipengine.denoise(image, levels=2, channels=8, iterations=4, stop="fixed", upsample=mode, threads=1)
        result.export(folder / f"{mode}.onnx", enough=20)
    result.generator.save(folder / "generator.safetensors")
    write_image(folder / "in.png", image[:40, :44], Image(image[:40, :44]))
    return folder


# ---- regions --------------------------------------------------------------------------------------------------------


def test_the_papers_network_reaches_as_far_as_the_design_says():
    assert halo(Hourglass.regular(5, upsample="nearest")) == 155 and halo(Hourglass.regular(5, upsample="bilinear")) == 186


@pytest.mark.parametrize("changes", [
    {}, {"upsample": "bilinear"}, {"kernel_down": 5}, {"downsample": "average"}, {"channels_skip": 0}, {"padding": "zero"},
])
def test_a_pixel_depends_on_no_more_than_its_window(changes):
    """Changing z outside the window leaves the pixel as it is; one pixel further in, it moves."""
    from dipengine.export.frozen import fold
    from dipengine.export.onnx_graph import generator_model
    from dipengine.generators.initial import initial_parameters

    import onnxruntime

    architecture = Hourglass.regular(2, channels=4, input_depth=2, **{"upsample": "nearest"} | changes)
    parameters = initial_parameters(architecture, 0)
    rng = np.random.default_rng(1)
    norms = (name for name in parameters if ".norm." in name)
    statistics = {name: rng.random(parameters[name].shape).astype(np.float32) * 0.1 + 0.01 for name in norms}
    side = 128
    z = rng.random((2, side, side), np.float32)
    model = generator_model(architecture, fold(architecture, parameters, statistics), code=z, code_scale=1.0, store_code=True,
                            window=(0, 0, side, side), producer_version="0")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    paint = lambda values: session.run(None, {"z": values[None]})[0]
    whole = paint(z)
    for place in (60, 61, 62, 63):
        low, high = needed(architecture, place, place)
        for first, last, moves in ((low, high, False), (low + 1, high, True), (low, high - 1, True)):
            other = z + 1
            other[:, :, first : last + 1] = z[:, :, first : last + 1]
            changed = not np.array_equal(paint(other)[..., place], whole[..., place])
            assert changed == moves, (place, first, last)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("provider", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_regions_have_the_pixels_of_the_whole(files, mode, provider):
    if provider != "cpu":
        skip_without_provider(provider)
    renderer = Renderer(files / f"{mode}.onnx", provider=provider, strict=True, threads=1)
    whole = renderer.render()
    assert whole.shape == (119, 150, 3) and whole.dtype == np.float32
    smaller = 0
    for x, y, w, h in ((0, 0, 1, 1), (149, 118, 1, 1), (70, 61, 5, 3), (0, 60, 150, 1), (33, 0, 9, 119), (7, 9, 101, 88)):
        part = renderer.render((x, y, w, h))
        assert part.shape == (h, w, 3) and np.abs(part - whole[y : y + h, x : x + w]).max() < 1e-5
        smaller += window(renderer.model.architecture, y, y + h - 1, 120)[1] < 120
    assert smaller >= 2
    tiled = np.empty_like(whole)
    for (x, y, w, h), pixels in renderer.tiles(64):
        tiled[y : y + h, x : x + w] = pixels
    assert np.abs(tiled - whole).max() < 1e-5
    assert np.array_equal(renderer.image(tile=64).shape, (119, 150, 3)) and renderer.image().dtype == np.uint8


@pytest.mark.parametrize("region", [(-1, 0, 5, 5), (0, 0, 151, 5), (0, 0, 0, 5), (149, 0, 2, 1)])
def test_a_region_outside_the_image_is_refused(files, region):
    with pytest.raises(InputError, match="150x119"):
        Renderer(files / "nearest.onnx").render(region)


@pytest.mark.parametrize("region", [(1, 2), 3, (0, 0, 1.5, 2)])
def test_a_region_is_four_whole_numbers(files, region):
    with pytest.raises(InputError, match="four whole numbers"):
        Renderer(files / "nearest.onnx").render(region)


# ---- providers ------------------------------------------------------------------------------------------------------


def test_a_provider_that_is_not_here_is_refused(files):
    import onnxruntime

    with pytest.raises(InputError, match="no provider"):
        Renderer(files / "nearest.onnx", provider="npu")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(DeviceError, match="cuda"):
            Renderer(files / "nearest.onnx", provider="cuda")


def test_rendering_needs_no_pytorch(files):
    code = f"""
import sys
sys.modules["torch"] = None
import dipengine
assert dipengine.Renderer({str(files / 'nearest.onnx')!r}).image().shape == (119, 150, 3)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# ---- the command line -----------------------------------------------------------------------------------------------


def test_a_task_exports_and_render_paints_it(files, tmp_path, capsys):
    quick = ["--channels", "8", "--levels", "2", "--iterations", "30", "--stop", "fixed", "--threads", "1", "--quiet"]
    assert run("denoise", files / "in.png", "-o", tmp_path / "out.png", "--export", tmp_path / "g.onnx", *quick) == 0
    assert run("render", tmp_path / "g.onnx", "-o", tmp_path / "painted.png", "--repeat", "2") == 0
    painted, delivered = (read_image(tmp_path / name).pixels.astype(float) for name in ("painted.png", "out.png"))
    assert painted.shape == (40, 44, 3) and 10 * np.log10(255**2 / np.mean((painted - delivered) ** 2)) > 40
    assert "44x40" in capsys.readouterr().err
    assert run("render", tmp_path / "g.onnx", "-o", tmp_path / "part.png", "--region", "3,4,20,10", "--quiet") == 0
    assert np.abs(read_image(tmp_path / "part.png").pixels - painted[4:14, 3:23]).max() <= 1
    assert run("render", tmp_path / "g.onnx", "-o", tmp_path / "tiled.png", "--tile", "16", "--quiet") == 0
    assert np.abs(read_image(tmp_path / "tiled.png").pixels - painted).max() <= 1


def test_a_kept_generator_is_exported_later(files, tmp_path, capsys):
    command = ("export", files / "generator.safetensors", "-o", tmp_path / "g.onnx", "--precision", "fp16", "--z", "seed",
               "--enough", "20")
    assert run(*command) == 0
    assert "fp16" in capsys.readouterr().err and run("render", tmp_path / "g.onnx", "-o", tmp_path / "g.tif", "--quiet") == 0


@pytest.mark.parametrize("words, said", [
    (["render", "nearest.onnx", "-o", "nearest.onnx"], "named twice"),
    (["render", "nearest.onnx", "-o", "out.xyz"], "xyz"),
    (["render", "nearest.onnx", "-o", "out.png", "--region", "1,2,3"], "is not a region"),
    (["render", "nearest.onnx", "-o", "out.png", "--tile", "0"], "tile"),
    (["render", "nearest.onnx", "-o", "out.png", "--repeat", "0"], "repeat"),
    (["render", "nowhere.onnx", "-o", "out.png"], "does not exist"),
    (["render", "in.png", "-o", "out.png"], "ONNX"),
    (["export", "in.png", "-o", "out.onnx"], "generator file"),
    (["export", "generator.safetensors", "-o", "out.png"], "end in .onnx"),
])
def test_wrong_use_is_one_sentence_and_status_2(files, words, said, capsys, monkeypatch):
    monkeypatch.chdir(files)
    before = set(os.listdir())
    assert run(*words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and set(os.listdir()) == before


# ---- files that lie -------------------------------------------------------------------------------------------------


def changed(files, change) -> bytes:
    model = onnx.load(files / "nearest.onnx")
    about = json.loads(model.metadata_props[0].value)
    change(model, about)
    helper.set_model_props(model, {KEY: json.dumps(about)} if about else {})
    return model.SerializeToString()


def outside(model, about):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def huge(model, about):
    about.update(canvas=[1 << 24, 1 << 24], height=1 << 24, width=1 << 24, z="seed")


def foreign_node(model, about):
    model.graph.node.add(op_type="Expand", input=["crop", "crop.axes"], output=["more"])


def huge_weight(model, about):
    model.graph.initializer.append(helper.make_tensor("more", TensorProto.FLOAT, [200_000], np.zeros(200_000, np.float32)))


def huge_padding(model, about):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "around1")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1 << 20, 1 << 20]), "around1"))


def hidden_tensor(model, about):
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../trap")
    model.graph.node[0].attribute.append(helper.make_attribute("value", tensor))


def curved(change):
    """An image fitted through the Anscombe transform, whose values `change` damages."""

    def damage(model, about):
        about["values"] = value_record(ValueMap(0.0, 255.0, Anscombe(Sensor(1.0, 10.0, 2.0))))
        change(about["values"])

    return damage


def put(values, column, number):
    values["inverse"][column][0] = number


LIES = {
    "foreign": (lambda model, about: about.clear(), "no generator of dipengine"),
    "external data": (outside, "another file"),
    "terabytes": (huge, "GiB"),
    "terabytes of padding": (huge_padding, "more than its network has"),
    "tensor inside a node": (hidden_tensor, "other places"),
    "many steps": (lambda model, about: model.graph.node.extend([model.graph.node[-2]] * 300), "damaged|ONNX model"),
    "foreign operator": (foreign_node, "Expand"),
    "weights beyond the network": (huge_weight, "damaged"),
    "newer": (lambda model, about: about.update(format=2), "format 2"),
    "window outside": (lambda model, about: about.update(origin=[100, 0]), "damaged"),
    "no size": (lambda model, about: about.pop("height"), "damaged"),
    "another network": (lambda model, about: about["generator"].update(input_depth=7), "damaged"),
    "no z": (lambda model, about: model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == "z")), "damaged"),
    "other inputs": (lambda model, about: setattr(model.graph.input[0], "name", "y"), "ONNX model|inputs"),
    "inverse cut off": (curved(lambda values: values["inverse"]["rests"].pop()), "damaged"),
    "inverse of one row": (curved(lambda values: values["inverse"].update(means=[1.0], rests=[0.0])), "damaged"),
    "inverse of many rows": (curved(lambda values: values.update(inverse={"means": [*range(65537)], "rests": [0] * 65537})), "damaged"),
    "inverse of one mean": (curved(lambda values: values["inverse"].update(means=[1.0] * 1280)), "damaged"),
    "inverse that falls": (curved(lambda values: values["inverse"]["means"].sort(key=lambda mean: abs(mean - 5))), "damaged"),
    "inverse below 0": (curved(lambda values: put(values, "means", -1e-9)), "damaged"),
    "infinite inverse": (curved(lambda values: put(values, "rests", math.inf)), "damaged"),
    "inverse beyond floats": (curved(lambda values: put(values, "rests", 10**400)), "damaged"),
    "inverse of texts": (curved(lambda values: put(values, "means", "0.5")), "damaged"),
    "inverse of truths": (curved(lambda values: put(values, "rests", True)), "damaged"),
    "inverse of nothing": (curved(lambda values: values.update(inverse=None)), "damaged"),
    "inverse without its rests": (curved(lambda values: values["inverse"].pop("rests")), "damaged"),
    "inverse without a curve": (curved(lambda values: values.pop("curve")), "damaged"),
    "curve of no sensor": (curved(lambda values: values["curve"].update(gain=-1)), "damaged|gain"),
    "range below all light": (curved(lambda values: values.update(low=-500.0, high=-400.0)), "damaged"),
}


@pytest.mark.parametrize("lie", LIES)
def test_files_that_are_no_generators_are_one_error(files, tmp_path, lie):
    change, said = LIES[lie]
    path = tmp_path / "lie.onnx"
    path.write_bytes(changed(files, change))
    with pytest.raises(InputError, match=said) as caught:
        Renderer(path)
    assert len(str(caught.value)) < 300


def test_a_painting_beyond_the_machines_memory_is_refused_and_tiles_are_not(files, monkeypatch):
    monkeypatch.setattr(environment, "memory", lambda: 1_500_000)
    renderer = Renderer(files / "nearest.onnx")
    with pytest.raises(InputError, match="tile"):
        renderer.render()
    assert renderer.image(tile=16).shape == (119, 150, 3)


@pytest.mark.parametrize("length", [0, 10, 5000, -1])
def test_truncated_files_are_one_error(files, tmp_path, length):
    data = (files / "nearest.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[:length])
    with pytest.raises(InputError):
        Renderer(tmp_path / "cut.onnx")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_a_file_that_points_outside_its_folder_opens_nothing_and_writes_nothing(files, tmp_path, place):
    """The trap is a pipe without a writer: whoever opens it, Python or C++, waits for ever."""

    def trapped(model, about):
        if place == "attribute":
            return hidden_tensor(model, about)
        outside(model, about)
        next(t for t in model.graph.initializer if t.name == "head.weight").external_data[0].value = "../trap"

    (tmp_path / "inside").mkdir()
    os.mkfifo(tmp_path / "trap")
    (tmp_path / "inside" / "lie.onnx").write_bytes(changed(files, trapped))
    command = [sys.executable, "-m", "dipengine", "render", "lie.onnx", "-o", "out.png"]
    done = subprocess.run(command, cwd=tmp_path / "inside", capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert [path.name for path in (tmp_path / "inside").iterdir()] == ["lie.onnx"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_a_pipe_a_device_and_a_folder_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(InputError, match="give a file"):
            Renderer(path)


@pytest.mark.parametrize("threads", [0, 100_000])
def test_threads_beyond_reason_are_refused(files, threads):
    with pytest.raises(InputError, match="threads"):
        Renderer(files / "nearest.onnx", threads=threads)


def test_the_command_renders_without_pytorch(files, tmp_path):
    """In a process where importing PyTorch fails: the import of the package, the command line, a z drawn from its seed."""
    code = """
import sys
sys.modules["torch"] = None
import dipengine
from dipengine.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
    assert run("export", files / "generator.safetensors", "-o", tmp_path / "seed.onnx", "--z", "seed", "--enough", "10", "--quiet") == 0
    words = ["render", str(tmp_path / "seed.onnx"), "-o", str(tmp_path / "out.png")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_image(tmp_path / "out.png").pixels.shape == (119, 150, 3)
