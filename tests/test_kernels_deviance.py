"""The native deviance against noise.likelihood and its gradient by torch autograd."""

import pytest

torch = pytest.importorskip("torch")

from dipengine.errors import InputError  # noqa: E402
from dipengine.images import ValueMap  # noqa: E402
from dipengine.kernels import backend, workspace  # noqa: E402
from dipengine.noise.likelihood import FLOOR, SensorLikelihood  # noqa: E402
from dipengine.noise.sensor import Sensor  # noqa: E402

native = backend.native
pytestmark = pytest.mark.skipif(native is None, reason="needs the native core")
SHAPES = [(1, 1, 1), (1, 1, 3), (13, 17, 3), (64, 61, 1), (1, 9000, 1), (9, 7, 4), (5, 3001, 3), (3, 2, 7)]
TERMS = [SensorLikelihood(Sensor(1.0), ValueMap(0.0, 4.0)), SensorLikelihood(Sensor(2.0, 10.0, 1.5), ValueMap(2.0, 52.0)),
         SensorLikelihood(Sensor(3.5, 512.0, 2.0), ValueMap(500.0, 16383.0))]


def problem(seed, shape, dtype, masked=True):
    """image, a noisy target near it, mask or None: [height, width, channels]."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(shape, generator=generator, dtype=torch.float64) ** 2
    target = image + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = (torch.rand(*shape[:2], 1, generator=generator) > 0.4).to(dtype) if masked else None
    if masked:
        mask[0, 0] = 1
    return image.to(dtype), target.to(dtype), mask


def twin(term, image, target, mask, dtype):
    """loss, discrepancy and 3 times the gradient by torch."""
    planar = [None if t is None else t.to(dtype).permute(2, 0, 1)[None].clone() for t in (image, target, mask)]
    loss = term.loss(planar[0].requires_grad_(), *planar[1:])
    (3 * loss).backward()
    return loss.item(), term.discrepancy(planar[0].detach(), *planar[1:]), planar[0].grad[0].permute(1, 2, 0)


def run(term, image, target, mask, threads=2, d_image=None):
    gain, span = term.sensor.gain, term.values.span
    d_image = torch.empty_like(image) if d_image is None else d_image
    known = image.numel() if mask is None else float(mask.sum()) * image.shape[2]
    loss, discrepancy = native.deviance(
        image, target, scale=gain * span, shift=gain * (term.values.low - term.sensor.offset),
        read_variance=term.sensor.read_electrons**2, floor=FLOOR, normaliser=known, mask=mask, d_image=d_image, grad_scale=3,
        workspace=workspace.get(), pool=native.Pool(threads),
    )
    return loss, discrepancy, d_image


@pytest.mark.parametrize("isa", [None, "avx2", "portable"])
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_twin_and_its_gradient(term, masked, isa):
    native.set_cpu_isa(isa)
    try:
        for number, shape in enumerate(SHAPES):
            for dtype, tolerance in ((torch.float32, 1e-7), (torch.float64, 1e-9)):
                image, target, mask = problem(number, shape, dtype, masked)
                expected = twin(term, image, target, mask, torch.float64)
                loss, discrepancy, d_image = run(term, image, target, mask)
                assert loss == pytest.approx(expected[0], rel=1e-9)
                assert discrepancy == pytest.approx(expected[1], rel=1e-12)
                torch.testing.assert_close(d_image.double(), expected[2], rtol=tolerance, atol=0)
    finally:
        native.set_cpu_isa(None)


@pytest.mark.parametrize("term", TERMS)
def test_bright_elements_that_fit_worse_decide_the_discrepancy_in_both(term):
    image, target, mask = problem(1, (64, 61, 3), torch.float32)
    target = image + 40 * (target - image) * image
    _, expected, _ = twin(term, image, target, mask, torch.float64)
    _, discrepancy, _ = run(term, image, target, mask)
    scale, shift, _ = term.electrons()
    e, k = (t.double() * scale + shift for t in (image, target))
    everywhere = ((e - k).square() / (e.clamp(min=FLOOR) + term.sensor.read_electrons**2) * mask).sum() / (mask.sum() * 3)
    assert discrepancy == pytest.approx(expected, rel=1e-12) and discrepancy > 1.05 * float(everywhere)


@pytest.mark.parametrize("shape", SHAPES)
def test_strides_and_threads_change_no_bit_and_gaps_are_not_touched(shape):
    height, width, channels = shape

    def strided(tensor):
        canvas = torch.full((height + 2, width + 3, tensor.shape[2] + 1), torch.nan)
        return canvas[:height, :width, : tensor.shape[2]].copy_(tensor)

    inputs = problem(3, shape, torch.float32)
    expected = run(TERMS[1], *inputs, threads=1)
    for threads in (1, 2, 3):
        d_image = strided(torch.zeros(shape))
        loss, discrepancy, _ = run(TERMS[1], *map(strided, inputs), threads=threads, d_image=d_image)
        assert (loss, discrepancy) == expected[:2] and torch.equal(d_image, expected[2])
        assert int(d_image._base.isnan().sum()) == d_image._base.numel() - d_image.numel()


def test_error_against_float64_is_below_that_of_plain_pytorch():
    errors = {"native": [], "torch": []}
    for seed in range(64):
        inputs = problem(seed, (16, 15, 3), torch.float32)
        exact = twin(TERMS[2], *inputs, torch.float64)
        for name, got in (("native", run(TERMS[2], *inputs)), ("torch", twin(TERMS[2], *inputs, torch.float32))):
            errors[name].append(((got[2].double() - exact[2]) / exact[2].abs().max()).flatten())
    ours, plain = (float(torch.cat(errors[name]).square().mean().sqrt()) for name in ("native", "torch"))
    assert ours <= plain


def test_what_does_not_fit_is_refused_in_a_sentence():
    image, target, mask = problem(0, (6, 5, 3), torch.float32)
    for bad in [
        (image, target[1:], mask), (image, target.double(), mask), (image, target, mask[:, 1:]), (image, target, mask.bool()),
        (image, target, mask.expand(6, 5, 3)), (image.bfloat16(), target.bfloat16(), None), (image[0], target, None),
    ]:
        with pytest.raises(InputError):
            run(TERMS[0], *bad)
    with pytest.raises(InputError):
        run(TERMS[0], image, target, mask, d_image=torch.empty(3).expand(6, 5, 3))
    with pytest.raises(InputError):
        run(TERMS[0], image, target, torch.zeros_like(mask))  # nothing known
