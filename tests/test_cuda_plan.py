"""Fits on a CUDA device from Python: the native plan over the emulated device, and where fits are placed on machines with a GPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as functional  # noqa: E402
from conv_problems import nearest_tf32  # noqa: E402
from emulated import NEEDS  # noqa: E402
from emulated_arrays import Memory, OneGpu  # noqa: E402
from test_fitting_native import PROBLEMS, SMALL, float64_step, synthetic_picture  # noqa: E402

from dipengine.errors import DeviceError  # noqa: E402
from dipengine.fitting import device as placing  # noqa: E402
from dipengine.fitting import native_fit  # noqa: E402
from dipengine.fitting.device import Placement, for_autograd, place  # noqa: E402
from dipengine.fitting.fit import Fit  # noqa: E402
from dipengine.fitting.native_fit import NativeFit, supports  # noqa: E402
from dipengine.fitting.run import FitRun  # noqa: E402
from dipengine.fitting.settings import Settings  # noqa: E402
from dipengine.kernels import backend  # noqa: E402
from dipengine.tasks.base import Problem, Recipe  # noqa: E402

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


@pytest.fixture
def emulated(monkeypatch, emulated_module):
    """The native plan over the emulated device."""
    module = emulated_module
    pool = module.Pool(1)
    monkeypatch.setattr(native_fit, "native", module)
    monkeypatch.setattr(native_fit, "pool", SimpleNamespace(get=lambda: pool, set_threads=lambda count: None))
    yield module
    assert Memory(module).core.emulator_fault() == b""


def emulated_test(function):
    for mark in [pytest.mark.slow, *NEEDS]:
        function = mark(function)
    return function


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


@emulated_test
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_steps_from_recorded_states_are_as_near_to_float64_as_plain_pytorchs(emulated, precision, monkeypatch):
    """From each of 5 states of a run on the CPU: one step's loss to 1e-2 (tf32: 1e-3), and the pooled RMS error of all gradients
    (relative to each tensor's norm) at most twice that of plain PyTorch at this precision."""
    seed = 5
    cpu = NativeFit(PROBLEM, RECIPE, seed, Placement("cpu", precision, "native", 1), "fixed")
    plan = NativeFit(PROBLEM, RECIPE, seed, replace(GPU, precision=precision), "fixed")
    errors = {"plan": [], "torch": []}
    for step in range(5):
        plan.load_state(cpu.save_state())
        weights = plan.weights()
        loss, exact = float64_step(PROBLEM, RECIPE, weights, seed, step)
        plan.run(1)
        cpu.run(1)
        assert plan.losses[-1] == pytest.approx(loss, rel=1e-2 if precision == "bf16" else 1e-3)
        assert plan.losses[-1] == pytest.approx(cpu.losses[-1], rel=1e-2 if precision == "bf16" else 1e-3)
        fit = Fit(PROBLEM, RECIPE, seed, Placement("cpu", precision, "torch", 1))
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
    print(precision, rms)
    assert rms["plan"] <= 2 * rms["torch"] + 1e-6, rms


@emulated_test
def test_a_run_is_saved_continued_and_delivered_with_the_same_bits(emulated):
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


def test_the_plan_covers_on_a_gpu_what_it_has_kernels_for():
    assert supports(PROBLEM, RECIPE, GPU) and not supports(PROBLEM, RECIPE, replace(GPU, kernels="torch"))
    for name, problem in PROBLEMS.items():
        assert supports(problem, RECIPE, GPU) == (name in ("identity", "grey", "masked"))


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
