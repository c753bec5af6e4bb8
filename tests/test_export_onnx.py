"""Generators as ONNX files: the folded graph against PyTorch in float64, what the file says, consolidation, refusals."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import dipengine
from dipengine.errors import DependencyError, InputError, OutputError
from dipengine.export import consolidate as consolidation
from dipengine.export import exporter
from dipengine.export.exporter import export, stored_code
from dipengine.export.frozen import fold
from dipengine.export.onnx_format import KEY
from dipengine.export.onnx_graph import depth_phase_weight, generator_model, phase_weight
from dipengine.generators.architecture import Hourglass
from dipengine.generators.code import Code
from dipengine.generators.initial import initial_parameters
from dipengine.kernels import backend, philox
from dipengine.rendering.renderer import Renderer

from plain_hourglass import plain_hourglass

pytestmark = pytest.mark.skipif(not backend.native_available(), reason="needs the native core")

ARCHITECTURES = {
    "nearest": {"upsample": "nearest"},
    "bilinear": {"upsample": "bilinear"},
    "without skips": {"upsample": "nearest", "channels_skip": 0},
    "zero padding": {"upsample": "nearest", "padding": "zero"},
    "bilinear, zero padding, kernels of 5": {"upsample": "bilinear", "padding": "zero", "kernel_down": 5},
    "averaged halves": {"upsample": "nearest", "downsample": "average"},
    "without 1x1": {"upsample": "nearest", "one_by_one_up": False},
    "up kernels of 5": {"upsample": "nearest", "kernel_up": 5},
    "mixed": {"upsample": ("bilinear", "nearest")},
}


def random_network(architecture: Hourglass) -> tuple[dict, torch.nn.Module]:
    """Weights away from their initial values (dead ones too), and the plain network that holds them in float64."""
    rng = np.random.default_rng(5)
    parameters = {
        name: (value + 0.3 * rng.standard_normal(value.shape) * (0.5 if value.ndim == 1 else 0.1)).astype(np.float32)
        for name, value in initial_parameters(architecture, 3).items()
    }
    network = plain_hourglass(architecture)
    states = [name for name in network.state_dict() if "running" not in name and "tracked" not in name]
    from dipengine.generators.authors import to_authors

    theirs = to_authors(architecture)
    assert set(theirs.values()) == set(states)
    network.load_state_dict({theirs[name]: torch.from_numpy(value) for name, value in parameters.items()}, strict=False)
    return parameters, network.double()


def plain_statistics(architecture: Hourglass, network: torch.nn.Module, z: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """Logits in float64 and what each norm was given: mean and biased variance per channel (biases included)."""
    from dipengine.generators.authors import to_authors

    ours = {theirs: name for name, theirs in to_authors(architecture).items()}
    seen = {}

    def listen(name):
        def hook(module, inputs, output):
            x = inputs[0].detach()
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            gamma = ours[f"{name}.weight"]
            seen[gamma], seen[gamma.replace("gamma", "beta")] = mean.numpy(), variance.numpy()

        return hook

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(listen(name))
    return network(z).detach(), seen


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_graph_paints_what_the_plain_network_paints_in_float64(name):
    architecture = Hourglass.regular(2, channels=8, input_depth=5, **{"channels_skip": 3} | ARCHITECTURES[name])
    parameters, network = random_network(architecture)
    canvas = architecture.canvas(21, 34)
    code = Code(depth=5, seed=9)
    z = torch.from_numpy(code.make(canvas)).permute(2, 0, 1)[None].double()
    logits, statistics = plain_statistics(architecture, network, z)
    # Statistics are of the convolutions without the biases that the norms cancel.
    for key, value in statistics.items():
        conv = key.replace("norm.gamma", "conv.bias")
        if key.endswith("gamma") and conv in parameters:
            statistics[key] = value - parameters[conv]
    expected = torch.sigmoid(logits)[0, :, 1:20, 2:33].numpy()
    model = generator_model(
        architecture, fold(architecture, parameters, statistics), code=np.ascontiguousarray(code.noise_bytes(canvas).transpose(2, 0, 1)),
        code_scale=code.scale / 255, store_code=True, window=(1, 2, 20, 33), producer_version="0",
    )
    painted = session(model).run(None, {})[0][0]
    assert painted.shape == expected.shape and painted.dtype == np.float32
    assert np.abs(painted - expected).max() < 3e-6


def test_the_plans_statistics_are_those_of_the_plain_network():
    architecture = Hourglass.regular(2, channels=8, upsample=("nearest", "bilinear"))
    rng = np.random.default_rng(0)
    generator = dipengine.denoise(rng.random((22, 30, 3), np.float32), value_range=(0, 1), levels=2, channels=8, iterations=5,
                                  stop="fixed", upsample=("nearest", "bilinear"), precision="fp32").generator
    fit = consolidation._fit(generator, 0.001, generator.parameters, 1)
    parameters, network = random_network(generator.architecture)
    fit.load_weights(parameters)
    z = torch.from_numpy(generator.code.make(generator.canvas)).permute(2, 0, 1)[None].double()
    _, expected = plain_statistics(generator.architecture, network, z)
    found = fit.statistics()
    assert found.keys() == expected.keys() and architecture.levels == 2
    for key, value in expected.items():
        conv = key.replace("norm.gamma", "conv.bias")
        shift = parameters[conv] if key.endswith("gamma") and conv in parameters else 0
        scale = np.sqrt(expected[key.replace("gamma", "beta")]).max()
        assert np.abs(found[key] - (value - shift)).max() < 2e-5 * max(scale, scale**2), key


@pytest.mark.parametrize("kernel", [phase_weight, depth_phase_weight])
def test_phase_weights_are_the_convolution_of_the_large_image(kernel):
    rng = np.random.default_rng(1)
    weight, x = rng.standard_normal((3, 2, 3, 3)), torch.from_numpy(rng.standard_normal((1, 2, 10, 12)))
    if kernel is phase_weight:
        small = torch.from_numpy(rng.standard_normal((1, 2, 5, 6)))
        x = torch.nn.functional.interpolate(small, scale_factor=2, mode="nearest")
    else:  # SpaceToDepth: block offset before channel
        small = x.reshape(1, 2, 5, 2, 6, 2).permute(0, 3, 5, 1, 2, 4).reshape(1, 8, 5, 6)
    phases = torch.nn.functional.conv2d(small, torch.from_numpy(kernel(weight)).double())
    large = torch.nn.functional.conv2d(x, torch.from_numpy(weight))  # without padding: pixels 1 .. 8 and 1 .. 10
    spread = phases.reshape(1, 2, 2, 3, 4, 5).permute(0, 3, 4, 1, 5, 2).reshape(1, 3, 8, 10)
    assert torch.allclose(spread, large, atol=1e-5)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result() -> dipengine.Result:
    rng = np.random.default_rng(0)
    ramp = np.linspace(40, 200, 45)[None, :, None] + np.linspace(0, 40, 37)[:, None, None] + np.zeros(3)
    noisy = np.clip(ramp + rng.normal(0, 20, ramp.shape), 0, 255).astype(np.uint8)
    return dipengine.denoise(noisy, levels=2, channels=16, iterations=60, stop="fixed", threads=1)


def test_a_file_paints_the_delivered_image_and_says_what_it_is(result, tmp_path):
    done = result.export(tmp_path / "g.onnx")
    data = (tmp_path / "g.onnx").read_bytes()
    assert done.bytes == len(data) and done.psnr >= consolidation.ENOUGH and not done.warning
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    about = json.loads({prop.key: prop.value for prop in model.metadata_props}[KEY])
    assert about["task"] == "denoise" and (about["width"], about["height"], about["channels"]) == (45, 37, 3)
    assert about["dtype"] == "uint8" and about["values"] == {"low": 0.0, "high": 255.0} and about["psnr"] == done.psnr
    assert about["source_sha256"] == result.record["input"]["sha256"]
    painted = session(model).run(None, {})[0][0].transpose(1, 2, 0)
    error = np.mean((painted.astype(np.float64) - result.generator.delivered) ** 2)
    assert 10 * np.log10(1 / error) == pytest.approx(done.psnr, abs=0.01)
    assert not list(tmp_path.glob("*.tmp*")) and len(list(tmp_path.iterdir())) == 1


def test_no_runtime_can_fold_the_network_into_a_picture(result, tmp_path):
    result.export(tmp_path / "g.onnx", enough=0)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "g.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert sum(kind in ("Conv", "FusedConv") for kind in kinds) >= 10


def test_z_from_the_seed_is_the_z_that_is_stored(result, tmp_path):
    stored = result.export(tmp_path / "stored.onnx", enough=0)
    seed = result.export(tmp_path / "seed.onnx", enough=0, z="seed")
    assert stored.bytes - seed.bytes == pytest.approx(32 * 40 * 48, abs=200)
    assert np.array_equal(Renderer(tmp_path / "stored.onnx").render(), Renderer(tmp_path / "seed.onnx").render())
    model = onnx.load(tmp_path / "seed.onnx")
    assert "z" not in {tensor.name for tensor in model.graph.initializer}
    code = json.loads({prop.key: prop.value for prop in model.metadata_props}[KEY])["code"]
    # As the documentation has it for foreign hosts: byte i % 16 of block i / 16, i = (y W + x) depth + c.
    words = philox.random_bytes(code["seed"], 0, 0, 40 * 48 * 32, kernels="torch").reshape(40, 48, 32)
    assert np.array_equal(words.transpose(2, 0, 1), Renderer(tmp_path / "seed.onnx").model.z)


@pytest.mark.parametrize("precision, least, share", [("fp16", 42, 0.62), ("int8", 30, 0.62)])
def test_smaller_files_state_what_they_cost(result, tmp_path, precision, least, share):
    whole = result.export(tmp_path / "fp32.onnx", z="seed")
    small = result.export(tmp_path / f"{precision}.onnx", z="seed", precision=precision)
    assert small.bytes < share * whole.bytes and least < small.psnr < whole.psnr + 0.1
    assert Renderer(tmp_path / f"{precision}.onnx").model.about["psnr"] == small.psnr


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("recipe", ["hole", "large-hole"])
@pytest.mark.parametrize("z", ["stored", "seed"])
def test_smaller_files_of_every_kind_of_z_can_be_painted(tmp_path, precision, recipe, z):
    """A meshgrid is float32, so that the float16 converter puts a cast between it and the network."""
    rng = np.random.default_rng(2)
    known = np.ones((40, 44), bool)
    known[10:20, 10:20] = False
    generator = dipengine.inpaint(rng.integers(0, 255, (40, 44, 3), dtype=np.uint8), known, recipe=recipe, levels=2, channels=8,
                                  iterations=3, stop="fixed", threads=1).generator
    assert (generator.code.kind == "meshgrid") == (recipe == "hole")
    whole = export(generator, tmp_path / "fp32.onnx", z="seed", enough=0, threads=1)
    small = export(generator, tmp_path / "small.onnx", z=z, precision=precision, enough=0, threads=1)
    assert abs(small.psnr - whole.psnr) < 0.5
    onnx.checker.check_model(onnx.load(tmp_path / "small.onnx"), full_check=True)


def test_an_image_as_z_is_stored_at_its_own_depth():
    rng = np.random.default_rng(2)
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        pixels = rng.integers(0, top, (20, 24, 3), dtype=dtype)
        generator = dipengine.flash(pixels, pixels, iterations=2, levels=2, channels=8, threads=1).generator
        code, scale = stored_code(generator)
        assert code.dtype == dtype and scale == 1 / top and np.array_equal(code[:, :20, :24], pixels.transpose(2, 0, 1))


def test_a_window_of_the_canvas_is_painted_where_a_deblurring_delivers_one(tmp_path):
    rng = np.random.default_rng(3)
    image = rng.integers(0, 255, (30, 26), dtype=np.uint8)
    result = dipengine.deblur(image, np.ones((3, 5)), iterations=3, stop="fixed", levels=2, channels=8, threads=1)
    assert result.generator.origin != (0, 0)
    result.export(tmp_path / "g.onnx", enough=30)
    renderer = Renderer(tmp_path / "g.onnx")
    assert renderer.size == (30, 26) and renderer.image().shape == (30, 26, 1)
    error = np.mean((renderer.render() - result.generator.delivered) ** 2)
    assert error < 1e-3


@pytest.mark.parametrize("options, error", [
    ({"precision": "fp8"}, InputError), ({"z": "none"}, InputError),
])
def test_bad_choices_are_refused_before_any_work(result, tmp_path, options, error):
    with pytest.raises(error):
        result.export(tmp_path / "g.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused(result, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "consolidate", lambda *arguments, **options: pytest.fail("worked before it looked where to write"))
        with pytest.raises(OutputError):
            result.export(tmp_path / "nowhere" / "g.onnx")
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
    flash = dipengine.flash(pixels, pixels, iterations=2, levels=2, channels=8, threads=1)
    with pytest.raises(InputError, match="no seed"):
        flash.export(tmp_path / "g.onnx", z="seed")
    assert not list(tmp_path.iterdir())


def wide_kernels(result):
    """The result's generator with up kernels of 5, fresh weights and all else as it was."""
    from dataclasses import replace

    architecture = Hourglass.regular(2, channels=8, upsample=("nearest", "bilinear"), kernel_up=(5, 3))
    return replace(result.generator, architecture=architecture, parameters=initial_parameters(architecture, 0))


