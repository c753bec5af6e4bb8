"""What `make gpu-acceptance` measures with, on a CPU and small: that it measures what it says. No figure of it is kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "bench/acceptance").exists():
    pytest.skip("needs the source tree", allow_module_level=True)
sys.path.insert(0, str(ROOT / "bench"))

from acceptance import cohorts, iterations, layers, restoring, timing  # noqa: E402

from dipengine.bench import peers  # noqa: E402
from dipengine.bench.operations import Layer, Part, layers_of  # noqa: E402
from dipengine.bench.setting import Setting  # noqa: E402
from dipengine.generators.architecture import Hourglass  # noqa: E402
from dipengine.kernels import backend  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SMALL = Hourglass.regular(2, channels=8, upsample="nearest")
QUICK = {"rounds": 2, "least": 0.0}
needs_core = pytest.mark.skipif(not backend.native_available(), reason="needs the native core")


def small(**changes) -> Setting:
    return Setting(**{"architecture": SMALL, "height": 16, "width": 24, "precision": "fp32", "threads": 1} | changes)


def is_spread(seconds: dict, rounds: int = 2) -> bool:
    return len(seconds["samples"]) == rounds and 0 < seconds["lower_quartile"] <= seconds["median"] <= seconds["upper_quartile"]


# ---- peers ----------------------------------------------------------------------------------------------------------


def split(grouped: torch.nn.Module, single: torch.nn.Module, groups: int, g: int) -> None:
    """Network g of a grouped one into a single one: its share of every parameter's first axis."""
    theirs = dict(grouped.named_parameters())
    with torch.no_grad():
        for name, own in single.named_parameters():
            own.copy_(theirs[name].unflatten(0, (groups, -1))[g])


@pytest.mark.parametrize("memory", [peers.CONTIGUOUS, peers.CHANNELS_LAST])
def test_a_grouped_network_is_so_many_networks_side_by_side(memory):
    architecture, groups = Hourglass.regular(2, channels=8, channels_skip=3, upsample="nearest"), 3
    torch.manual_seed(1)
    grouped = peers.PlainHourglass(architecture, groups).double().to(memory_format=memory)
    z = torch.rand(1, groups * architecture.input_depth, 16, 24, dtype=torch.float64).contiguous(memory_format=memory)
    merged = []
    grouped.level.merge.register_forward_hook(lambda module, inputs, out: merged.append(inputs[0].is_contiguous(memory_format=memory)))
    logits = grouped(z)
    assert merged == [True]  # in the format that the convolutions take
    for g in range(groups):
        single = peers.PlainHourglass(architecture).double()
        split(grouped, single, groups, g)
        expected = single(z.unflatten(1, (groups, -1))[:, g])
        torch.testing.assert_close(logits.unflatten(1, (groups, -1))[:, g], expected, rtol=1e-10, atol=1e-10)


def test_a_grouped_fit_learns_as_its_fits_would_alone():
    groups, setting = 3, small()
    grouped = peers.PyTorchFit(peers.CONFIGURATIONS[peers.EAGER], setting, groups)
    grouped.network.double()
    grouped.z, grouped.noise, grouped.target = (t.double() for t in (grouped.z, grouped.noise, grouped.target))
    loss, _ = grouped.evaluate(grouped.z)
    loss.backward()
    for g in range(groups):
        alone = peers.PlainHourglass(setting.architecture).double()
        split(grouped.network, alone, groups, g)
        out = torch.sigmoid(alone(grouped.z.unflatten(1, (groups, -1))[:, g]))
        (out - grouped.target[:, :3]).square().mean().backward()
        theirs = dict(grouped.network.named_parameters())
        for name, parameter in alone.named_parameters():
            # The loss is summed in float32.
            torch.testing.assert_close(theirs[name].grad.unflatten(0, (groups, -1))[g], parameter.grad, rtol=1e-5, atol=1e-6)


def test_peers_of_a_gpu_are_graphs_and_tf32_where_they_say_so():
    kinds = peers.CUDA_CONFIGURATIONS
    assert list(kinds) == list(iterations.PEERS.values())
    assert not kinds["eager tf32"].graph and all(kind.graph for name, kind in kinds.items() if "graph" in name)
    assert kinds["bf16 channels_last, max-autotune, graph"].mode == "max-autotune-no-cudagraphs"
    assert [step.name for step in restoring.STEPS] == ["ours", *iterations.PEERS] and cohorts.CONFIGURATION in kinds
    timing.prepare()
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.benchmark


