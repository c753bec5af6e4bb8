"""Fits on a CUDA device from Python: the native plan over the emulated device, and where fits are placed on machines with a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as functional  # noqa: E402
from conv_problems import nearest_tf32  # noqa: E402
from emulated import CMAKE, NEEDS, run  # noqa: E402
from emulated_arrays import DlpackArray, Memory, OneGpu  # noqa: E402
from test_fitting_native import GENERATORS, PROBLEMS, SMALL, float64_step, synthetic_picture  # noqa: E402
from test_native_example import read_pnm, write_pnm  # noqa: E402

from dipengine.errors import DeviceError  # noqa: E402
from dipengine.fitting import device as placing  # noqa: E402
from dipengine.fitting import native_cohort, native_fit  # noqa: E402
from dipengine.fitting.device import Placement, for_autograd, memory_of, place  # noqa: E402
from dipengine.fitting.fit import Fit  # noqa: E402
from dipengine.fitting.native_cohort import NativeCohort  # noqa: E402
from dipengine.fitting.native_fit import NativeFit, supports  # noqa: E402
from dipengine.fitting.run import FitRun  # noqa: E402
from dipengine.fitting.settings import Settings  # noqa: E402
from dipengine.generators.architecture import Hourglass  # noqa: E402
from dipengine.kernels import backend  # noqa: E402
from dipengine.tasks.base import Problem, Recipe  # noqa: E402
from dipengine.tasks.downsampling import Downsampling  # noqa: E402

pytestmark = [
    pytest.mark.skipif(backend.native is None, reason="needs the native core"),
    pytest.mark.usefixtures("one_torch_thread"),
]
GPU = Placement("cuda:0", "bf16", "native", 1)
# 13 x 16 on a canvas of 16 x 16.
TARGET = synthetic_picture(13, 16).astype(np.float32)
KNOWN = np.ones(TARGET.shape[:2], bool)
KNOWN[3:7, 5:12] = False
RECIPE = Recipe(SMALL, iterations=40, average_decay=0.9, average_warm_up=True)
PROBLEM = Problem("inpaint", TARGET, TARGET.shape[:2], RECIPE, known=KNOWN)


EMULATED = [pytest.mark.slow, *NEEDS]


@pytest.fixture(params=[pytest.param("emulated", marks=EMULATED), pytest.param("as large", marks=EMULATED),
                        pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """The native plan over the emulated device, there also as large images have it, and on a GPU where there is one."""
    if request.param == "gpu":
        if backend.cuda_missing():
            pytest.skip(f"needs a core with CUDA kernels: {backend.cuda_missing()}")
        yield
        return
    module = request.getfixturevalue("emulated_module")
    pool = module.Pool(1)
    for place in (native_fit, native_cohort):
        monkeypatch.setattr(place, "native", module)
        monkeypatch.setattr(place, "pool", SimpleNamespace(get=lambda: pool, set_threads=lambda count: None))
    core = Memory(module).core
    before = core.emulator_stored_pixels(0) if request.param == "as large" else None
    yield
    if before is not None:
        core.emulator_stored_pixels(before)
    assert core.emulator_fault() == b""


class Tf32Convolution(torch.autograd.Function):
    """PyTorch's convolution with the operands of all three products rounded as tensor cores round them."""

    @staticmethod
    def forward(context, x, weight, stride, padding):
        x, weight = nearest_tf32(x), nearest_tf32(weight)
        context.save_for_backward(x, weight)
        context.how = {"stride": stride, "padding": padding}
        return convolution(x, weight, **context.how)

    @staticmethod
    def backward(context, gradient):
        (x, weight), gradient = context.saved_tensors, nearest_tf32(gradient)
        d_x = torch.nn.grad.conv2d_input(x.shape, weight, gradient, **context.how)
        return d_x, torch.nn.grad.conv2d_weight(x, weight.shape, gradient, **context.how), None, None


convolution = functional.conv2d


def tf32_convolution(x, weight, bias=None, stride=1, padding=0):
    out = Tf32Convolution.apply(x, weight, stride, padding)
    return out if bias is None else out + bias[:, None, None]