def test_networks_beyond_the_plan_are_consolidated_on_autograd(result, tmp_path):
    generator = wide_kernels(result)
    done = export(generator, tmp_path / "g.onnx", enough=30, threads=1)
    assert done.consolidation_iterations > 0 and done.psnr > 29.9
    network = plain_hourglass(generator.architecture)
    consolidated = consolidation.consolidate(generator, enough=0, threads=1)
    from dipengine.generators.authors import to_authors

    network.load_state_dict({to_authors(generator.architecture)[name]: torch.from_numpy(value)
                             for name, value in consolidated.parameters.items()}, strict=False)
    z = torch.from_numpy(generator.code.make(generator.canvas)).permute(2, 0, 1)[None].double()
    _, expected = plain_statistics(generator.architecture, network.double(), z)
    assert consolidated.statistics.keys() == expected.keys()
    for key, value in expected.items():
        conv = key.replace("norm.gamma", "conv.bias")
        shift = consolidated.parameters[conv] if key.endswith("gamma") and conv in consolidated.parameters else 0
        assert np.abs(consolidated.statistics[key] - (value - shift)).max() < 2e-5 * max(1, np.abs(value).max()), key


def test_networks_beyond_the_plan_say_that_they_need_pytorch(result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DependencyError, match="PyTorch"):
        export(wide_kernels(result), tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_what_paints_badly_warns(tmp_path, monkeypatch):
    monkeypatch.setattr(consolidation, "SCHEDULE", ((1e-9, 25),))
    # After a few iterations the network is far from the average of what it has painted so far.
    noisy = np.rint(np.random.default_rng(0).uniform(0, 255, (37, 45, 3))).astype(np.uint8)
    done = dipengine.denoise(noisy, levels=2, channels=16, iterations=8, stop="fixed", threads=1).export(tmp_path / "g.onnx")
    if done.psnr < 40:
        assert f"{done.psnr:.1f} dB only" in done.warning
    else:
        pytest.fail(f"the unconsolidated generator painted its average with {done.psnr:.1f} dB")