class FakeGraph:
    """Records nothing: what is captured runs at once, and again for each replay."""

    captured: list[FakeGraph] = []

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def fake_streams(monkeypatch):
    """A FAKE of torch.cuda's streams and graphs, on a CPU."""
    from contextlib import contextmanager

    @contextmanager
    def graph(made: FakeGraph):
        FakeGraph.captured.append(made)
        yield

    @contextmanager
    def on(stream: object):
        yield

    waits: list[tuple] = []
    stream = type("Stream", (), {"wait_stream": lambda self, other: waits.append((self, other))})
    main = stream()
    for name, fake in (("Stream", stream), ("current_stream", lambda: main), ("stream", on), ("CUDAGraph", FakeGraph), ("graph", graph)):
        monkeypatch.setattr(torch.cuda, name, fake)
    FakeGraph.captured.clear()
    return waits


def test_a_graph_holds_one_iteration_behind_three_on_another_stream(fake_streams, monkeypatch):
    iterated = []
    plain = peers.PyTorchFit._iterate
    monkeypatch.setattr(peers.PyTorchFit, "_iterate", lambda self: (iterated.append(len(FakeGraph.captured)), plain(self)))
    fit = peers.PyTorchFit(peers.CUDA_CONFIGURATIONS["bf16 channels_last, graph"], small())
    assert iterated == [0, 0, 0, 1] and len(fake_streams) == 2  # the last within the capture
    fit.run(5)
    assert fit._graph.replays == 5 and len(iterated) == 4