SMALLER = {"downsampled": Problem("superres", TARGET[:7, :8].copy(), (21, 24), RECIPE, operator=Downsampling(3), known=KNOWN[:7, :8].copy())}
TASKS = {name: problem for name, problem in PROBLEMS.items() if name != "masked"} | SMALLER
RECIPES = {"masked": RECIPE} | {name: replace(RECIPE, generator=generator) for name, generator in GENERATORS.items() if name != "wide"}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", [*TASKS, *RECIPES])
def test_steps_from_recorded_states_are_as_near_to_float64_as_plain_pytorchs(device, name, precision, monkeypatch):
    """From each of 5 states of a run on the CPU: one step's loss to 1e-2 (tf32: 1e-3), and the pooled RMS error of all gradients
    (relative to each tensor's norm) at most twice that of plain PyTorch at this precision."""
    problem, recipe, seed = (PROBLEM, RECIPES[name], 5) if name in RECIPES else (TASKS[name], RECIPE, 5)
    cpu = NativeFit(problem, recipe, seed, Placement("cpu", precision, "native", 1), "fixed")
    plan = NativeFit(problem, recipe, seed, replace(GPU, precision=precision), "fixed")
    errors = {"plan": [], "torch": []}
    for step in range(5):
        plan.load_state(cpu.save_state())
        weights = plan.weights()
        loss, exact = float64_step(problem, recipe, weights, seed, step)
        plan.run(1)
        cpu.run(1)
        assert plan.losses[-1] == pytest.approx(loss, rel=1e-2 if precision == "bf16" else 1e-3)
        assert plan.losses[-1] == pytest.approx(cpu.losses[-1], rel=1e-2 if precision == "bf16" else 1e-3)
        fit = Fit(problem, recipe, seed, Placement("cpu", precision, "torch", 1))
        fit.network.load_numpy(weights)
        fit.iteration = step
        with monkeypatch.context() as patched:
            if precision == "fp32":
                patched.setattr(functional, "conv2d", tf32_convolution)
            fit.step()
        theirs = {name: p.grad.numpy() for name, p in fit.network.named_parameters() if p.grad is not None}
        for kind, gradients in (("plan", plan.gradients()), ("torch", theirs)):
            for parameter, truth in exact.items():
                scale = np.sqrt(np.square(truth).mean())
                if scale > 1e-7:  # gammas in front of another norm have none to speak of
                    errors[kind].append(np.square((gradients[parameter] - truth) / scale).ravel())
    rms = {kind: float(np.sqrt(np.concatenate(values).mean())) for kind, values in errors.items()}
    print(name, precision, rms)
    assert rms["plan"] <= 2 * rms["torch"] + 1e-6, rms


def test_a_run_is_saved_continued_and_delivered_with_the_same_bits(device):
    def begin():
        return FitRun(PROBLEM, replace(RECIPE, iterations=5), stop="fixed", seed=3, placement=GPU)

    whole, first, second = begin(), begin(), begin()
    seen = []
    assert whole.advance(9, lambda report: seen.append(report.iteration))
    first.advance(2)
    second.restore(*first.state())
    second.advance(9)
    assert whole.stop_reason == second.stop_reason == "iterations" and seen == [1, 2, 3, 4, 5]
    a, b = whole.outcome(), second.outcome()
    assert np.array_equal(a.image, b.image) and all(np.array_equal(a.weights[name], b.weights[name]) for name in a.weights)
    assert whole.fit.losses == second.fit.losses and len(whole.fit.losses) == 5


def on_the_device(monkeypatch, memory):
    """PyTorch's tensors count as arrays of the device: what a fit is given and gives is lent to it there. Yields what was lent."""
    made, lent = native_fit.native.Fit, []

    class Fit:
        def __init__(self, *arguments):
            self.fit = made(*arguments)

        def __getattr__(self, name):
            method = getattr(self.fit, name)
            if not callable(method):
                return method

            def call(*arguments, **named):
                tensors = []

                def lend(value):
                    if not isinstance(value, torch.Tensor):
                        return value
                    tensors.append((value, DlpackArray(memory, value.numpy())))
                    return tensors[-1][1]

                result = method(*map(lend, arguments), **{key: lend(value) for key, value in named.items()})
                for tensor, array in tensors:
                    assert array.intact and array.asked
                    tensor.numpy()[...] = array.numpy
                    lent.append(name)
                return result

            return call

    def on_host(array):
        assert isinstance(array, np.ndarray), "brought to the host"
        return array

    monkeypatch.setattr(native_fit, "native", SimpleNamespace(Fit=Fit, fit_memory=native_fit.native.fit_memory))
    monkeypatch.setattr(native_fit, "device_of", lambda array: "cuda:0" if isinstance(array, torch.Tensor) else "cpu")
    monkeypatch.setattr(native_fit, "on_host", on_host)
    return lent


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked", "downsampled"])
def test_arrays_of_the_device_are_taken_and_given_there(emulated_module, monkeypatch, name):
    pool = emulated_module.Pool(1)
    monkeypatch.setattr(native_fit, "native", emulated_module)
    monkeypatch.setattr(native_fit, "pool", SimpleNamespace(get=lambda: pool, set_threads=lambda count: None))
    problem = {"masked": PROBLEM, **SMALLER}[name]
    there = replace(problem, target=torch.from_numpy(problem.target.copy()), known=torch.from_numpy(problem.known.copy()))
    host = NativeFit(problem, RECIPE, 4, GPU, "fixed")
    lent = on_the_device(monkeypatch, Memory(emulated_module))
    fit = NativeFit(there, RECIPE, 4, GPU, "fixed")
    assert lent == ["start", "start"]  # target and mask
    for one in (host, fit):
        one.run(2)
    assert fit.save_state() == host.save_state() and fit.losses == host.losses
    for got, expected in ((fit.average(), host.average()), (fit.render(), host.render()), (fit.deliver()[0], host.deliver()[0])):
        assert isinstance(got, torch.Tensor) and np.array_equal(got.numpy(), expected)
    assert lent[2:] == ["average", "render", "deliver"]


