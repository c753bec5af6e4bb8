"""Convolutions, norms and the fused network of CUDA tensors: through the bindings on the emulated device, and on a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conftest import TINY, synthetic_picture  # noqa: E402
from conv_problems import FAMILIES, Input, Layer, Problem, draw_layer, exact, run  # noqa: E402
from emulated_arrays import DlpackArray, InterfaceArray, OldDlpackArray, OneGpu  # noqa: E402
from emulated_fixtures import emulated, gpu, memory, module, on_emulator  # noqa: E402, F401

from dipengine import denoise  # noqa: E402
from dipengine.errors import DeviceError, DipEngineError, InputError  # noqa: E402
from dipengine.fitting import device as fitting_device  # noqa: E402
from dipengine.fitting.autograd_loop import AutogradLoop  # noqa: E402
from dipengine.fitting.device import Placement, for_autograd, place  # noqa: E402
from dipengine.fitting.settings import Settings  # noqa: E402
from dipengine.generators.architecture import Hourglass  # noqa: E402
from dipengine.generators.hourglass import HourglassNetwork  # noqa: E402
from dipengine.images import ValueMap  # noqa: E402
from dipengine.kernels import backend, conv  # noqa: E402
from dipengine.kernels.conv import Fold, Source  # noqa: E402
from dipengine.tasks import task_named  # noqa: E402
from dipengine.tasks.base import TaskData  # noqa: E402

pytestmark = pytest.mark.skipif(backend.native is None, reason="needs the native core")
KINDS = [DlpackArray, OldDlpackArray, InterfaceArray]
DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-5
# Of single values relative to the size of their kind: float32 images are multiplied in tf32.
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.06}
SMALL = Hourglass.regular(2, channels=6, channels_skip=3, input_depth=5, upsample=("nearest", "bilinear"))
NETWORKS = {
    "small": SMALL,
    "zero-average": replace(SMALL, padding="zero", downsample="average", kernel_down=(5, 3)),
    "no-skips-no-points": replace(SMALL, channels_skip=(0, 0), one_by_one_up=False),
}


def drawn(seed, *shape):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


class Call:
    """A 3x3 convolution of a skip and a nearest-upsampled source with everything folded in, there and in CPU memory."""

    def __init__(self, memory, kind=DlpackArray, device=0):
        self.memory, self.kind = memory, kind
        affine = lambda seed, n: (drawn(seed, n) + 1.5, drawn(seed + 1, n))  # noqa: E731
        self.values = {
            "skip": drawn(1, 6, 8, 3), "deep": drawn(2, 3, 4, 5), "weight": drawn(3, 3, 3, 8, 4), "bias": drawn(4, 4),
            "inner": affine(5, 3), "outer": affine(7, 5), "gamma": drawn(9, 4) + 1.5, "beta": drawn(10, 4),
            "gradient": drawn(11, 6, 8, 4), "coefficients": tuple(drawn(i, 4) for i in (12, 13, 14)),
        } | {name: np.full(4, np.nan, np.float32) for name in ("mean", "variance", "scale", "shift", "d_bias")} | {
            "raw": np.full((6, 8, 4), np.nan, np.float32), "d_weight": np.full((3, 3, 8, 4), np.nan, np.float32),
            "d_deep": drawn(15, 3, 4, 5), "sum": np.full(5, np.nan, np.float32), "product": np.full(5, np.nan, np.float32),
        }
        put = lambda value: tuple(map(put, value)) if isinstance(value, tuple) else kind(memory, value, device=device)  # noqa: E731
        self.there = {name: put(value) for name, value in self.values.items()}
        self.lent = []

    def workspace(self, bytes_):
        self.lent.append(self.kind(self.memory, np.zeros(bytes_, np.uint8)))
        return self.lent[-1]

    def forward(self, native, of, **named):
        sources = [native.Source(of["skip"], inner=of["inner"], slope=0.2),
                   native.Source(of["deep"], upsample=1, outer=of["outer"], slope=0.2)]
        numbers = {name: of[name] for name in ("bias", "mean", "variance", "gamma", "beta", "scale", "shift")}
        native.conv_forward(sources, of["weight"], of["raw"], pad=1, **numbers, eps=EPS, **named)

    def backward(self, native, of, **named):
        sources = [native.Source(of["skip"], inner=of["inner"], slope=0.2),
                   native.Source(of["deep"], upsample=1, outer=of["outer"], slope=0.2, d_x=of["d_deep"], accumulate=True,
                                 sum=of["sum"], product=of["product"])]
        native.conv_backward(sources, of["weight"], of["gradient"], raw=of["raw"], coefficients=list(of["coefficients"]), pad=1,
                             d_weight=of["d_weight"], d_bias=of["d_bias"], **named)

    def in_cpu_memory(self):
        """The same with float64 numbers, by the CPU's kernels."""
        per_channel = {"inner", "outer", "gamma", "beta", "coefficients", "mean", "variance", "scale", "shift", "sum", "product"}
        wide = lambda v: tuple(map(wide, v)) if isinstance(v, tuple) else v.astype(np.float64)  # noqa: E731
        of = {name: wide(value) if name in per_channel else value for name, value in self.values.items()}
        space = backend.native.Workspace()
        self.forward(backend.native, of, workspace=space)
        self.backward(backend.native, of, workspace=space)
        return of

    def arrays(self):
        flat = [a for value in self.there.values() for a in (value if isinstance(value, tuple) else (value,))]
        return flat + self.lent


