"""masked_mse: native and twin against each other and float64, on every layout, crop and mask; gradients; statistics."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dipengine.errors import InputError  # noqa: E402
from dipengine.kernels import backend, pool  # noqa: E402
from dipengine.kernels.masked_mse import OutputStatistics, masked_mse, track  # noqa: E402

BOTH = pytest.mark.parametrize("kernels", ["native", "torch"])
LAST = torch.channels_last
# channels, canvas, window
SHAPES = [
    (3, (32, 48), (32, 48)), (3, (64, 64), (51, 37)), (1, (16, 8), (13, 8)), (1, (1, 1), (1, 1)), (3, (2, 2), (1, 1)),
    (4, (8, 300), (8, 299)), (5, (9, 7), (4, 7)), (1, (1, 9000), (1, 9000)), (2, (5, 1), (5, 1)), (7, (3, 4), (3, 4)),
]


def problem(seed, channels, canvas, window, dtype, layout=LAST, mask="pixel"):
    """raw on the canvas (requires grad), target and mask over the window."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    raw = ((draw(1, channels, *canvas) - 0.5) * 8).to(dtype).contiguous(memory_format=layout).requires_grad_()
    target = draw(1, channels, *window).to(real).contiguous(memory_format=layout)
    known = None
    if mask is not None:
        known = (draw(1, channels if mask == "element" else 1, *window) > 0.4).to(real).contiguous(memory_format=layout)
    return raw, target, known


def evaluate(raw, target, mask, window, kernels, activation="sigmoid", statistics=None):
    leaf = raw.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    loss = masked_mse(leaf, target, mask, activation=activation, window=window, statistics=statistics, kernels=kernels)
    loss.backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels, canvas, window", SHAPES)
def test_native_agrees_with_the_twin(channels, canvas, window, dtype):
    for number, (layout, mask, activation) in enumerate(
        [(LAST, "pixel", "sigmoid"), (LAST, "element", "none"), (LAST, None, "sigmoid"),
         (torch.contiguous_format, "pixel", "sigmoid"), (torch.contiguous_format, "element", "none")]
    ):
        raw, target, known = problem(number, channels, canvas, window, dtype, layout, mask)
        (loss, gradient), (loss_twin, gradient_twin) = (
            evaluate(raw, target, known, window, k, activation) for k in ("native", "torch")
        )
        assert loss.dtype == loss_twin.dtype == target.dtype and loss.shape == () and gradient.dtype == dtype
        unit = 2**-52 if dtype == torch.float64 else 2**-24
        size = float(target.numel())
        torch.testing.assert_close(loss, loss_twin, rtol=64 * unit, atol=64 * unit / size)
        # A residual and the twin's 1 - s cancel, so the error has the size of x (at most 4), not of the gradient.
        # In bfloat16 a gradient may also fall to the next value.
        torch.testing.assert_close(
            gradient, gradient_twin, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=32 * unit * 2 / size
        )


@BOTH
def test_gradient_outside_the_window_and_under_the_mask_is_exactly_zero(kernels):
    raw, target, known = problem(3, 3, (16, 16), (11, 13), torch.float32)
    _, gradient = evaluate(raw, target, known, (11, 13), kernels)
    assert not gradient[:, :, 11:].any() and not gradient[:, :, :, 13:].any()
    inside = gradient[:, :, :11, :13]
    assert not inside[(known == 0).expand_as(inside)].any() and inside[(known == 1).expand_as(inside)].all()


@BOTH
def test_loss_is_the_mean_over_all_pixels_masked_ones_counted(kernels):
    raw, target, _ = problem(4, 3, (8, 8), (8, 8), torch.float64)
    known = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    known[..., 2, 3] = 1
    loss, _ = evaluate(raw, target, known, None, kernels)
    x = 1 / (1 + np.exp(-raw.detach().numpy()))
    expected = ((x - target.numpy())[0, :, 2, 3] ** 2).sum() / (3 * 8 * 8)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