def test_calls_are_captured_several_at_a_time(fake_streams, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    calls = []
    found = timing.graph_seconds(lambda: calls.append(len(FakeGraph.captured)), "cuda:0", rounds=2, least=0.0)
    assert found["captured"] and calls == [0] + [1] * timing.COPIES
    assert FakeGraph.captured[0].replays == 1 + 2 + 2 * 2


def test_what_cannot_be_captured_is_timed_call_by_call(fake_streams, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def call() -> None:
        if FakeGraph.captured and not over:
            over.append(1)
            raise RuntimeError("operation not permitted when stream is capturing")

    over: list[int] = []
    assert not timing.graph_seconds(call, "cuda:0", rounds=2, least=0.0)["captured"] and over


# ---- iterations and cohorts -----------------------------------------------------------------------------------------


@needs_core
def test_an_iteration_of_ours_beside_a_peer():
    setting = small()
    ours = iterations.measure_ours(setting, **QUICK)
    assert is_spread(ours["seconds"]) and ours["arena_bytes"] > 100_000 and "memory_bytes" not in ours  # the last is a GPU's
    found = iterations.beside(lambda: iterations.measure_ours(setting, **QUICK),
                              lambda: iterations.measure_peer(setting, "eager tf32", **QUICK))
    assert is_spread(found["seconds"]) and found["ratio"] == pytest.approx(found["seconds"]["median"] / (sum(found["ours"]) / 2))


def test_a_peer_is_measured_without_ours_and_beside_what_could_be_had():
    def fails():
        raise RuntimeError("no plan here")

    def peer():
        return {"seconds": {"median": 1.0}}

    assert iterations.beside(fails, peer) == peer() | {"ours": [], "ratio": None}
    times = iter([0.25])

    def once():  # the second time there is no memory
        return {"seconds": {"median": next(times)}}

    assert iterations.beside(once, peer) == peer() | {"ours": [0.25], "ratio": 4.0}


def test_sizes_are_canvases_and_the_settings_ask_for_the_papers_network():
    for height, width in iterations.SIZES.values():
        setting = iterations.setting_of(height, width, "cuda:0")
        assert setting.architecture.parameter_count == 2_217_831 and setting.device == "cuda:0"
    assert Hourglass.regular().canvas(3888, 3968) == iterations.SIZES["15.4Mpx"]
    assert Setting.from_dict(small(device="cuda:0").to_dict()).device == "cuda:0"


def test_ours_without_overlap_is_measured_beside_ours_and_leaves_the_environment(monkeypatch):
    seen = []

    def measure(setting, **how):
        seen.append(os.environ.get("DIPENGINE_CUDA_OVERLAP"))
        return {"seconds": {"median": 3.0 if seen[-1] == "0" else 2.0}}

    monkeypatch.setattr(iterations, "measure_ours", measure)
    monkeypatch.setattr(iterations.gpu, "clocks", dict)
    for before in (None, "1"):
        monkeypatch.setenv("DIPENGINE_CUDA_OVERLAP", before) if before else monkeypatch.delenv("DIPENGINE_CUDA_OVERLAP", raising=False)
        found = iterations.apart(None, 256, 256)
        assert found["ratio"] == 1.5 and found["ours"] == [2.0, 2.0] and seen == [before, "0", before]
        assert os.environ.get("DIPENGINE_CUDA_OVERLAP") == before
        seen.clear()
    assert {f"{size}-apart" for size in iterations.SMALL} <= {step.name for step in iterations.STEPS}


@needs_core
def test_cohorts_advance_every_fit_and_count_iterations_in_sum():
    setting = small()
    ours = cohorts.OurCohort(setting, 3)
    ours.run(4)
    assert [slot.iteration for slot in ours._slots] == [4, 4, 4]
    assert len({tuple(slot.losses) for slot in ours._slots}) == 3  # seeds of their own
    for found in (cohorts.measure_ours(setting, 3, **QUICK), cohorts.measure_streams(setting, 3, "eager tf32", **QUICK),
                  cohorts.measure_grouped(setting, 3, "eager tf32", **QUICK)):
        assert is_spread(found["seconds"]) and found["fits"] == 3
        assert found["iterations_per_second"] == pytest.approx(3 / found["seconds"]["median"])


def test_fits_on_streams_run_every_fit():
    side = cohorts.OnStreams(peers.CONFIGURATIONS[peers.EAGER], small(), 2)
    before = [[p.detach().clone() for p in fit.network.parameters()] for fit in side._fits]
    side.run(2)
    for fit, weights in zip(side._fits, before):
        assert not all(torch.equal(p, was) for p, was in zip(fit.network.parameters(), weights))


def test_what_starts_without_a_graph_is_timed_call_by_call():
    calls = []
    found = timing.graph_seconds(lambda: calls.append(1), "cpu", rounds=3, least=0.0)
    assert is_spread(found, 3) and not found["captured"] and len(calls) == 2 + 2 + 3 * 2


# ---- layers ---------------------------------------------------------------------------------------------------------

REACHED = {"mma_bf16": 1e12, "copy": 1e11, "library_copy": 2e11}


def test_operations_and_bytes_of_a_layer_by_hand():
    up = Layer("level0.up", (Part(64, 64, 4), Part(32, 32, 128, "nearest")), 128, 64, 64, 3)
    skip, nearest = 2 * 9 * 4 * 128 * 64 * 64, 2 * 16 * 128 * 128 * 32 * 32  # 16 products a pixel there
    assert layers.operations(up) == (skip + nearest, 2 * (skip + nearest))
    images, output, weights = 2 * (64 * 64 * 4 + 32 * 32 * 128), 2 * 64 * 64 * 128, 4 * 9 * 132 * 128
    assert layers.bytes_moved(up, 2) == (images + weights + output, 2 * images + 2 * output + 2 * weights)
    head = Layer("head", (Part(64, 64, 128),), 3, 64, 64, 1, norm=False)
    assert layers.bytes_moved(head, 2)[0] == 2 * 64 * 64 * 128 + 4 * 128 * 3 + 4 * 64 * 64 * 3
    first = Layer("level0.down1", (Part(64, 64, 32, raw=False),), 128, 32, 32, 3, 2)
    assert layers.operations(first)[1] == layers.operations(first)[0]  # nothing wants the gradient of z
    assert layers.floor(2e12, 1e10, 1e12, 1e11) == 2 and layers.floor(1e10, 3e11, 1e12, 1e11) == 3


@needs_core
@pytest.mark.parametrize("name", ["level0.skip", "level0.down1", "level0.up", "level0.point", "head"])
def test_a_layer_is_measured_beside_pytorchs(name):
    layer = next(layer for layer in layers_of(SMALL, 16, 24) if layer.name == name)
    row = layers.measure(layer, "cpu", REACHED, **QUICK)
    for direction in ("forward", "backward"):
        own = row[direction]
        assert is_spread(own["seconds"]) and own["of_roofline"] == pytest.approx(own["floor"] / own["seconds"]["median"])
    assert set(row["pytorch"]) == {"tf32 contiguous", "bf16 channels_last"} and row["ratio"] > 0 and not row["wide"]


def test_layers_of_128_channels_are_those_that_the_target_is_of():
    wide = [layer.name for layer in layers_of(Hourglass.regular(upsample="nearest"), 64, 64)
            if layer.channels == 128 and any(part.channels == 128 for part in layer.parts)]
    assert "level0.down2" in wide and "level0.up" in wide and not {"head", "level0.skip", "level0.down1"} & set(wide)


def test_library_ceilings_are_rates():
    found = layers.library_ceilings("cpu", side=64, elements=1 << 12)
    assert set(found) == {"library_bf16", "library_tf32", "library_copy"} and all(rate > 0 for rate in found.values())


# ---- restoration ----------------------------------------------------------------------------------------------------


def test_the_photograph_is_read_as_libvips_reads_it():
    pytest.importorskip("pyvips")
    from dipengine.images import read_image

    path = ROOT / "demo/photograph.png"
    pixels = read_image(path).pixels
    assert np.array_equal(np.rint(restoring.read_png(path) * 255).astype(np.uint8), pixels)
    truth, noisy = restoring.photograph()
    assert truth.shape == (256, 256, 3)
    assert 20.17 < restoring.psnr(noisy, truth) < 20.9  # sigma 25 is 20.17 dB, of which clipping takes some away


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_filter_of_a_png_is_undone(tmp_path, mode):
    image = pytest.importorskip("PIL.Image")
    values = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    values[:20] = np.linspace(0, 255, 30, dtype=np.uint8)[None, :, None] // 2 + np.arange(20, dtype=np.uint8)[:, None, None]
    picture = image.fromarray(values).convert(mode)
    picture.save(tmp_path / "x.png")
    expected = np.asarray(picture).reshape(40, 30, -1)
    assert np.array_equal(np.rint(restoring.read_png(tmp_path / "x.png") * 255), expected)
    palette = picture.convert("P")
    palette.save(tmp_path / "p.png")
    with pytest.raises(ValueError, match="not a grey or RGB PNG"):
        restoring.read_png(tmp_path / "p.png")


@needs_core
def test_a_restoration_stops_by_itself_and_a_peer_runs_as_long():
    rng = np.random.default_rng(0)
    truth = np.full((16, 24, 3), 0.5, np.float32)
    noisy = np.clip(truth + rng.normal(0, 0.1, truth.shape), 0, 1).astype(np.float32)
    own = restoring.restore(truth, noisy, "cpu", generator=SMALL, iterations=40)
    assert 0 < own["iterations"] <= 40 and own["stopped_by"] in ("iterations", "variance") and own["psnr_noisy"] < own["psnr"]
    other = restoring.restore_plainly(truth, noisy, "eager tf32", 30, small())
    assert other["iterations"] == 30 and other["psnr"] > 5 and other["seconds"] > 0


def test_the_average_of_a_peer_has_nothing_of_what_it_began_with(monkeypatch):
    outputs = []
    plain = peers.PyTorchFit._evaluate

    def evaluate(self, z):
        loss, out = plain(self, z)
        outputs.append(out[0].permute(1, 2, 0).double().numpy())
        return loss, out

    monkeypatch.setattr(peers.PyTorchFit, "_evaluate", evaluate)
    truth = np.full((16, 24, 3), 0.5, np.float32)
    found = restoring.restore_plainly(truth, truth + 0.1, "eager tf32", 4, small())
    decayed = [0.99**i for i in (3, 2, 1, 0)]
    expected = sum(weight * out for weight, out in zip(decayed, outputs[-4:], strict=True)) / sum(decayed)
    assert found["psnr"] == pytest.approx(restoring.psnr(expected, truth), abs=1e-3)