WRITTEN = ("raw", "mean", "variance", "scale", "shift", "d_weight", "d_bias", "d_deep", "sum", "product")


@emulated
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_enter_by_either_protocol_on_the_stream_and_are_written(module, memory, kind):
    call = Call(memory, kind)
    call.forward(module, call.there, workspace=call.workspace, stream=7)
    call.backward(module, call.there, workspace=call.workspace, stream=7)
    assert set(memory.launched_on()) == {7}
    assert memory.happened() == "device 0;device 1;" * 2
    expected = call.in_cpu_memory()
    for name in WRITTEN:
        size = float(np.sqrt(np.square(expected[name]).mean()))
        np.testing.assert_allclose(call.there[name].numpy, expected[name], rtol=0, atol=4e-3 * size, err_msg=name)
    assert all(array.intact and array.asked for array in call.arrays())
    if kind is not InterfaceArray:
        assert all(asked["stream"] == 7 for array in call.arrays() for asked in array.asked)


@emulated
def test_the_norm_passes_take_arrays_on_their_stream(module, memory):
    values = {"x": drawn(1, 5, 6, 7), "g": drawn(2, 5, 6, 7), "gamma": drawn(3, 7) + 1.5, "beta": drawn(4, 7)}
    inner, triple = (drawn(5, 7) + 1.5, drawn(6, 7)), [drawn(7, 7), drawn(8, 7), drawn(9, 7)]
    names = ("mean", "variance", "scale", "shift", "sum", "product", *"abc", "d_gamma", "d_beta")
    blank = {"d_x": np.zeros((5, 6, 7), np.float32)} | {name: np.zeros(7, np.float32) for name in names}

    def passes(native, number, image, **named):
        one = {name: (image if name in ("x", "g", "d_x") else number)(value) for name, value in (values | blank).items()}
        fold = (number(inner[0]), number(inner[1]))
        source = native.Source(one["x"], upsample=2, inner=fold, slope=0.2)
        native.norm_statistics(source, **{n: one[n] for n in ("mean", "variance", "gamma", "beta", "scale", "shift")}, eps=EPS, **named)
        source = native.Source(one["x"], upsample=2, inner=fold, slope=0.2, d_x=one["d_x"], sum=one["sum"], product=one["product"])
        native.norm_backward(source, g=one["g"], coefficients=[number(c) for c in triple], **named)
        stream = {"stream": named["stream"]} if "stream" in named else {}
        native.norm_fold_gradient(count=120, mean=one["mean"], variance=one["variance"], gamma=one["gamma"], eps=EPS, sum=one["sum"],
                                  product=one["product"], centred=True, coefficients=[one[n] for n in "abc"], d_gamma=one["d_gamma"],
                                  d_beta=one["d_beta"], **stream)
        return one

    lent = []

    def put(value):
        lent.append(DlpackArray(memory, value))
        return lent[-1]

    there = passes(module, put, put, workspace=lambda n: put(np.zeros(n, np.uint8)), stream=7)
    assert set(memory.launched_on()) == {7} and len(lent) > 15 and all(array.intact for array in lent)
    expected = passes(backend.native, lambda v: v.astype(np.float64), lambda v: v.copy(), workspace=backend.native.Workspace())
    for name in blank:
        np.testing.assert_allclose(there[name].numpy, expected[name], rtol=1e-5, atol=1e-5 * abs(expected[name]).max(), err_msg=name)