@BOTH
@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_gradient_passes_gradcheck_in_float64(kernels, activation):
    raw, target, known = problem(5, 3, (5, 6), (4, 5), torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: 3 * masked_mse(x, target, known, activation=activation, window=(4, 5), kernels=kernels), (raw,)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_against_float64_is_at_most_twice_that_of_plain_pytorch(dtype):
    errors = {"native": [], "torch": []}
    for seed in range(64):
        raw, target, known = problem(seed, 3, (16, 16), (15, 14), dtype)
        exact_loss, exact = evaluate(raw.double(), target.double(), known.double(), (15, 14), "torch")
        for kernels, pooled in errors.items():
            loss, gradient = evaluate(raw, target, known, (15, 14), kernels)
            pooled.append((gradient.double() - exact).flatten() / exact.abs().max())
            pooled.append(((loss.double() - exact_loss) / exact_loss).reshape(1))
    native, twin = (float(torch.cat(errors[k]).square().mean().sqrt()) for k in ("native", "torch"))
    assert native <= 2 * twin + 4 * 2**-24


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format])
def test_statistics_follow_their_definition(kernels, dtype, layout):
    window = (13, 10)
    statistics = OutputStatistics(3, *window, average_decay=0.9, es_alpha=0.2)
    average = mean = None
    variance = 0.0
    for frame in range(5):
        raw, target, _ = problem(frame, 3, (16, 16), window, dtype, layout)
        if frame % 2:
            masked_mse(raw, target, window=window, statistics=statistics, kernels=kernels)
        else:
            track(raw, window=window, statistics=statistics, kernels=kernels)
        x = torch.sigmoid(raw.detach()[:, :, : window[0], : window[1]].double())
        if frame == 0:
            average = mean = x
        else:
            variance = 0.8 * variance + 0.2 * 0.8 * float((x - mean).square().mean())
            average, mean = 0.9 * average + 0.1 * x, 0.8 * mean + 0.2 * x
    torch.testing.assert_close(statistics.average.double(), average, rtol=0, atol=5e-7)
    torch.testing.assert_close(statistics.es_mean.double(), mean, rtol=0, atol=5e-7)
    assert statistics.es_variance == pytest.approx(variance, rel=1e-5) and statistics.frames == 5


