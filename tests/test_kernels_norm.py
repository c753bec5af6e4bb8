"""The norm passes and folds: native and twin against BatchNorm in float64 by autograd; large means; bits; refusals."""

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

from dipengine.errors import DipEngineError  # noqa: E402
from dipengine.kernels import conv, pool  # noqa: E402
from dipengine.kernels.conv import Fold, Source  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
BOTH = pytest.mark.parametrize("kernels", ["native", "torch"])
MODES = ("none", "nearest", "bilinear")
SIZES = [(1, 1, 3), (1, 2, 4), (2, 2, 1), (5, 1, 7), (3, 4, 16), (7, 9, 17), (6, 70, 5), (130, 3, 33), (20, 30, 48)]
EPS = 1e-5


def numbers(channels):
    return torch.full((channels,), float("nan"), dtype=torch.float64)


def upsampled(t, mode):
    """[H, W, C] float64, by PyTorch."""
    if mode == "none":
        return t
    nchw = t.permute(2, 0, 1)[None]
    return F.interpolate(nchw, scale_factor=2, mode=mode, align_corners=False if mode == "bilinear" else None)[0].permute(1, 2, 0)


class Block:
    """A raw x, its inner norm, a leaky ReLU, and a second BatchNorm behind the upsampling, with the gradient of its output."""

    def __init__(self, size, mode, dtype, seed=0, inner=True, mean=0.0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.mode, (height, width, channels) = mode, size
        self.x = (normal(*size) + mean).to(dtype)
        self.inner = (1 + 0.3 * normal(channels), 0.3 * normal(channels)) if inner else None
        self.slope = 0.2 if inner else 1.0
        self.gamma, self.beta = 1 + 0.3 * normal(channels), normal(channels)
        factor = 1 if mode == "none" else 2
        self.g = normal(factor * height, factor * width, channels)

    def source(self, **more):
        return Source(self.x, self.mode, inner=self.inner, slope=self.slope, **more)

    def activation(self):
        """(inner(x) as a leaf, t) in float64."""
        x = self.x.double()
        inner = (x if self.inner is None else x * self.inner[0] + self.inner[1]).requires_grad_()
        return inner, F.leaky_relu(inner, self.slope)


@BOTH
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_two_norms_and_their_gradients_agree_with_batch_norm_in_float64(size, mode, kernels):
    block = Block(size, mode, torch.float64)
    inner, t = block.activation()
    v = upsampled(t, mode)
    gamma, beta = block.gamma.clone().requires_grad_(), block.beta.clone().requires_grad_()
    mean, variance = v.mean((0, 1)), v.var((0, 1), unbiased=False)
    y = gamma * (v - mean) / torch.sqrt(variance + EPS) + beta
    y.backward(block.g)

    moments = numbers(size[2]), numbers(size[2])
    scale, shift = numbers(size[2]), numbers(size[2])
    conv.norm_statistics(block.source(), moments, fold=Fold(scale, shift, block.gamma, block.beta, EPS), kernels=kernels)
    torch.testing.assert_close(v.detach() * scale + shift, y.detach(), rtol=0, atol=2e-10)

    # What a convolution hands back: U^T g, and the sums over the pixels behind the norm.
    leaf = t.detach().requires_grad_()
    up = upsampled(leaf, mode)
    d_x = torch.autograd.grad(up, leaf, block.g)[0].clone(memory_format=torch.contiguous_format)
    total, product = block.g.sum((0, 1)), (block.g * up.detach()).sum((0, 1))
    coefficients, d_gamma, d_beta = conv.norm_fold_gradient(
        v.shape[0] * v.shape[1], moments, block.gamma, EPS, total, product, centred=False, kernels=kernels
    )
    centre, sums = torch.rand(size[2], dtype=torch.float64), (numbers(size[2]), numbers(size[2]))
    target = block.source(d_x=d_x, centre=centre, sum=sums[0], product=sums[1])
    conv.norm_backward(target, d_x, coefficients, kernels=kernels)
    torch.testing.assert_close(d_gamma, gamma.grad, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(d_beta, beta.grad, rtol=1e-11, atol=1e-11)
    # A variance of (nearly) nothing is divided by eps: rounding times 1e5.
    scaled = 1e-11 * max(1.0, float((block.gamma.abs() / (moments[1] + EPS).sqrt()).max()) ** 2)
    torch.testing.assert_close(d_x, inner.grad, rtol=0, atol=scaled)
    torch.testing.assert_close(sums[0], d_x.sum((0, 1)), rtol=0, atol=1e-9)
    torch.testing.assert_close(sums[1], (d_x * (block.x - centre)).sum((0, 1)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_error_of_the_backward_pass_is_at_most_twice_that_of_plain_pytorch(mode, dtype, each_isa):
    squares, count = {}, 0
    for seed in range(64):
        block = Block((7, 9, 19), mode, dtype, seed)
        coefficients = tuple(0.5 * torch.randn(3, 19, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
        g = torch.randn(7, 9, 19, generator=torch.Generator().manual_seed(seed + 100)).to(dtype)

        def call(kernels, dtype=dtype):
            x = Source(block.x.to(dtype), mode, inner=block.inner, slope=block.slope, d_x=torch.empty(7, 9, 19, dtype=dtype),
                       sum=numbers(19), product=numbers(19))
            conv.norm_backward(x, g.to(dtype), coefficients, kernels=kernels)
            return torch.cat([x.d_x.double().flatten(), x.sum / 63, x.product / 63])

        exact = call("torch", torch.float64)
        count += exact.numel()
        runs = {"torch": call("torch")} | {isa: call("native") for isa in each_isa()}
        for who, out in runs.items():
            squares[who] = squares.get(who, 0.0) + float((out - exact).square().sum())
    assert count > 10_000 and len(squares) > 1
    twin = (squares.pop("torch") / count) ** 0.5
    for isa, square in squares.items():
        assert (square / count) ** 0.5 <= 2 * twin + 8 * 2**-24, isa


@pytest.mark.parametrize("mode", MODES)
def test_statistics_do_not_cancel_where_the_mean_is_far_above_the_deviation(mode, each_isa):
    for mean, dtype, tolerance in ((1e4, torch.float32, 1e-5), (-1e4, torch.float32, 1e-5), (16.0, torch.bfloat16, 1e-5),
                                   (1e8, torch.float64, 1e-7)):
        block = Block((40, 70, 21), mode, dtype, inner=False, mean=mean)
        v = upsampled(block.x.double() - mean, mode)
        expected = v.mean((0, 1)), v.var((0, 1), unbiased=False)
        assert 0.2 < float(expected[1].min()) < 2
        for isa in each_isa():
            moments = numbers(21), numbers(21)
            conv.norm_statistics(block.source(), moments, kernels="native")
            assert ((moments[0] - mean - expected[0]).abs() < tolerance).all(), isa
            # Bilinear: the mean itself is rounded to the images' precision before it is taken away.
            assert ((moments[1] / expected[1] - 1).abs() < (1e-3 if mode == "bilinear" else 1e-4)).all(), isa


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_apply_writes_the_activation_inside_a_window_alone(dtype, kernels):
    frame = torch.full((8, 9, 24), 77.0, dtype=dtype)
    block = Block((6, 7, 19), "none", dtype)
    conv.norm_apply(block.source(), frame[1:7, 1:8, 2:21], kernels=kernels)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 0.02, torch.float64: 1e-14}[dtype]
    torch.testing.assert_close(frame[1:7, 1:8, 2:21].double(), block.activation()[1].detach(), rtol=tolerance, atol=tolerance)
    frame[1:7, 1:8, 2:21] = 77
    assert (frame == 77).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_bits_do_not_depend_on_threads(mode, dtype, each_isa):
    block = Block((133, 31, 37), mode, dtype)
    coefficients = tuple(torch.rand(3, 37, dtype=torch.float64))
    g = torch.rand(133, 31, 37).to(dtype)
    try:
        for isa in each_isa():
            results = []
            for threads in (1, 2, 3):
                pool.set_threads(threads)
                out = [numbers(37) for _ in range(4)] + [torch.empty_like(block.x)]
                conv.norm_statistics(block.source(), (out[0], out[1]), kernels="native")
                conv.norm_backward(block.source(d_x=out[4], sum=out[2], product=out[3]), g, coefficients, kernels="native")
                results.append(out)
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other)), isa
    finally:
        pool.set_threads(2)


def test_what_does_not_fit_is_refused_in_a_sentence():
    x, y = torch.zeros(4, 5, 3), torch.zeros(4, 5, 3)
    three, four = numbers(3), numbers(4)
    for refused in (
        lambda: conv.norm_statistics(Source(x), (three, four), kernels="native"),
        lambda: conv.norm_statistics(Source(x.half()), (three, three), kernels="native"),
        lambda: conv.norm_statistics(Source(x, inner=(three, four)), (three, three), kernels="native"),
        lambda: conv.norm_apply(Source(x), y[:3], kernels="native"),
        lambda: conv.norm_apply(Source(x), y.double(), kernels="native"),
        lambda: conv.norm_apply(Source(x.permute(1, 0, 2).permute(2, 1, 0)), y, kernels="native"),
        lambda: conv.norm_backward(Source(x), y, kernels="native"),  # nowhere to put it
        lambda: conv.norm_backward(Source(x, d_x=y), y[:, :4], kernels="native"),
        lambda: conv.norm_backward(Source(x, d_x=y, sum=three), y, kernels="native"),
        lambda: conv.norm_backward(Source(x, d_x=y), y, (three, three, four), kernels="native"),
        lambda: conv.norm_statistics(Source(x), (three, three), fold=Fold(three, four, three, three, EPS), kernels="native"),
        lambda: conv.norm_statistics(Source(x), (three, three), fold=Fold(three, three, three, four, EPS), kernels="native"),
        lambda: conv.norm_fold_gradient(0, (three, three), three, EPS, three, three, centred=True, kernels="native"),
        lambda: conv.norm_fold_gradient(20, (three, three), four, EPS, three, three, centred=True, kernels="native"),
    ):
        with pytest.raises(DipEngineError) as caught:
            refused()
        assert len(str(caught.value)) > 20