@pytest.mark.slow
def test_arrays_of_another_device_are_refused(emulated_module):
    memory = Memory(emulated_module)
    placements = {"device 0": GPU, "in CPU memory": replace(GPU, device="cpu", precision="fp32")}
    for where, placement in placements.items():
        code, recipe = native_fit._resolved(PROBLEM, RECIPE, 0)
        settings = native_fit._settings(PROBLEM, recipe, code, placement, "fixed")
        fit = emulated_module.Fit(emulated_module.Pool(1), native_fit._generator(recipe.generator), settings)
        target = DlpackArray(memory, TARGET, device=3)
        with pytest.raises(DeviceError, match=f"'target' is on CUDA device 3 and the fit .*{where}"):
            fit.start(0, seed=1, target=target)
        fit.start(0, seed=1, target=TARGET)
        with pytest.raises(DeviceError, match=f"'out' is on CUDA device 3 and the fit .*{where}"):
            fit.render(0, DlpackArray(memory, TARGET, device=3))


def test_images_of_one_canvas_share_a_cohort_with_the_bits_that_they_have_alone(device):
    recipe = replace(RECIPE, iterations=4)
    images = [PROBLEM, *(Problem("denoise", TARGET[:height, :width].copy(), (height, width), recipe) for height, width in ((13, 14), (13, 13)))]
    alone = [NativeFit(image, recipe, seed, GPU, "fixed") for seed, image in enumerate(images)]
    for fit in alone:
        fit.run(4)
    cohort = NativeCohort(PROBLEM, recipe, GPU, "fixed", 2)
    assert cohort.arena_bytes == native_cohort.cohort_bytes(PROBLEM, recipe, GPU, "fixed", 2)
    first = cohort.open(images[0], recipe, 0, "fixed")
    cohort.advance(2)
    second = cohort.open(images[1], recipe, 1, "fixed")
    assert cohort.advance(2) == [first] and first.save_state() == alone[0].save_state()
    first.close()
    third = cohort.open(images[2], recipe, 2, "fixed")  # between two replays of what was recorded once
    cohort.advance(4)
    for slot, fit in ((second, alone[1]), (third, alone[2])):
        assert slot.save_state() == fit.save_state() and slot.losses == fit.losses and slot.reason == "iterations"
        assert np.array_equal(slot.deliver()[0], fit.deliver()[0]) and np.array_equal(slot.render(), fit.render())


@pytest.mark.slow
@pytest.mark.parametrize("wish", [(), ("--precision", "fp32")])
def test_a_cpp_host_restores_on_a_device_with_the_pixels_that_python_has(emulated_module, monkeypatch, tmp_path, wish):
    folder = Path(emulated_module.__file__).parent.parent
    run(CMAKE, "--build", folder, "--target", "dipengine_emulated_restore")
    pixels = np.rint(TARGET * 255).astype(np.uint8)
    image = write_pnm(tmp_path / "in.ppm", pixels)
    run(folder / "tests/emulator/dipengine_emulated_restore", "denoise", image, tmp_path / "out.ppm", "--device", "cuda", *wish,
        "--iterations", "4", "--stop", "fixed", "--levels", "2", "--channels", "8", "--seed", "5")
    pool = emulated_module.Pool(1)
    monkeypatch.setattr(native_fit, "native", emulated_module)
    monkeypatch.setattr(native_fit, "pool", SimpleNamespace(get=lambda: pool, set_threads=lambda count: None))
    recipe = Recipe(Hourglass.regular(2, channels=8, upsample="nearest"), iterations=4, average_decay=0.99, average_warm_up=True)
    problem = Problem("denoise", (pixels / np.float32(255)).astype(np.float32), pixels.shape[:2], recipe)
    fit = NativeFit(problem, recipe, 5, replace(GPU, precision="fp32" if wish else "bf16"), "fixed")
    fit.run(4)
    restored = read_pnm(tmp_path / "out.ppm")
    assert np.array_equal(restored, np.rint(fit.deliver()[0] * 255).astype(np.uint8)) and not np.array_equal(restored, pixels)


