"""Native blur against tasks.blur and its gradient by torch autograd."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dipengine.errors import InputError  # noqa: E402
from dipengine.kernels import backend, workspace  # noqa: E402
from dipengine.tasks.blur import Blur  # noqa: E402

native = backend.native
pytestmark = pytest.mark.skipif(native is None, reason="needs the native core")
# height, width, channels of the output; kernel
SHAPES = [((1, 1, 1), (1, 1)), ((1, 1, 3), (3, 2)), ((13, 17, 3), (5, 4)), ((30, 45, 1), (1, 50)), ((6, 7, 3), (41, 3)),
          ((64, 50, 3), (31, 31)), ((9, 200, 4), (7, 7)), ((3, 2, 2), (9, 33))]


def kernel_of(generator, size):
    """A positive kernel of sum 1, as cameras have."""
    weights = torch.rand(size, generator=generator, dtype=torch.float64) ** 2
    return weights / weights.sum()


def strided(height, width, channels, dtype, fill=torch.nan):
    """A window in a wider canvas whose pixels have a gap."""
    return torch.full((height + 2, width + 3, channels + 1), fill, dtype=dtype)[:height, :width, :channels]


def problem(seed, shape, size, dtype):
    """kernel, image and d_out [.., .., C], and torch's output and gradient in `dtype` and in float64."""
    generator = torch.Generator().manual_seed(seed)
    kernel = kernel_of(generator, size)
    height, width, channels = shape
    image = torch.rand(height + size[0] - 1, width + size[1] - 1, channels, generator=generator, dtype=torch.float64).to(dtype)
    d_out = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    results = []
    for precision in (dtype, torch.float64):
        leaf = image.to(precision).permute(2, 0, 1)[None].requires_grad_()
        out = Blur(kernel.numpy()).apply(leaf)
        out.backward(d_out.to(precision).permute(2, 0, 1)[None])
        results += [out.detach()[0].permute(1, 2, 0), leaf.grad[0].permute(1, 2, 0)]
    return kernel, image, d_out, results


def run(kernel, image, d_out, threads=2, make=torch.empty):
    pool, memory = native.Pool(threads), workspace.get()
    out, d_image = (make(*like.shape, dtype=image.dtype) for like in (d_out, image))
    native.blur(image, kernel, out, memory, pool)
    native.blur_backward(d_out, kernel, d_image, memory, pool)
    return out, d_image


@pytest.mark.parametrize("isa", [None, "avx2", "portable"])
@pytest.mark.parametrize("shape, size", SHAPES)
def test_it_is_the_twin_and_its_gradient(shape, size, isa):
    backend.native.set_cpu_isa(isa)
    try:
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
            kernel, image, d_out, (_, _, exact, exact_gradient) = problem(0, shape, size, dtype)
            out, d_image = run(kernel, image, d_out)
            torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(d_image.double(), exact_gradient, rtol=tolerance, atol=tolerance)
    finally:
        backend.native.set_cpu_isa(None)


@pytest.mark.parametrize("shape, size", SHAPES)
def test_strides_and_threads_change_no_bit_and_gaps_are_not_touched(shape, size):
    kernel, image, d_out, _ = problem(1, shape, size, torch.float32)
    expected = run(kernel, image, d_out, threads=1)
    for threads in (1, 2, 3):
        inputs = [strided(*tensor.shape, tensor.dtype).copy_(tensor) for tensor in (image, d_out)]
        for got, dense in zip(run(kernel, *inputs, threads=threads, make=strided), expected):
            assert torch.equal(got, dense)
            whole = got._base
            assert int(whole.isnan().sum()) == whole.numel() - got.numel()


@pytest.mark.parametrize("isa", [None, "avx2", "portable"])
@pytest.mark.parametrize("size", [(5, 5), (31, 31), (1, 61), (61, 1), (81, 81)])
def test_error_against_float64_is_at_most_twice_that_of_the_fourier_route(size, isa):
    errors = {"native": [], "torch": []}
    backend.native.set_cpu_isa(isa)
    try:
        for seed in range(8 if size[0] > 40 else 64):
            kernel, image, d_out, (out, gradient, exact, exact_gradient) = problem(seed, (32, 33, 3), size, torch.float32)
            for name, results in (("native", run(kernel, image, d_out)), ("torch", (out, gradient))):
                errors[name].append((float((results[0] - exact).square().mean()), float((results[1] - exact_gradient).square().mean())))
    finally:
        backend.native.set_cpu_isa(None)
    ours, plain = (np.sqrt(np.mean(errors[name], axis=0)) for name in ("native", "torch"))
    assert (ours <= 2 * plain).all(), (ours, plain)


def test_what_is_not_a_number_stays_where_it_reaches():
    kernel, image, d_out, _ = problem(2, (20, 21, 3), (5, 5), torch.float32)
    image[12, 13, 1] = torch.nan
    out, _ = run(kernel, image, d_out)
    assert torch.equal(out.isnan().nonzero().min(0).values, torch.tensor([8, 9, 1]))
    assert torch.equal(out.isnan().nonzero().max(0).values, torch.tensor([12, 13, 1])) and int(out.isnan().sum()) == 25


def test_what_does_not_fit_is_refused_in_a_sentence():
    image, kernel, out, memory = torch.rand(8, 9, 3), torch.ones(3, 4, dtype=torch.float64), torch.empty(6, 6, 3), workspace.get()
    for bad in [
        (image, kernel.float(), out), (image, kernel[0], out), (image, kernel[:0], out), (image, kernel[:, ::2], out),
        (image[1:], kernel, out), (image.double(), kernel, out), (image.bfloat16(), kernel, out.bfloat16()),
        (image, kernel, torch.empty(3).expand(6, 6, 3)), (image[0], kernel, out),
    ]:
        with pytest.raises(InputError):
            native.blur(*bad, memory)
    with pytest.raises(InputError):
        native.blur_backward(out[1:], kernel, image, memory)