@emulated
def test_what_does_not_fit_is_refused_in_a_sentence(module, memory):
    def refused(error, match, change=None, on="forward", device=0, **named):
        call = Call(memory, device=device)
        if change is not None:
            change(call.there)
        with pytest.raises(error, match=match):
            getattr(call, on)(module, call.there, **{"workspace": call.workspace, **named})
        assert memory.launched_on() == []
        memory.happened()

    def put(name, value):
        return lambda there: there.update({name: value if isinstance(value, np.ndarray) else DlpackArray(memory, *value)})

    refused(DeviceError, "'weight' is not on CUDA device 0", put("weight", drawn(3, 3, 3, 8, 4)))  # NumPy's
    refused(DeviceError, "'deep' is not on|'x' is not on", put("deep", drawn(2, 3, 4, 5)))
    refused(DeviceError, "'mean' is not on CUDA device 0", put("mean", np.zeros(4)))
    refused(InputError, "'mean' has another dtype", put("mean", [np.zeros(4)]))  # float64, as a CPU has it
    refused(InputError, "'A' has another dtype", lambda there: there.update(
        coefficients=tuple(DlpackArray(memory, drawn(i, 4).astype(np.float64)) for i in range(3))), on="backward")
    refused(InputError, "'gamma' has 3 elements", put("gamma", [drawn(1, 3)]))
    refused(InputError, r"'weight' must be \[kernel, kernel, 8", put("weight", [drawn(3, 3, 3, 7, 4)]))
    refused(InputError, "'weight' is not C-contiguous", put("weight", [drawn(3, 8, 3, 3, 4).transpose(1, 2, 0, 3)[..., :8, :]]))
    refused(InputError, "channels contiguous", put("skip", [drawn(1, 3, 6, 8).transpose(1, 2, 0)]))
    refused(InputError, "source 1 of side|gives|does not give", put("deep", [drawn(2, 4, 4, 5)]))
    refused(InputError, "'d_x' has another shape", put("d_deep", [drawn(2, 4, 4, 5)]), on="backward")
    refused(InputError, "'raw' has another shape than 'gradient'", put("raw", [drawn(1, 6, 7, 4)]), on="backward")
    refused(InputError, "several dtypes", put("skip", [drawn(1, 6, 8, 3).astype(np.float64)]))
    refused(InputError, "workspace as a function", workspace=backend.native.Workspace())
    refused(InputError, "the function gave another", workspace=lambda n: DlpackArray(memory, np.zeros(n // 2, np.uint8)))
    refused(InputError, "lacks one of mean", lambda there: there.update(mean=None))
    refused(InputError, "'d_bias' comes with 'd_weight'", lambda there: there.update(d_weight=None), on="backward")
    with pytest.raises(InputError, match="float64|bfloat16 or float32"):
        x, y, w = (DlpackArray(memory, drawn(1, *s).astype(np.float64)) for s in ((4, 4, 2), (4, 4, 3), (1, 1, 2, 3)))
        module.conv_forward([module.Source(x)], w, y, workspace=lambda n: DlpackArray(memory, np.zeros(n, np.uint8)))
    with pytest.raises(DeviceError, match="norm_apply has no CUDA kernel"):
        x, y = (DlpackArray(memory, drawn(1, 4, 4, 2)) for _ in range(2))
        module.norm_apply(module.Source(x), y=y, workspace=None)
    with pytest.raises(InputError, match="one or two"):
        module.conv_forward([], drawn(1, 1, 1, 2, 3), drawn(1, 4, 4, 3), workspace=None)


@emulated
def test_a_core_without_cuda_kernels_says_what_to_do(memory):
    if not backend.cuda_missing():
        pytest.skip("the core has CUDA kernels and a device")
    call = Call(memory)
    with pytest.raises(DeviceError, match="built without CUDA kernels|CUDA device"):
        call.forward(backend.native, call.there, workspace=call.workspace)


# ---- the functions of kernels.conv -----------------------------------------------------------------------------------


def check_layers(family, dtype, seeds, device="cpu"):
    """Every output of random layers, single values against float64; how precise they are is judged where kernels are tested."""
    for seed in seeds:
        problem = Problem(draw_layer(family, seed), dtype, seed)
        expected, size = exact(problem)
        got = run(problem, "native", device)
        assert set(got) == set(expected)
        for name, value in expected.items():
            assert got[name].dtype == (torch.float32 if value.dim() != 3 or got[name].dtype == torch.float32 else dtype)
            error = float((got[name].double() - value).abs().max()) / size[name]
            assert error < TOLERANCE[dtype], (seed, problem.layer, name, error)


@emulated
@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16"))
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("wide", "paired")])
def test_random_layers_and_all_their_gradients(on_emulator, family, dtype):
    check_layers(family, dtype, range(6))
    assert set(on_emulator) == {"conv_forward", "conv_backward"}


@emulated
def test_what_the_cuda_kernels_do_not_take_goes_to_the_twin_or_is_refused(on_emulator):
    problem = Problem(Layer((Input(4, 5, 3),), 2), torch.float64, 0)
    expected, _ = exact(problem)
    torch.testing.assert_close(run(problem, "auto")["raw"], expected["raw"])
    assert on_emulator == []
    with pytest.raises(DeviceError, match="do not take torch.float64"):
        run(problem, "native")
    x = torch.zeros(4, 5, 3)
    conv.norm_apply(Source(x), torch.empty_like(x))
    with pytest.raises(DipEngineError):
        conv.norm_apply(Source(x), torch.empty_like(x), kernels="native")
    assert on_emulator == []


def check_norms(device="cpu"):
    """Statistics, fold and both backward steps of a norm behind bilinear upsampling: native beside the twin in float64."""
    x, g = (torch.from_numpy(drawn(seed, 9, 11, 21)) for seed in (1, 2))
    inner, gamma, beta = (torch.from_numpy(drawn(seed, 21)) + 1.5 for seed in (3, 4, 5)), drawn(6, 21), drawn(7, 21)
    inner = (next(inner), next(inner))
    outs = {}
    for kernels, dtype, where in (("torch", torch.float64, "cpu"), ("native", torch.float32, device)):
        image = x.to(where, dtype)
        mean, variance, scale, shift, total, product = conv.numbers(21, image, 6)
        there = tuple(n.to(mean) for n in inner)
        source = Source(image, "bilinear", inner=there, slope=0.2)
        fold = Fold(scale, shift, torch.from_numpy(gamma).to(where), torch.from_numpy(beta).to(where), EPS)
        conv.norm_statistics(source, (mean, variance), fold=fold, kernels=kernels)
        d_x = g.to(where, dtype).clone()
        triple, d_gamma, d_beta = conv.norm_fold_gradient(400, (mean, variance), fold.gamma, EPS, mean, variance, centred=False,
                                                          kernels=kernels)
        target = replace(source, d_x=d_x, centre=mean, sum=total, product=product)
        conv.norm_backward(target, d_x, triple, kernels=kernels)
        outs[kernels] = [mean, variance, scale, shift, *triple, d_gamma, d_beta, d_x, total, product]
    for got, expected in zip(outs["native"], outs["torch"]):
        torch.testing.assert_close(got.double().cpu(), expected.double(), rtol=1e-5, atol=2e-5 * float(expected.abs().max()))


@emulated
def test_a_norm_and_its_backward_are_the_twins(on_emulator):
    # The twin is asked by name, so that of both only "native" goes to the device; its numbers are float32 all the same.
    check_norms()
    assert on_emulator == ["norm_statistics", "norm_fold_gradient", "norm_backward"]


# ---- the network -----------------------------------------------------------------------------------------------------


def network_of(architecture, seed, kernels, dtype=torch.float64):
    generator = np.random.default_rng(seed)
    values = {}
    for spec in architecture.parameters():
        low, high = {"ones": (0.5, 1.5), "zeros": (-0.3, 0.3)}.get(spec.initial, (-spec.bound, spec.bound))
        values[spec.name] = generator.uniform(low, high, spec.shape)
    network = HourglassNetwork(architecture, kernels=kernels).to(dtype)
    network.load_numpy(values)
    return network


def outputs(network, z, target):
    """Logits and the gradients of their distance from the target, float64 in CPU memory, by name."""
    logits = network(z)
    (logits.double() - target.to(z.device)).square().mean().backward()
    found = {name: p.grad.double().cpu() for name, p in network.named_parameters() if p.grad is not None}
    return {"logits": logits.detach().double().cpu()} | found


def check_network(architecture, precision, device="cpu", autocast="cpu", size=(8, 12)):
    """The fused network, pooled over seeds, at most twice as far from float64 as plain PyTorch at that precision."""
    squares = {"native": [], "torch": []}
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        size = architecture.canvas(*size)
        z = torch.rand(1, architecture.input_depth, *size, generator=generator, dtype=torch.float64)
        target = torch.rand(1, architecture.output_channels, *size, generator=generator, dtype=torch.float64)
        expected = outputs(network_of(architecture, seed, "torch"), z, target)
        scales = {}
        for name, value in expected.items():
            layer = name.rsplit(".", 2)[0]
            scales[layer] = max(scales.get(layer, 0.0), float(value.abs().max()))
        for kernels, kept in squares.items():
            network = network_of(architecture, seed, kernels, torch.float32).to(device)
            with torch.autocast(autocast, torch.bfloat16, enabled=precision == "bf16"):
                got = outputs(network, z.to(device, torch.bfloat16 if precision == "bf16" else torch.float32), target)
            assert set(got) == set(expected)
            errors = [((got[name] - value) / scales[name.rsplit(".", 2)[0]]).flatten() for name, value in expected.items()]
            kept.append(float(torch.cat(errors).square().mean().sqrt()))
    native, plain = (float(torch.tensor(kept).median()) for kept in squares.values())
    return native, plain


@emulated
@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_network_runs_on_the_kernels_forward_and_backward(on_emulator, name):
    native, plain = check_network(NETWORKS[name], "bf16")
    assert native <= 2 * plain, (native, plain)
    assert {"conv_forward", "conv_backward", "norm_statistics", "norm_fold_gradient", "norm_backward"} == set(on_emulator)


@emulated
def test_a_whole_network_in_tf32(on_emulator):
    native, _ = check_network(SMALL, "fp32")
    assert 1e-6 < native < 5e-3  # 10 mantissa bits round to 2^-11 = 5e-4 a product


def problem_of(image):
    values = ValueMap(0.0, 1.0)
    return task_named("denoise").problem(TaskData(image.astype(np.float32), None, None, values), "balanced")


@emulated
def test_a_fit_runs_wholly_on_the_kernels_and_learns(on_emulator):
    problem = problem_of(synthetic_picture(14, 16))
    recipe = replace(problem.recipe, generator=replace(SMALL, input_depth=8), iterations=12)
    losses = {}
    for kernels in ("native", "torch"):
        loop = AutogradLoop(problem, recipe, 3, Placement("cpu", "fp32", kernels, 1), "fixed")
        assert loop.fit.network.fused == (kernels == "native")
        loop.run(12)
        losses[kernels] = loop.losses
        called, on_emulator[:] = list(on_emulator), []
        assert (set(called) >= {"perturb", "masked_mse", "adam", "conv_forward", "conv_backward"}) == (kernels == "native")
    native, plain = losses["native"], losses["torch"]
    assert native[0] == pytest.approx(plain[0], rel=2e-3)  # before any update, in tf32
    assert native[-1] < 0.8 * native[0] and native[-1] == pytest.approx(plain[-1], rel=0.2)


OTHERS = {
    "superres": (lambda data: task_named("superres").problem(data, "balanced", factor=2), {"downsample", "downsample_backward"}),
    "deblur": (lambda data: task_named("deblur").problem(data, "balanced", kernel=np.full((3, 3), 1 / 9)), {"blur", "blur_backward"}),
    "sensor": (lambda data: task_named("denoise").problem(data, "balanced", noise="poisson", gain=300.0), {"deviance"}),
}


@emulated
@pytest.mark.parametrize("name", OTHERS)
def test_operators_and_data_terms_of_a_fit_run_on_the_kernels(on_emulator, name):
    state, called = OTHERS[name]
    data = TaskData(synthetic_picture(7, 8).astype(np.float32), None, None, ValueMap(0.0, 1.0))
    problem = state(data)
    recipe = replace(problem.recipe, generator=replace(SMALL, input_depth=8), iterations=3)
    losses = {}
    for kernels in ("native", "torch"):
        on_emulator.clear()
        loop = AutogradLoop(problem, recipe, 3, Placement("cpu", "fp32", kernels, 1), "fixed")
        loop.run(3)
        losses[kernels] = loop.losses
        assert loop.fit.discrepancy() is None or loop.fit.discrepancy() > 0
        assert (called <= set(on_emulator)) == (kernels == "native")  # initial weights are drawn by native ops at all times
    assert losses["native"][0] == pytest.approx(losses["torch"][0], rel=5e-3)


# ---- where a fit runs ------------------------------------------------------------------------------------------------


class Gpus:
    """PyTorch with one CUDA device, as far as `place` asks."""

    def __init__(self, monkeypatch, capability=(9, 0), missing=""):
        cuda = torch.cuda
        monkeypatch.setattr(fitting_device, "_nvidia_driver", lambda: True)
        monkeypatch.setattr(cuda, "is_available", lambda: True)
        monkeypatch.setattr(cuda, "device_count", lambda: 1)
        monkeypatch.setattr(cuda, "is_bf16_supported", lambda: True)
        monkeypatch.setattr(cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(backend, "cuda_missing", lambda: missing)
        monkeypatch.setattr(backend, "native", OneGpu(backend.native, missing))
        monkeypatch.delenv("DIPENGINE_KERNELS", raising=False)


@pytest.mark.parametrize("wish", [None, "auto", "native"])
def test_a_fit_on_a_gpu_takes_the_native_kernels_where_they_can_run(monkeypatch, wish):
    Gpus(monkeypatch)
    for wished in (Settings(device="cuda:0", kernels=wish), Settings(device="auto", kernels=wish)):
        assert place(wished).kernels == "native" and for_autograd(place(wished), wished) == place(wished)
    torchs = Settings(device="cuda:0", kernels="torch")
    assert for_autograd(place(torchs), torchs).kernels == place(torchs).kernels == "torch"


@pytest.mark.parametrize("trouble, said", [
    ({"missing": "This library was built without CUDA kernels; build it with them."}, "built without CUDA kernels"),
    ({"capability": (7, 5)}, "compute capability 8.0 and it has 7.5"),
])
def test_a_fit_on_a_gpu_without_native_kernels_is_pytorchs_or_refused_in_a_sentence(monkeypatch, trouble, said):
    Gpus(monkeypatch, **trouble)
    asked = Settings(device="cuda:0")
    assert for_autograd(place(asked), asked).kernels == "torch"
    asked = Settings(device="cuda:0", kernels="native")
    with pytest.raises(DeviceError, match=said) as caught:
        for_autograd(place(asked), asked)
    assert str(caught.value).endswith("use --kernels torch.")


# ---- the same on a GPU -----------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16"))
@pytest.mark.parametrize("family", FAMILIES)
def test_random_layers_on_a_gpu(gpu, family, dtype):
    check_layers(family, dtype, range(24), gpu)


@pytest.mark.gpu
def test_norms_on_a_gpu(gpu):
    check_norms(gpu)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_network_on_a_gpu(gpu, name, precision, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch at the kernels' precision
    native, plain = check_network(NETWORKS[name], precision, gpu, "cuda", (32, 48))
    assert native <= 2 * plain + 4 * 2**-24, (native, plain)


@pytest.mark.gpu
def test_a_short_restoration_on_a_gpu(gpu):
    clean = synthetic_picture(64, 96)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 0.1, clean.shape), 0, 1).astype(np.float32)
    settings = {**TINY, "channels": 16, "iterations": 80, "truth": clean.astype(np.float32), "precision": "fp32"}
    ends = {kernels: np.mean([denoise(noisy, **settings, device=gpu, kernels=kernels, seed=seed).record["psnr"] for seed in range(3)])
            for kernels in ("native", "torch")}
    assert denoise(noisy, **settings, device=gpu).record["kernels"] == "native"
    assert ends["torch"] > 20 and abs(ends["native"] - ends["torch"]) < 0.5, ends
