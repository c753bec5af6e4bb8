"""CUDA tensors through the bindings: protocols, streams, dispatch on the emulated device; the same on a GPU where there is one."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from emulated_arrays import DlpackArray, InterfaceArray, OldDlpackArray  # noqa: E402
from emulated_fixtures import emulated, gpu, memory, module, on_emulator  # noqa: E402, F401

from dipengine.errors import DeviceError, InputError  # noqa: E402
from dipengine.kernels import backend, philox  # noqa: E402
from dipengine.kernels.adam import Adam  # noqa: E402
from dipengine.kernels.blur import blur  # noqa: E402
from dipengine.kernels.deviance import Electrons, deviance, discrepancy  # noqa: E402
from dipengine.kernels.masked_mse import OutputStatistics, masked_mse, track  # noqa: E402
from dipengine.kernels.resample import downsample  # noqa: E402
from dipengine.tasks.downsampling import Downsampling  # noqa: E402

pytestmark = pytest.mark.skipif(backend.native is None, reason="needs the native core")
KINDS = [DlpackArray, OldDlpackArray, InterfaceArray]
ELECTRONS = Electrons(scale=700.0, shift=-4.0, read_variance=2.25, floor=0.1)


def numbers(seed, *shape):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


class Call:
    """Downsampling of a small image on the emulated device, with what it should give."""

    def __init__(self, memory, kind=DlpackArray, **image):
        self.operator = Downsampling(2)
        self.memory, self.values = memory, numbers(1, 6, 10, 3)
        self.image = kind(memory, self.values, **image)
        self.taps = kind(memory, self.operator.taps.astype(np.float32))
        self.out = kind(memory, np.full((3, 5, 3), np.nan, np.float32))
        self.lent = []

    def workspace(self, bytes_):
        self.lent.append(type(self.image)(self.memory, np.zeros(bytes_, np.uint8)))
        return self.lent[-1]

    def run(self, module, **named):
        named = {"workspace": self.workspace} | named
        module.downsample(self.image, self.taps, 2, self.operator.before, self.out, **named)

    def expected(self):
        out = np.empty((3, 5, 3), np.float32)
        taps = self.operator.taps.astype(np.float32).astype(np.float64)
        native = backend.native
        native.downsample(self.values, taps, 2, self.operator.before, out, native.Workspace())
        return out

    def arrays(self):
        return [self.image, self.taps, self.out, *self.lent]


# ---- protocols and streams -------------------------------------------------------------------------------------------


@emulated
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_enter_by_either_protocol_without_a_copy(module, memory, kind):
    call = Call(memory, kind)
    call.run(module)
    assert np.array_equal(call.out.numpy, call.expected())  # written where the caller's array lies
    assert all(array.intact and array.asked for array in call.arrays())


@emulated
@pytest.mark.parametrize("kind", [DlpackArray, OldDlpackArray])
@pytest.mark.parametrize("stream, number", [(None, 1), (0, 1), (2, 2), (7, 7), ("torch", 9), ("cupy", 11), ("cuda-python", 13)])
def test_producers_are_given_the_stream(module, memory, kind, stream, number):
    class TorchStream:
        cuda_stream = 9

    class CupyStream:
        ptr = 11

    class CudaPythonStream:
        def __cuda_stream__(self):
            return 0, 13

    stream = {"torch": TorchStream(), "cupy": CupyStream(), "cuda-python": CudaPythonStream()}.get(stream, stream)
    call = Call(memory, kind)
    call.run(module, stream=stream)
    assert all({asked["stream"] for asked in array.asked} == {number} for array in call.arrays())
    assert memory.launched_on() == [number, number]
    assert memory.happened() == "device 0;device 1;"  # and back to what was current before


@emulated
def test_the_stream_of_an_interface_is_waited_for(module, memory):
    call = Call(memory, InterfaceArray)
    call.image.stream, call.taps.stream = 5, 7
    call.run(module, stream=7)
    assert memory.happened() == "device 0;stream 7 behind 5;device 1;"
    call.image.stream = call.taps.stream = None
    call.run(module, stream=7)
    assert memory.happened() == "device 0;device 1;"
    call.image.stream = 0
    with pytest.raises(InputError, match="names stream 0"):
        call.run(module)


@emulated
def test_what_does_not_fit_is_refused_in_a_sentence(module, memory):
    with pytest.raises(DeviceError, match="'taps' is not on CUDA device 3 with the others"):
        Call(memory, device=3).run(module)
    call = Call(memory)
    call.taps = call.operator.taps.astype(np.float32)  # NumPy's
    with pytest.raises(DeviceError, match="'taps' is not on CUDA device 0 with the others"):
        call.run(module)
    call = Call(memory, InterfaceArray)
    call.out.read_only = True
    with pytest.raises(InputError, match="'out' is read-only"):
        call.run(module)
    call = Call(memory)
    call.out = DlpackArray(memory, np.zeros((3, 5, 3), np.float64))
    with pytest.raises(InputError, match="'out' has another dtype"):
        call.run(module)
    with pytest.raises(InputError, match="workspace as a function"):
        Call(memory).run(module, workspace=backend.native.Workspace())
    with pytest.raises(InputError, match="'stream' is neither"):
        Call(memory).run(module, stream="7")
    with pytest.raises(InputError, match="the tensor 'image' is in CPU memory"):
        image = numbers(1, 6, 10, 3)
        module.downsample(image, np.ones(2), 2, 0, image[:3, :5].copy(), workspace=module.Workspace(), stream=7)
    assert module.cuda_devices() == (1, "") and module.cuda_device_name(0) == "emulated"


@emulated
@pytest.mark.parametrize("stream", [-1, 1 << 64, 1.5, "7", b"7", object(), type("Odd", (), {"ptr": "7"})(), type("Odd", (), {"cuda_stream": None})(),
                                    type("Odd", (), {"__cuda_stream__": lambda self: 7})()])
def test_a_stream_that_is_none_is_refused_and_the_device_is_left_as_it_was(module, memory, stream):
    with pytest.raises(InputError, match="'stream' is neither"):
        Call(memory).run(module, stream=stream)
    assert memory.happened().replace("device 0;device 1;", "") == "" and memory.launched_on() == []


@emulated
@pytest.mark.parametrize("change", [{"data": None}, {"data": ("x", False)}, {"typestr": 5}, {"shape": "abc"}, {"stream": -1}, {"stream": "x"}])
def test_an_interface_that_does_not_keep_to_its_protocol_is_refused_in_a_sentence(module, memory, change):
    class Odd(InterfaceArray):
        @property
        def __cuda_array_interface__(self):
            return super().__cuda_array_interface__ | change

    for which in ("image", "out"):
        call = Call(memory, InterfaceArray)
        setattr(call, which, Odd(memory, getattr(call, which).numpy))
        with pytest.raises(InputError, match=f"'{which}' has a __cuda_array_interface__ that does not keep to its protocol"):
            call.run(module)
        memory.happened()


@emulated
@pytest.mark.parametrize("said", [None, (2,), "x", (2, "0"), (2, 1 << 40)])
def test_a_dlpack_device_that_is_none_is_refused_in_a_sentence(module, memory, said):
    call = Call(memory)
    call.image = type("Odd", (DlpackArray,), {"__dlpack_device__": lambda self: said})(memory, call.values)
    with pytest.raises(InputError, match="'image' has a __dlpack_device__ that does not keep to its protocol"):
        call.run(module)


@emulated
def test_workspace_of_another_alignment_is_refused(module, memory):
    steps, settings = np.zeros(1, np.int64), {"learning_rate": np.array([0.1])}
    arrays = [[DlpackArray(memory, numbers(i, 1, 8))] for i in range(4)]
    with pytest.raises(InputError, match="multiple of 16"):
        module.adam(*arrays, steps=steps, **settings, workspace=lambda n: DlpackArray(memory, np.zeros(n, np.uint8), offset=8))
    assert steps[0] == 0 and memory.launched_on() == []


def perturbed(native, of, out, **named):
    native.perturb(of(np.zeros((1, 20), np.uint8)), 0.1, 0.1, [], 1, [], of(out), **named)


@emulated
def test_no_fits_are_refused_on_a_device(module, memory):
    with pytest.raises(InputError, match="at least one fit"):
        perturbed(module, lambda array: DlpackArray(memory, array), np.zeros((0, 20), np.float32), workspace=Call(memory).workspace)


def test_no_fits_are_refused_in_cpu_memory():
    with pytest.raises(InputError, match="at least one fit"):
        perturbed(backend.native, lambda array: array, np.zeros((0, 20), np.float32))


def test_what_a_call_in_cpu_memory_works_in_is_asked_for_in_a_sentence():
    image, out = numbers(1, 6, 10, 3), np.zeros((3, 5, 3), np.float32)
    with pytest.raises(InputError, match="takes a Workspace"):
        backend.native.downsample(image, np.ones(2), 2, 0, out, workspace=lambda bytes_: np.zeros(bytes_, np.uint8))
    with pytest.raises(InputError, match="no Pool"):
        backend.native.downsample(image, np.ones(2), 2, 0, out, workspace=backend.native.Workspace(), pool=2)


def test_a_producer_that_hands_out_a_copy_is_refused():
    class Copying:
        """Another copy at each question, as of an array whose layout DLPack cannot say."""

        def __init__(self, array):
            self.array = array

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

        def __dlpack__(self, *, max_version=None, stream=None):
            return self.array.__dlpack__(max_version=max_version, copy=True)

    image, out = numbers(1, 6, 10, 3), np.zeros((3, 5, 3), np.float32)
    space = backend.native.Workspace()
    try:
        image.__dlpack__(max_version=(1, 0), copy=True)
    except TypeError:
        pytest.skip("needs a NumPy that copies for DLPack (2.1)")
    with pytest.raises(InputError, match="'image' is handed out as a copy"):
        backend.native.downsample(Copying(image), np.ones(2), 2, 0, out, workspace=space)
    with pytest.raises(InputError, match="'out' would be written as a copy"):
        backend.native.downsample(image, np.ones(2), 2, 0, Copying(out), workspace=space)
    backend.native.downsample(Copying(image).__dlpack__(max_version=(1, 0)), np.ones(2) / 2, 2, 0, out, workspace=space)  # held by the caller
    assert np.isfinite(out).all() and out.any()


def test_a_core_without_cuda_kernels_says_what_to_do():
    if not backend.cuda_missing():
        pytest.skip("the core has CUDA kernels and a device")
    message = "built without CUDA kernels; build it with them" if "built without" in backend.cuda_missing() else "CUDA device"

    class Elsewhere:
        def __dlpack_device__(self):
            return 2, 0

    with pytest.raises(DeviceError, match=message):
        backend.native.downsample(Elsewhere(), np.ones(2), 2, 0, Elsewhere(), workspace=backend.native.Workspace())
    assert backend.native.cuda_devices()[0] == 0


# ---- several fits ----------------------------------------------------------------------------------------------------


@emulated
@pytest.mark.parametrize("bfloat16", [False, True])
def test_three_codes_are_perturbed_as_on_a_cpu(module, memory, bfloat16):
    z, seeds, steps = np.arange(60, dtype=np.uint8).reshape(3, 20), [7, 1 << 63, 9], [0, 5, 1 << 31]
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    expected = torch.empty(3, 20, dtype=dtype)
    backend.native.perturb(z, 0.1 / 255, 0.03, seeds, 1, steps, expected)
    out = DlpackArray(memory, np.zeros((3, 20), np.uint16 if bfloat16 else np.float32), bfloat16=bfloat16)
    call = Call(memory)
    module.perturb(DlpackArray(memory, z), 0.1 / 255, 0.03, seeds, 1, steps, out, workspace=call.workspace, stream=7)
    assert np.array_equal(out.numpy, (expected.view(torch.uint16) if bfloat16 else expected).numpy())
    assert out.asked[-1]["stream"] == 7 and memory.launched_on() == [7]
    assert memory.happened() == "device 0;numbers on 7;device 1;"


@emulated
def test_adam_updates_fits_that_are_active_and_more_tensors_than_a_launch_takes(module, memory):
    count = 50
    values = [[numbers(i + 100 * part, 3, 5 + i % 4) ** 2 for i in range(count)] for part in range(4)]
    settings = {"learning_rate": np.array([0.1, 0.2, 0.3]), "active": np.array([1, 0, 1], np.uint8)}
    steps = np.array([0, 3, 8])
    cpu = [[array.copy() for array in part] for part in values]
    backend.native.adam(*cpu, steps=steps.copy(), **settings)
    device = [[DlpackArray(memory, array) for array in part] for part in values]
    module.adam(*device, steps=steps, **settings, workspace=Call(memory).workspace)
    assert steps.tolist() == [1, 3, 9]
    for on_cpu, on_device in zip(cpu, device):
        assert all(np.array_equal(a, b.numpy) and b.intact for a, b in zip(on_cpu, on_device))


@emulated
def test_masked_mse_of_three_fits_counts_frames_on_the_device(module, memory):
    raw, target, mean = numbers(1, 3, 1, 6, 7, 3), numbers(2, 3, 1, 6, 7, 3), numbers(3, 3, 1, 6, 7, 3)
    mask = (numbers(4, 3, 1, 6, 7, 1) > 0).astype(np.float32)
    frames, variance, normaliser = np.array([2, 5, 0]), np.array([0.5, 0.25, 9.0]), [126.0, 63.0, 100.0]
    place = {name: DlpackArray(memory, value) for name, value in (
        ("target", target), ("mask", mask), ("d_raw", np.zeros_like(raw)), ("es_mean", mean), ("loss", np.zeros(3)), ("frames", frames),
        ("es_variance", variance))}
    module.masked_mse(DlpackArray(memory, raw), **place, normaliser=normaliser, active=[1, 0, 1], workspace=Call(memory).workspace,
                      stream=7)
    assert memory.launched_on() == [7, 7]
    cpu = {"d_raw": np.zeros_like(raw), "es_mean": mean.copy(), "loss": np.zeros(3), "d2": np.zeros(3)}
    space = np.zeros(backend.native.masked_mse_workspace(raw), np.uint8)
    backend.native.masked_mse(raw, target=target, mask=mask, **cpu, normaliser=normaliser, active=[1, 0, 1], first_frame=[0, 0, 1],
                              workspace=space)
    assert all(np.array_equal(place[name].numpy, cpu[name]) for name in ("d_raw", "es_mean"))
    np.testing.assert_allclose(place["loss"].numpy, cpu["loss"], rtol=1e-13)
    assert place["frames"].numpy.tolist() == [3, 5, 1]
    np.testing.assert_allclose(place["es_variance"].numpy, [0.9 * (0.5 + 0.1 * cpu["d2"][0]), 0.25, 0], rtol=1e-13)
    with pytest.raises(InputError, match="lay channels last"):
        module.masked_mse(DlpackArray(memory, numbers(1, 1, 3, 4, 5)), frames=place["frames"], workspace=Call(memory).workspace)


# ---- the autograd functions ------------------------------------------------------------------------------------------


def image(seed, channels, height, width, dtype=torch.float64):
    drawn = torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype).contiguous(memory_format=torch.channels_last)


def gradient_of(function, leaf):
    """(value, gradient of its weighted sum) in float64."""
    leaf = leaf.detach().clone().requires_grad_()
    value = function(leaf)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).view(value.shape)
    (value * weights.to(value)).sum().backward()
    return value.detach().double().cpu(), leaf.grad.double().cpu()


def check_accuracy(function, seeds, *shape, device="cpu"):
    """Native, pooled over seeds, at most twice as far from float64 as plain PyTorch in float32."""
    errors = {"native": [[], []], "torch": [[], []]}
    for seed in range(seeds):
        x = image(seed, *shape, dtype=torch.float32)
        exact = gradient_of(lambda leaf: function(leaf, "torch"), x.double())
        for kernels, kept in errors.items():
            for got, true, sink in zip(gradient_of(lambda leaf: function(leaf, kernels), x.to(device)), exact, kept):
                assert got.shape == true.shape and torch.isfinite(got).all()
                sink.append((got - true).flatten())
    for native, plain in zip(*(errors[kernels] for kernels in ("native", "torch"))):
        ours, theirs = (float(torch.cat(e).square().mean().sqrt()) for e in (native, plain))
        assert ours <= 2 * theirs + 4 * 2**-24, (ours, theirs)


def downsampled(factor):
    operator = Downsampling(factor)
    return lambda x, kernels: downsample(x, torch.from_numpy(operator.taps), factor, operator.before, kernels=kernels)


def blurred(height, width):
    kernel = image(99, 1, height, width)[0, 0]
    return lambda x, kernels: blur(x, kernel / kernel.sum(), kernels=kernels)


def under_the_sensor(shape):
    target = image(98, *shape)
    mask = (image(97, 1, *shape[1:]) > 0.3).double()
    return lambda x, kernels: deviance(x, target.to(x), mask.to(x), ELECTRONS, kernels=kernels)


def mean_square(shape, dtype):
    target = image(96, *shape)
    mask = (image(95, 1, *shape[1:]) > 0.3).double()

    def function(x, kernels):
        real = torch.float64 if x.dtype == torch.float64 else torch.float32
        raw = x.to(torch.float64 if real == torch.float64 else dtype)
        return masked_mse(raw, target.to(x.device, real), mask.to(x.device, real), kernels=kernels)

    return function


OPERATORS = {
    "downsample_2": (downsampled(2), 4, (3, 11, 14)), "downsample_4": (downsampled(4), 4, (1, 17, 9)),
    "blur": (blurred(5, 7), 4, (3, 13, 17)), "deviance": (under_the_sensor((3, 9, 12)), 4, (3, 9, 12)),
    "masked_mse": (mean_square((3, 9, 12), torch.float32), 4, (3, 9, 12)),
}


@emulated
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_take_cuda_tensors_forward_and_backward(on_emulator, name):
    function, seeds, shape = OPERATORS[name]
    check_accuracy(function, seeds, *shape)
    assert len(on_emulator) >= seeds and set(on_emulator) <= {
        "downsample", "downsample_backward", "blur", "blur_backward", "deviance", "masked_mse"}


@emulated
def test_the_discrepancy_is_that_of_the_twin(on_emulator):
    x, target = image(1, 3, 9, 12, torch.float32), image(2, 3, 9, 12, torch.float32)
    native, plain = (discrepancy(x, target, None, ELECTRONS, kernels=kernels) for kernels in ("native", "torch"))
    assert native == pytest.approx(plain, rel=1e-9) and on_emulator == ["deviance"]


@emulated
def test_a_code_is_perturbed_as_by_the_twin(on_emulator):
    z = (image(1, 4, 5, 6) * 255).to(torch.uint8)
    native, plain = (torch.empty_like(z, dtype=torch.float32) for _ in range(2))
    for kernels, out in (("native", native), ("torch", plain)):
        philox.perturb(z, 0.03, 1 << 50, 7, out=out, scale=0.1 / 255, kernels=kernels)
    torch.testing.assert_close(native, plain, rtol=0, atol=2e-7)
    assert on_emulator == ["perturb"]


def trained(kernels, device="cpu"):
    """Parameters after five updates from gradients drawn anew."""
    layer = torch.nn.Linear(7, 3, device=device)
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(image(i, 1, *parameter.view(len(parameter), -1).shape, dtype=torch.float32).view(parameter.shape))
    optimizer = Adam(layer.named_parameters(), kernels=kernels)
    for step in range(5):
        optimizer.gradient.copy_(image(50 + step, 1, 1, optimizer.gradient.numel(), torch.float32).flatten() - 0.5)
        optimizer.step()
    assert optimizer.step_count == 5
    return optimizer.parameters.cpu()


@emulated
def test_adam_is_the_twins(on_emulator):
    native = trained("native")
    assert on_emulator == ["adam"] * 5
    torch.testing.assert_close(native, trained("torch"), rtol=2e-6, atol=2e-7)


def followed(kernels, device="cpu"):
    """Statistics after four outputs of a canvas, of which a window is looked at."""
    statistics = OutputStatistics(3, 7, 9, average_decay=0.9, warm_up=True, device=device)
    for step in range(4):
        raw = image(step, 3, 8, 10, torch.float32).to(device) * 4
        if step == 2:
            track(raw, window=(7, 9), statistics=statistics, kernels=kernels)
        else:
            target = torch.full((1, 3, 7, 9), 0.5, device=device)
            masked_mse(raw, target, window=(7, 9), statistics=statistics, kernels=kernels)
    assert statistics.frames == 4
    return statistics.average.cpu(), statistics.es_mean.cpu(), torch.tensor(statistics.es_variance)


@emulated
def test_statistics_are_the_twins(on_emulator):
    for native, plain in zip(followed("native"), followed("torch")):
        torch.testing.assert_close(native, plain, rtol=2e-6, atol=2e-7)
    assert on_emulator == ["masked_mse"] * 4


@emulated
def test_what_the_cuda_kernels_do_not_take_goes_to_the_twin_or_is_refused(on_emulator):
    raw, target = image(1, 3, 4, 5), image(2, 3, 4, 5)
    masked_mse(raw, target)
    assert on_emulator == []
    with pytest.raises(DeviceError, match="do not take torch.float64"):
        masked_mse(raw, target, kernels="native")


# ---- the same on a GPU -----------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_on_a_gpu(gpu, name):
    function, seeds, shape = OPERATORS[name]
    check_accuracy(function, seeds, *shape, device=gpu)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["downsample_2", "downsample_4", "deviance"])
def test_a_gpu_gives_the_bits_of_a_cpu(gpu, name):
    function, _, shape = OPERATORS[name]
    x = image(3, *shape, dtype=torch.float32)
    on_cpu, on_gpu = (gradient_of(lambda leaf: function(leaf, "native"), x.to(device)) for device in ("cpu", gpu))
    assert torch.equal(on_cpu[1], on_gpu[1])
    torch.testing.assert_close(on_gpu[0], on_cpu[0], rtol=1e-6 if name == "deviance" else 0, atol=0)  # sums run in other tiles


@pytest.mark.gpu
def test_perturbation_adam_and_statistics_on_a_gpu(gpu):
    z = image(1, 4, 300, 200, torch.float32)
    on_cpu, on_gpu = (philox.perturb(z.to(device), 0.03, 5, 7, out=torch.empty_like(z, device=device), kernels="native")
                      for device in ("cpu", gpu))
    assert torch.equal(on_cpu, on_gpu.cpu())
    assert torch.equal(trained("native"), trained("native", gpu))
    for on_cpu, on_gpu in zip(followed("native"), followed("native", gpu)):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-12, atol=0)


@pytest.mark.gpu
def test_a_gpu_works_on_the_stream_that_it_is_given(gpu):
    operator = Downsampling(4)
    x = torch.rand(2048, 2048, 3, device=gpu)
    taps = torch.as_tensor(operator.taps, dtype=torch.float32, device=gpu)
    expected, out = torch.empty(512, 512, 3, device=gpu), torch.zeros(512, 512, 3, device=gpu)
    space = torch.empty(1 << 26, dtype=torch.uint8, device=gpu)
    backend.native.downsample(x, taps, 4, operator.before, expected, workspace=lambda bytes_: space)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    late = torch.empty_like(x)
    torch.cuda._sleep(50_000_000)  # the current stream is busy, and only then has the image
    late.copy_(x)
    backend.native.downsample(late, taps, 4, operator.before, out, workspace=lambda bytes_: space, stream=stream)
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs CuPy")
def test_arrays_of_cupy_enter_and_are_written(gpu):
    import cupy

    operator = Downsampling(2)
    values, out = numbers(1, 60, 80, 3), cupy.empty((30, 40, 3), cupy.float32)
    taps = cupy.asarray(operator.taps, dtype=cupy.float32)
    backend.native.downsample(cupy.asarray(values), taps, 2, operator.before, out, workspace=lambda n: cupy.empty(n, cupy.uint8))
    expected = np.empty((30, 40, 3), np.float32)
    backend.native.downsample(values, operator.taps.astype(np.float32).astype(np.float64), 2, operator.before, expected,
                              workspace=backend.native.Workspace())
    assert np.array_equal(cupy.asnumpy(out), expected)