def test_the_plan_covers_on_a_gpu_what_it_covers_on_a_cpu():
    assert not supports(PROBLEM, RECIPE, replace(GPU, kernels="torch"))
    assert all(supports(problem, RECIPE, GPU) for problem in PROBLEMS.values())
    assert not supports(replace(PROBLEM, operator=lambda image: image), RECIPE, GPU)


@pytest.mark.parametrize(
    ("wish", "found"),
    [
        ({"device": "auto"}, ("cuda:0", "bf16", "native")),
        ({"device": "cuda"}, ("cuda:0", "bf16", "native")),
        ({"device": "cuda:0", "precision": "fp32", "kernels": "native"}, ("cuda:0", "fp32", "native")),
        ({"device": "cpu", "precision": "fp32"}, ("cpu", "fp32", "native")),
        ({"device": "cuda:1"}, "1 CUDA device"),
        ({"device": "tpu"}, "no device 'tpu'"),
    ],
)
def test_fits_are_placed_on_a_gpu_that_native_kernels_can_use(monkeypatch, wish, found):
    monkeypatch.setattr(backend, "native", OneGpu(backend.native))
    monkeypatch.setattr(backend, "cuda_missing", lambda: "")
    monkeypatch.setattr(placing, "require_torch", lambda: pytest.fail("PyTorch is not needed to find the GPU"))
    if isinstance(found, str):
        with pytest.raises(DeviceError, match=found):
            place(Settings(**wish))
    else:
        placement = place(Settings(**wish))
        assert (placement.device, placement.precision, placement.kernels) == found


def test_without_native_kernels_a_gpu_is_pytorchs(monkeypatch):
    monkeypatch.setattr(backend, "cuda_missing", lambda: "No driver.")
    monkeypatch.setattr(placing, "_nvidia_driver", lambda: True)
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 1, is_bf16_supported=lambda: True)
    monkeypatch.setattr(placing, "require_torch", lambda: SimpleNamespace(cuda=cuda))
    assert place(Settings(device="auto")) == Placement("cuda:0", "bf16", "torch", place(Settings()).threads)
    with pytest.raises(DeviceError, match="No driver"):
        place(Settings(device="cuda:0", kernels="native"))


def test_what_the_plan_does_not_cover_runs_on_autograd_or_says_so(monkeypatch):
    cuda = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setattr(placing, "require_torch", lambda: SimpleNamespace(cuda=cuda))
    cpu = Placement("cpu", "bf16", "native", 1)
    assert for_autograd(cpu, Settings()) is cpu
    assert for_autograd(GPU, Settings(precision="fp32")) == Placement("cpu", "fp32", "native", 1)  # that GPU is not PyTorch's
    with pytest.raises(DeviceError, match="no CUDA device is usable"):
        for_autograd(GPU, Settings(device="cuda:0"))
    cuda.is_available, cuda.device_count, cuda.is_bf16_supported = lambda: True, lambda: 1, lambda: True
    cuda.get_device_capability = lambda device: (9, 0)
    monkeypatch.setattr(placing, "_nvidia_driver", lambda: True)
    monkeypatch.setattr(backend, "cuda_missing", lambda: "")
    assert for_autograd(GPU, Settings(device="cuda:0")) == GPU
    monkeypatch.setattr(backend, "cuda_missing", lambda: "No driver.")
    assert for_autograd(GPU, Settings(device="cuda:0")) == replace(GPU, kernels="torch")
    with pytest.raises(DeviceError, match="do not run on cuda:0 .No driver.; use --kernels torch"):
        for_autograd(GPU, Settings(kernels="native"))


def test_the_memory_that_decides_about_tiles_is_the_devices(monkeypatch):
    monkeypatch.setattr(placing.environment, "memory", lambda: 1000)
    monkeypatch.setattr(placing, "cuda_memory", {"cuda:1": 77}.get)
    assert (memory_of("cpu"), memory_of("cuda:1"), memory_of("cuda:0")) == (1000, 77, None)
