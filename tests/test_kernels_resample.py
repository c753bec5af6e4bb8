"""Native downsampling against tasks.downsampling and its gradient by torch autograd."""

import pytest

torch = pytest.importorskip("torch")

from dipengine.errors import InputError  # noqa: E402
from dipengine.kernels import backend, workspace  # noqa: E402
from dipengine.tasks.downsampling import KERNELS, Downsampling  # noqa: E402

native = backend.native
pytestmark = pytest.mark.skipif(native is None, reason="needs the native core")
SHAPES = [(1, 1, 1), (1, 1, 3), (32, 48, 3), (37, 29, 1), (5, 301, 3), (64, 3, 4), (2, 5, 2)]


def strided(height, width, channels, dtype, fill=torch.nan):
    """A window in a wider canvas whose pixels have a gap."""
    return torch.full((height + 2, width + 3, channels + 1), fill, dtype=dtype)[:height, :width, :channels]


def problem(seed, shape, operator, dtype):
    """image and d_out [.., .., C], and torch's output and gradient in `dtype` and in float64."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    results = []
    d_out = None
    for precision in (dtype, torch.float64):
        leaf = image.to(precision).permute(2, 0, 1)[None].requires_grad_()
        out = operator.apply(leaf)
        if d_out is None:
            d_out = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype)
        out.backward(d_out.to(precision))
        results += [out.detach()[0].permute(1, 2, 0), leaf.grad[0].permute(1, 2, 0)]
    return image, d_out[0].permute(1, 2, 0).contiguous(), results


def run(operator, image, d_out, threads=2, make=torch.empty):
    taps, factor, before = torch.from_numpy(operator.taps), operator.factor, operator.before
    pool, memory = native.Pool(threads), workspace.get()
    out, d_image = (make(*like.shape, dtype=image.dtype) for like in (d_out, image))
    native.downsample(image, taps, factor, before, out, memory, pool)
    native.downsample_backward(d_out, taps, factor, before, d_image, memory, pool)
    return out, d_image


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 16])
def test_it_is_the_twin_and_its_gradient(factor, kernel):
    for number, shape in enumerate(SHAPES):
        for centred in (True, False):
            operator = Downsampling(factor, kernel, centred=centred)
            for dtype, tolerance in ((torch.float32, 4e-6), (torch.float64, 1e-14)):
                image, d_out, (_, _, exact, exact_gradient) = problem(number, shape, operator, dtype)
                out, d_image = run(operator, image, d_out)
                torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
                torch.testing.assert_close(d_image.double(), exact_gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_strides_and_threads_change_no_bit_and_gaps_are_not_touched(shape):
    operator = Downsampling(4)
    image, d_out, _ = problem(1, shape, operator, torch.float32)
    expected = run(operator, image, d_out, threads=1)
    for threads in (1, 2, 3):
        inputs = [strided(*tensor.shape, tensor.dtype).copy_(tensor) for tensor in (image, d_out)]
        outputs = run(operator, *inputs, threads=threads, make=strided)
        for got, dense in zip(outputs, expected):
            assert torch.equal(got, dense)
            whole = got._base
            assert int(whole.isnan().sum()) == whole.numel() - got.numel()


def test_error_against_float64_is_at_most_twice_that_of_plain_pytorch():
    operator = Downsampling(4, "lanczos3")
    errors = {"native": [], "torch": []}
    for seed in range(64):
        image, d_out, (out, gradient, exact, exact_gradient) = problem(seed, (32, 31, 3), operator, torch.float32)
        for name, results in (("native", run(operator, image, d_out)), ("torch", (out, gradient))):
            errors[name] += [(results[0] - exact).flatten(), (results[1] - exact_gradient).flatten()]
    ours, plain = (float(torch.cat(errors[name]).square().mean().sqrt()) for name in ("native", "torch"))
    assert ours <= 2 * plain + 2**-24


def test_what_does_not_fit_is_refused_in_a_sentence():
    image, taps, memory = torch.rand(8, 9, 3), torch.ones(4, dtype=torch.float64), workspace.get()
    out = torch.empty(2, 3, 3)
    for bad in [
        (image, taps, 0, 0, out), (image, taps.float(), 4, 0, out), (image, taps[:0], 4, 0, out),
        (image, taps, 4, 0, out[:1]), (image, taps, 4, 0, out.double()), (image.bfloat16(), taps, 4, 0, out.bfloat16()),
        (image.permute(2, 0, 1), taps, 4, 0, out), (image[0], taps, 4, 0, out),
        (image, taps, 4, 0, torch.empty(3).expand(2, 3, 3)),
    ]:
        with pytest.raises(InputError):
            native.downsample(*bad, memory)
    with pytest.raises(InputError):
        native.downsample_backward(out[:1], taps, 4, 0, image, memory)
