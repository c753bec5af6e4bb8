"""The convolutions: native and twin against float64 on random layers, in every instruction set; bits; refusals."""

from collections import defaultdict

import pytest

torch = pytest.importorskip("torch")

from conv_problems import FAMILIES, Input, Layer, Problem, draw_layer, exact, run  # noqa: E402

from dipengine.errors import DipEngineError, InputError  # noqa: E402
from dipengine.kernels import backend, conv, pool, workspace  # noqa: E402
from dipengine.kernels.conv import Source  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
BOTH = pytest.mark.parametrize("kernels", ["native", "torch"])
FAMILY = pytest.mark.parametrize("family", FAMILIES)
ISAS = backend.instruction_sets()

# Sizes at which an index map, a block or a chunk begins or ends; the last are the paper's layers, cut short.
EDGES = [
    Layer((Input(1, 1, 4, "nearest"),), 3),
    Layer((Input(1, 1, 4, "bilinear"),), 3, padding="zero"),
    Layer((Input(2, 2, 4, outer=True), Input(1, 1, 17, "nearest", outer=True)), 5),
    Layer((Input(1, 1, 1, "bilinear"), Input(2, 2, 1)), 1),
    Layer((Input(1, 9, 5, "bilinear"),), 4),
    Layer((Input(9, 1, 5, "nearest"),), 4),
    Layer((Input(2, 2, 7, "bilinear", outer=True),), 20, padding="zero"),
    Layer((Input(2, 2, 3),), 3),
    Layer((Input(2, 3, 3),), 3, stride=2),
    Layer((Input(1, 1, 3),), 6, kernel=1, pad=0, stride=2),
    Layer((Input(1, 1, 3),), 6, padding="zero"),
    Layer((Input(1, 1, 2),), 3, kernel=7, pad=3, padding="zero"),
    Layer((Input(3, 258, 3),), 3, kernel=5, pad=2, stride=2),
    Layer((Input(2, 129, 4, "nearest"), Input(4, 258, 3, outer=True)), 17),
    Layer((Input(2, 257, 4, "bilinear", outer=True),), 33),
    Layer((Input(65, 2, 4, "nearest"),), 5),
    Layer((Input(130, 3, 4, "bilinear"), Input(260, 6, 2)), 5, padding="zero"),
    Layer((Input(5, 300, 3),), 2),
    Layer((Input(3, 127 * 128 + 1, 2),), 2),  # 128 blocks of 128 columns, the last of one
    Layer((Input(1, 127 * 128 - 5, 2),), 2, kernel=7, pad=6, padding="zero"),
    Layer((Input(300, 5, 3),), 2, kernel=4, pad=2),
    Layer((Input(12, 20, 4, outer=True), Input(6, 10, 128, "nearest", outer=True)), 128),
    Layer((Input(12, 20, 128),), 128, kernel=1, pad=0),
    Layer((Input(12, 20, 128),), 128, stride=2),
    Layer((Input(2, 16, 32),), 32),
    Layer((Input(4, 16, 33, outer=True),), 40, padding="zero"),
    Layer((Input(2, 258, 32),), 32),
    Layer((Input(70, 16, 32),), 32, padding="zero"),
    Layer((Input(12, 20, 128),), 128),
    Layer((Input(2, 16, 32, "nearest", outer=True),), 32),
    Layer((Input(4, 32, 3, outer=True), Input(2, 16, 33, "nearest", outer=True)), 40, padding="zero"),
    Layer((Input(4, 258, 32, "nearest"),), 32),
    Layer((Input(70, 16, 32, "nearest"), Input(140, 32, 4)), 32, padding="zero"),
    Layer((Input(24, 40, 4, outer=True), Input(12, 20, 128, "nearest", outer=True)), 128),
    Layer((Input(32, 32, 32),), 32),
    Layer((Input(36, 260, 33, outer=True),), 40, padding="zero"),
    Layer((Input(32, 516, 32),), 32),
    Layer((Input(72, 36, 128),), 128),
]


def worst(got: dict, expected: dict, size: dict) -> dict:
    """Largest error of every output relative to its size; NaN stays NaN."""
    assert set(got) == set(expected)
    return {name: float((got[name].double() - expected[name]).detach().abs().max()) / size[name] for name in expected}