@BOTH
def test_a_young_average_that_warms_up_looks_back_over_a_tenth_of_the_run(kernels):
    statistics = OutputStatistics(1, 4, 4, average_decay=0.9, warm_up=True)
    expected = None
    for frame in range(100):
        raw = torch.full((1, 1, 4, 4), float(np.log((frame + 1) / (200 - frame))))  # the output is (frame + 1) / 201
        track(raw, statistics=statistics, kernels=kernels)
        decay = min(0.9, (frame + 1) / (frame + 10))
        output = (frame + 1) / 201
        expected = output if expected is None else decay * expected + (1 - decay) * output
        assert float(statistics.average[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-5)
        if frame == 70:  # on a ramp, the distance behind the newest output is the mean age: (70 + 10) / 10, less the ends
            assert (output - expected) * 201 == pytest.approx(7, abs=1)
    assert (output - expected) * 201 == pytest.approx(9, abs=0.5)  # warm: decay / (1 - decay)


@BOTH
def test_an_average_without_decay_is_the_last_output(kernels):
    statistics = OutputStatistics(3, 8, 8, average_decay=0.0)
    for seed in range(3):
        raw, _, _ = problem(seed, 3, (8, 8), (8, 8), torch.float32)
        track(raw, statistics=statistics, kernels=kernels)
    torch.testing.assert_close(statistics.average, torch.sigmoid(raw.detach()), rtol=0, atol=2e-7)


def test_statistics_return_to_a_snapshot():
    statistics = OutputStatistics(1, 4, 4)
    for seed in range(2):
        track(problem(seed, 1, (4, 4), (4, 4), torch.float32)[0], statistics=statistics)
    snapshot = statistics.snapshot()
    kept = statistics.average.clone(), statistics.es_variance
    track(problem(9, 1, (4, 4), (4, 4), torch.float32)[0], statistics=statistics)
    assert not torch.equal(statistics.average, kept[0])
    statistics.restore(snapshot)
    assert torch.equal(statistics.average, kept[0]) and (statistics.es_variance, statistics.frames) == (kept[1], 2)


def test_backward_scales_with_the_gradient_of_the_loss():
    raw, target, _ = problem(6, 3, (8, 8), (8, 8), torch.float32)
    _, plain = evaluate(raw, target, None, None, "native")
    leaf = raw.detach().clone().requires_grad_()
    (masked_mse(leaf, target, kernels="native") * 2 + leaf.sum()).backward()
    torch.testing.assert_close(leaf.grad, 2 * plain + 1)


def test_native_bits_do_not_depend_on_threads_or_instruction_set():
    raw, target, known = problem(7, 3, (128, 128), (127, 101), torch.float32)
    results = []
    try:
        for isa in ("portable", "avx2", "avx512"):
            for threads in (1, 2, 5):
                backend.native.set_cpu_isa(isa)
                pool.set_threads(threads)
                statistics = OutputStatistics(3, 127, 101)
                loss, gradient = evaluate(raw, target, known, (127, 101), "native", statistics=statistics)
                results.append((loss, gradient, statistics.average))
    finally:
        backend.native.set_cpu_isa(None)
        pool.set_threads(2)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


@BOTH
def test_nan_reaches_the_loss(kernels):
    raw, target, _ = problem(8, 1, (4, 4), (4, 4), torch.float32)
    raw.data[0, 0, 1, 2] = float("nan")
    assert torch.isnan(masked_mse(raw, target, kernels=kernels))


@BOTH
def test_what_does_not_fit_is_refused_in_a_sentence(kernels):
    raw, target, known = problem(9, 3, (8, 8), (8, 8), torch.float32)
    statistics = OutputStatistics(3, 8, 7)
    for arguments, options in [
        ((raw, target[:, :2]), {}), ((raw, target.double()), {}), ((raw, target, known[..., 1:]), {}),
        ((raw, target, known.bool()), {}), ((raw, target), {"window": (9, 8)}), ((raw, target), {"window": (0, 8)}),
        ((raw, target), {"activation": "tanh"}), ((raw[0], target), {}), ((raw, target), {"statistics": statistics}),
        ((raw.half(), target), {}),
    ]:
        with pytest.raises(InputError):
            masked_mse(*arguments, **options, kernels=kernels)


def test_a_cohort_through_the_binding_gives_each_fit_the_bits_it_has_alone():
    fits = [problem(seed, 3, (20, 21), (20, 21), torch.float32) for seed in range(4)]
    raw, target, known = (torch.cat([fit[i].detach() for fit in fits]).permute(0, 2, 3, 1).unsqueeze(1) for i in range(3))

    def call(part, active=None):
        gradient = torch.zeros_like(raw[part])
        loss = torch.full((raw[part].shape[0],), -1.0, dtype=torch.float64)
        backend.native.masked_mse(
            raw[part], target=target[part], mask=known[part], d_raw=gradient, normaliser=[1.0] * len(loss), loss=loss,
            active=active, workspace=torch.empty(backend.native.masked_mse_workspace(raw[part]), dtype=torch.uint8),
        )
        return loss, gradient

    loss, gradient = call(slice(0, 4), active=[1, 0, 1, 1])
    assert loss[1] == -1 and not gradient[1].any()
    for fit in (0, 2, 3):
        alone = call(slice(fit, fit + 1))
        assert loss[fit] == alone[0][0] and torch.equal(gradient[fit], alone[1][0])