@BOTH
@FAMILY
def test_random_layers_and_all_their_gradients_agree_with_float64_autograd(family, kernels):
    for seed in range(32 if kernels == "native" else 8):
        problem = Problem(draw_layer(family, seed), torch.float64, seed)
        errors = worst(run(problem, kernels), *exact(problem))
        assert all(error < 1e-12 for error in errors.values()), (seed, problem.layer, errors)


@BOTH
@pytest.mark.parametrize("layer", EDGES, ids=range(len(EDGES)))
def test_edge_sizes_agree_with_float64_autograd(layer, kernels):
    problem = Problem(layer, torch.float64, 1)
    errors = worst(run(problem, kernels), *exact(problem))
    assert all(error < 1e-12 for error in errors.values()), errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", EDGES, ids=range(len(EDGES)))
def test_edge_sizes_agree_in_every_instruction_set(layer, dtype, each_isa):
    problem = Problem(layer, dtype, 2)
    expected, size = exact(problem)
    for isa in each_isa():
        errors = worst(run(problem, "native"), expected, size)
        # Single values, not a mean over many: this finds a wrong index; the pooled test judges the precision.
        assert all(error < (1e-4 if dtype == torch.float32 else 0.06) for error in errors.values()), (isa, errors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@FAMILY
def test_error_against_float64_is_at_most_twice_that_of_plain_pytorch(family, dtype, each_isa):
    squares, counts = defaultdict(lambda: defaultdict(float)), defaultdict(int)
    for seed in range(64):
        problem = Problem(draw_layer(family, seed), dtype, seed)
        expected, size = exact(problem)

        def add(who, out):
            for name, value in out.items():
                error = (value.double() - expected[name]) / size[name]
                squares[who][name.rstrip("01")] += float(error.square().sum())

        add("torch", run(problem, "torch"))
        for isa in each_isa():
            add(isa, run(problem, "native"))
        for name, value in expected.items():
            counts[name.rstrip("01")] += value.numel()
    assert all(counts[name] > 10_000 for name in ("raw", "d_x", "d_weight"))
    for isa in ISAS:
        for name, count in counts.items():
            native, twin = ((squares[who][name] / count) ** 0.5 for who in (isa, "torch"))
            assert native <= 2 * twin + 4 * 2**-24, (isa, name, native, twin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@FAMILY
def test_native_bits_do_not_depend_on_threads(family, dtype, each_isa):
    layers = [draw_layer(family, seed) for seed in (3, 7, 10)]
    layers += [layer for layer in EDGES[12:] if layer.inputs[-1].upsample == family or family == "plain"]
    try:
        for layer in layers:
            problem = Problem(layer, dtype, 5)
            for isa in each_isa():
                results = []
                for threads in (1, 2, 3):
                    pool.set_threads(threads)
                    results.append(run(problem, "native"))
                for other in results[1:]:
                    assert all(torch.equal(results[0][name], other[name]) for name in other), (isa, layer)
    finally:
        pool.set_threads(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_are_those_of_raw_as_stored_even_where_the_mean_is_large(dtype, each_isa):
    layer = Layer((Input(40, 50, 8),), 21, bias=True)
    for isa in each_isa():
        for offset in (0.0, 1e4 if dtype == torch.float32 else 32.0):
            problem = Problem(layer, dtype, 3)
            problem.bias.fill_(offset)
            out = run(problem, "native")
            stored = out["raw"].double()
            mean, variance = stored.mean((0, 1)), stored.var((0, 1), unbiased=False)
            deviation = variance.sqrt()
            assert deviation.min() > 0.1
            assert ((out["mean"] - mean).abs() <= 1e-5 * deviation).all(), isa
            assert ((out["variance"] / variance - 1).abs() < 1e-4).all(), isa


@BOTH
def test_a_gradient_without_coefficients_needs_no_raw(kernels):
    problem = Problem(Layer((Input(5, 6, 3),), 4, coefficients=False), torch.float32, 1)
    d_weight = torch.empty_like(problem.weight)
    conv.backward([Source(problem.x[0], inner=problem.inner[0], slope=0.2)], problem.weight, problem.gradient, pad=1,
                  d_weight=d_weight, kernels=kernels)
    torch.testing.assert_close(d_weight.double(), exact(problem)[0]["d_weight"], rtol=0, atol=1e-4)


@BOTH
def test_only_what_is_asked_for_is_written(kernels):
    problem = Problem(Layer((Input(5, 6, 3), Input(5, 6, 2)), 4, coefficients=False), torch.float32, 1)
    d_x = torch.zeros_like(problem.x[1])
    sources = [Source(problem.x[0], inner=problem.inner[0], slope=0.2),
               Source(problem.x[1], inner=problem.inner[1], slope=0.2, d_x=d_x)]
    conv.backward(sources, problem.weight, problem.gradient, pad=1, kernels=kernels)
    torch.testing.assert_close(d_x.double(), exact(Problem(problem.layer, torch.float32, 1))[0]["d_x1"], rtol=0, atol=1e-4)


def test_nan_in_one_pixel_reaches_what_depends_on_it_and_nothing_else():
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(8, 9, 3, dtype=dtype)
        x[2, 3, 1] = float("nan")
        raw = torch.empty(16, 18, 5, dtype=dtype)
        weight = torch.ones(3, 3, 3, 5)
        conv.forward([Source(x, "nearest")], weight, raw, pad=1, kernels="native")
        reached = torch.zeros(16, 18, dtype=torch.bool)
        reached[3:7, 5:9] = True
        assert torch.equal(raw.isnan().all(2), reached) and torch.equal(raw.isnan().any(2), reached)


def call(kind="forward", **changes):
    """A valid small call with one thing changed."""
    values = dict(x=torch.zeros(6, 7, 4), weight=torch.zeros(3, 3, 4, 5), out=torch.zeros(6, 7, 5), upsample="none", more=(),
                  pad=1, stride=1, padding="reflection", source={}, other={})
    values.update(changes)
    sources = [Source(values["x"], values["upsample"], **values["source"]), *values["more"]]
    function = conv.forward if kind == "forward" else conv.backward
    function(sources, values["weight"], values["out"], pad=values["pad"], stride=values["stride"], padding=values["padding"],
             kernels="native", **values["other"])


def numbers(count, dtype=torch.float64):
    return torch.zeros(count, dtype=dtype)


@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("changes", [
    {"weight": torch.zeros(3, 3, 3, 5)}, {"weight": torch.zeros(3, 2, 4, 5)}, {"weight": torch.zeros(3, 3, 4, 5).double()},
    {"weight": torch.zeros(5, 3, 3, 4).permute(1, 2, 3, 0)}, {"weight": torch.zeros(9, 9, 4, 5), "pad": 4},
    {"out": torch.zeros(6, 6, 5)}, {"out": torch.zeros(6, 7, 4)}, {"out": torch.zeros(5, 6, 7).permute(1, 2, 0)},
    {"out": torch.zeros(6, 7, 5).double()}, {"out": torch.zeros(6, 7, 5).bfloat16()}, {"out": torch.zeros(1, 6, 7, 5)},
    {"x": torch.zeros(4, 6, 7).permute(1, 2, 0)}, {"x": torch.zeros(6, 7, 4).half()}, {"x": torch.zeros(6, 7)},
    {"x": torch.zeros(1, 7, 4), "out": torch.zeros(1, 7, 5)},  # one row has nothing to reflect
    {"x": torch.zeros(6, 7, 0), "weight": torch.zeros(3, 3, 0, 5)},
    {"stride": 3, "out": torch.zeros(2, 3, 5)}, {"stride": 0}, {"pad": 3, "out": torch.zeros(10, 11, 5)}, {"pad": -1},
    {"upsample": "nearest", "out": torch.zeros(11, 14, 5)},
    {"upsample": "nearest", "weight": torch.zeros(1, 1, 4, 5), "pad": 0, "out": torch.zeros(12, 14, 5)},
    {"upsample": "bilinear", "stride": 2, "out": torch.zeros(6, 7, 5)},
    {"upsample": "nearest", "more": (Source(torch.zeros(6, 7, 4), "nearest"),), "weight": torch.zeros(3, 3, 8, 5),
     "out": torch.zeros(12, 14, 5)},
    {"more": (Source(torch.zeros(6, 8, 4)),), "weight": torch.zeros(3, 3, 8, 5)},
    {"more": (Source(torch.zeros(6, 7, 4).double()),), "weight": torch.zeros(3, 3, 8, 5)},
    {"more": (Source(torch.zeros(6, 7, 1)),) * 2, "weight": torch.zeros(3, 3, 6, 5)},
    {"source": {"inner": (numbers(3), numbers(4))}}, {"source": {"outer": (numbers(4), numbers(4, torch.float32))}},
])
def test_a_convolution_that_does_not_fit_is_refused_in_a_sentence(kind, changes):
    call(kind)  # fits
    with pytest.raises(DipEngineError) as caught:
        call(kind, **changes)
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize("changes", [
    {"other": {"bias": numbers(4, torch.float32)}}, {"other": {"bias": numbers(5)}},
    {"other": {"moments": (numbers(5), numbers(4))}}, {"other": {"moments": (numbers(5), numbers(5, torch.float32))}},
])
def test_a_forward_output_of_another_size_is_refused(changes):
    with pytest.raises(InputError):
        call("forward", **changes)


@pytest.mark.parametrize("changes", [
    {"other": {"d_weight": torch.zeros(3, 3, 4, 4)}}, {"other": {"d_weight": torch.zeros(5, 3, 3, 4).permute(1, 2, 3, 0)}},
    {"other": {"d_bias": numbers(5)}}, {"other": {"coefficients": (numbers(5),) * 3}},  # no raw
    {"other": {"coefficients": (numbers(5),) * 2 + (numbers(4),), "raw": torch.zeros(6, 7, 5)}},
    {"other": {"coefficients": (numbers(5),) * 3, "raw": torch.zeros(6, 7, 5).double()}},
    {"other": {"coefficients": (numbers(5),) * 3, "raw": torch.zeros(6, 7, 4)}},
    {"other": {"coefficients": (numbers(5),) * 3, "raw": torch.zeros(5, 7, 5)}},
    {"source": {"d_x": torch.zeros(6, 7, 3)}}, {"source": {"d_x": torch.zeros(6, 7, 4).double()}},
    {"source": {"d_x": torch.zeros(6, 7, 4), "sum": numbers(4)}},
    {"source": {"sum": numbers(4), "product": numbers(4)}},  # of what?
    {"source": {"d_x": torch.zeros(6, 7, 4), "sum": numbers(4), "product": numbers(5)}},
    {"source": {"d_x": torch.zeros(6, 7, 4), "centre": numbers(3)}},
    {"source": {"d_x": torch.zeros(4, 6, 7).permute(1, 2, 0)}},
])
def test_a_backward_output_of_another_size_is_refused(changes):
    with pytest.raises(InputError):
        call("backward", **changes)


def test_what_is_missing_is_refused_before_it_is_read():
    native, space = backend.native, workspace.get()
    with pytest.raises(InputError, match="None"):
        native.conv_forward([None], torch.zeros(3, 3, 4, 5), torch.zeros(6, 7, 5), pad=1, workspace=space)
    with pytest.raises(InputError, match="lacks"):
        native.conv_forward([native.Source(torch.zeros(6, 7, 4))], torch.zeros(3, 3, 4, 5), torch.zeros(6, 7, 5), pad=1,
                            mean=numbers(5), scale=numbers(5), shift=numbers(5), workspace=space)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_lone_bright_pixel_of_a_large_image_is_in_range(kernel, each_isa):
    """Behind the norm of a megapixel it is as bright as their number's root, maybe in all channels; float16 ends at 65504."""
    height, width, channels = 1025, 1024, 64
    x = torch.zeros(height, width, channels, dtype=torch.bfloat16)
    x[500, 300] = 1024
    weight = torch.full((kernel, kernel, channels, 32), 3.0)
    raw = torch.empty(height, width, 32)
    for isa in each_isa():
        if isa == "portable":
            continue  # takes minutes
        conv.forward([Source(x)], weight, raw, pad=kernel // 2, kernels="native")
        assert float((raw[500, 300] / (3 * 1024 * channels) - 1).abs().max()) < 1e-2, isa
        assert bool(torch.isfinite(raw).all()), isa
