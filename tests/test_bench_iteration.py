"""`dipengine bench iteration`: its peers are the paper's network, its counts and ratios are right, its errors come early."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

import numpy as np
import pytest
import torch
from plain_hourglass import plain_hourglass

from dipengine.bench import iteration, machine, memory, peers, turns
from dipengine.bench.iteration import measure
from dipengine.bench.operations import iteration_operations, layers_of
from dipengine.bench.ours import LayerTime, make_ours
from dipengine.bench.setting import Setting
from dipengine.bench.table import table
from dipengine.cli.main import main
from dipengine.errors import FitError, InputError, OutputError
from dipengine.generators.architecture import Hourglass
from dipengine.kernels import backend

memory_of_a_child = memory.peak_memory
SMALL = Hourglass.regular(2, channels=8, upsample="nearest")


def small(**changes) -> Setting:
    return Setting(**{"architecture": SMALL, "height": 16, "width": 24, "precision": "fp32", "threads": 1} | changes)


def run(*arguments) -> int:
    try:
        return main(["bench", "iteration", *(str(argument) for argument in arguments)])
    except SystemExit as leaving:
        return leaving.code


@pytest.fixture
def quick(monkeypatch):
    """No child processes and small matrix products: for tests of everything else."""
    monkeypatch.setattr(memory, "peak_memory", lambda side, setting: 2_000_000 if side == "ours" else 8_000_000)
    monkeypatch.setattr(machine, "PRODUCT", 64)
    monkeypatch.setattr(turns, "LEAST", 0.0)


# ---- the peers ------------------------------------------------------------------------------------------------------


def same_weights(network: torch.nn.Module, reference: torch.nn.Module) -> None:
    """The reference's state into the network, by order: both keep the authors' order of layers."""
    ours, theirs = network.state_dict(), reference.state_dict()
    assert [tuple(value.shape) for value in ours.values()] == [tuple(value.shape) for value in theirs.values()]
    network.load_state_dict(dict(zip(ours, theirs.values())))


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
@pytest.mark.parametrize("skips", [4, 0])
def test_the_peers_network_is_the_plain_reference(upsample, skips):
    architecture = Hourglass.regular(3, channels=(8, 12, 10), channels_skip=skips, upsample=upsample)
    torch.manual_seed(1)
    network, reference = peers.PlainHourglass(architecture).double(), plain_hourglass(architecture).double()
    same_weights(network, reference)
    z = torch.rand(1, 32, 32, 48, dtype=torch.float64)
    target = torch.rand(1, 3, 32, 48, dtype=torch.float64)
    outputs = []
    for model in (network, reference):
        out = model(z)
        (torch.sigmoid(out) - target).square().mean().backward()
        outputs.append(out)
    assert torch.allclose(*outputs, rtol=0, atol=1e-12)
    for mine, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_the_papers_network_has_its_number_of_parameters(upsample):
    network = peers.PlainHourglass(Hourglass.regular(upsample=upsample))
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_217_831


def test_a_peers_iteration_is_adam_on_the_squared_error_of_a_perturbed_code(one_torch_thread):
    fit = peers.PyTorchFit(peers.CONFIGURATIONS[peers.EAGER], small())
    reference = plain_hourglass(SMALL)
    same_weights(reference, fit.network)
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.01)
    average = torch.zeros_like(fit.target)
    for _ in range(3):
        loss = fit.step()
        noise = fit.noise.reshape(fit.z.shape)
        out = torch.sigmoid(reference(fit.z + noise / 30))
        expected = (out - fit.target).square().mean()
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        average = 0.99 * average + 0.01 * out.detach()
        same_weights(reference, fit.network)  # Adam turns rounding into whole steps
        assert torch.allclose(fit.average, average, rtol=1e-4, atol=1e-6)
    assert noise.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", [name for name, kind in peers.CONFIGURATIONS.items() if not kind.compiled])
def test_every_configuration_computes_the_same_at_its_own_precision(name, one_torch_thread):
    kind = peers.CONFIGURATIONS[name]
    fit = peers.PyTorchFit(kind, small(height=32, width=32))
    reference = plain_hourglass(SMALL)
    same_weights(reference, fit.network)
    z = fit.z.clone()
    loss, out = fit._evaluate(z)
    with torch.no_grad():
        expected = torch.sigmoid(reference(z))
    bf16 = name.startswith("bf16")
    assert (out - expected).abs().max().item() < (0.1 if bf16 else 1e-4)
    assert loss.item() == pytest.approx((expected - fit.target).square().mean().item(), rel=0.02 if bf16 else 1e-4)
    assert kind.memory == peers.CONTIGUOUS or fit.z.is_contiguous(memory_format=torch.channels_last)


def test_the_peers_images_stay_in_bf16_under_autocast(one_torch_thread):
    fit = peers.PyTorchFit(peers.CONFIGURATIONS["bf16 channels_last"], small(architecture=Hourglass.regular(2, channels=8)))
    seen = []
    for module in fit.network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, inputs, out: seen.append((type(module).__name__, out.dtype)))
    fit.step()
    assert {dtype for name, dtype in seen if name not in ("_ReflectionPad",)} == {torch.bfloat16}
    # What is padded first is z itself, in float32.
    assert sum(dtype == torch.float32 for _, dtype in seen) == 1


# ---- counts and samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skips", [4, 0])
def test_operations_are_those_of_the_convolutions_that_pytorch_runs(skips):
    architecture = Hourglass.regular(3, channels=(8, 12, 10), channels_skip=skips, upsample="nearest")
    network = peers.PlainHourglass(architecture)
    counted = {"forward": 0, "inputs": 0}

    def count(module, inputs, out):
        operations = 2 * module.weight.numel() * out.shape[2] * out.shape[3]
        counted["forward"] += operations
        counted["inputs"] += operations * (inputs[0].shape[1] == architecture.input_depth)  # z wants no gradient

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    network(torch.rand(1, 32, 32, 48))
    expected = 3 * counted["forward"] - counted["inputs"]
    assert iteration_operations(layers_of(architecture, 32, 48)) == expected


def test_an_iteration_of_the_papers_network_costs_what_the_design_counts():
    layers = layers_of(Hourglass.regular(upsample="nearest"), 512, 512)
    direct, fewest = iteration_operations(layers), iteration_operations(layers, reduced=True)
    assert direct == pytest.approx(0.465e12, rel=0.02)
    # 1.99 with nine products a sample behind upsamplings alone, 2.44 with 16 a 2x2 tile of stride 1; here with 25, 36 and 25 a tile.
    assert 3.0 < direct / fewest < 3.4


def test_layers_are_named_as_the_parameters_are():
    names = {spec.name.partition(".conv.")[0] for spec in SMALL.parameters() if ".conv." in spec.name}
    assert {layer.name for layer in layers_of(SMALL, 16, 16)} == names


def test_ratios_are_taken_round_by_round():
    ours, theirs = [1.0, 2.0, 4.0, 1.0], [3.0, 5.0, 16.0, 2.0]
    assert turns.ratios(theirs, ours) == [3.0, 2.5, 4.0, 2.0]
    spread = turns.spread_of(turns.ratios(theirs, ours))
    assert spread["median"] == 2.75 and spread["samples"] == [3.0, 2.5, 4.0, 2.0]
    assert [spread["lower_quartile"], spread["upper_quartile"]] == pytest.approx(list(np.percentile([3, 2.5, 4, 2], [25, 75])))
    assert turns.Spread.of([7.0]) == turns.Spread(7.0, 7.0, 7.0)


def test_sides_take_turns_each_behind_an_untimed_iteration(monkeypatch):
    clock = [0.0]
    happened = []
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(turns.time, "sleep", lambda pause: happened.append("pause"))

    class Slow:
        def __init__(self, name, cost):
            self.name, self.cost = name, cost

        def run(self, n):
            happened.append((self.name, n))
            clock[0] += n * self.cost

    samples = turns.take_turns({"a": Slow("a", 0.1), "b": Slow("b", 1.0)}, 2)
    assert samples == {"a": pytest.approx([0.1, 0.1]), "b": pytest.approx([1.0, 1.0])}
    a, b = ["pause", ("a", 1), ("a", 3)], ["pause", ("b", 1), ("b", 1)]
    assert happened == [("a", 1), ("b", 1), *a, *b, *b, *a]


# ---- the report -----------------------------------------------------------------------------------------------------


class Fake:
    path, layers_by = "nothing", "nothing"

    def __init__(self, times=None):
        self.times = times

    def run(self, n):
        pass

    def layers(self):
        return self.times


def fixed_samples(monkeypatch, values):
    monkeypatch.setattr(iteration, "take_turns", lambda sides, rounds, say: {name: values[name] for name in sides})


def test_the_best_peer_and_its_ratio_come_from_the_samples(monkeypatch, quick):
    monkeypatch.setattr(iteration, "make_ours", lambda setting: Fake())
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    fixed_samples(monkeypatch, {
        "ours": [0.1, 0.2, 0.1], "eager float32": [0.8, 0.8, 0.9], "float32 channels_last": [0.5, 0.7, 0.6],
        "bf16 channels_last": [0.3, 0.4, 0.4], "bf16 channels_last, compiled": [0.5, 0.5, 0.5],
    })
    report = measure(small(), rounds=3)
    assert report["best"] == "bf16 channels_last"
    sides = {side["name"]: side for side in report["sides"]}
    assert list(sides) == ["ours", *peers.CONFIGURATIONS]
    assert sides["bf16 channels_last"]["ratio"]["samples"] == pytest.approx([3.0, 2.0, 4.0])
    assert sides["bf16 channels_last"]["ratio"]["median"] == pytest.approx(3.0)
    assert sides["ours"]["ratio"] is None
    assert sides["ours"]["operations_per_second"] == pytest.approx(report["operations"] / 0.1)
    for side in sides.values():
        rate = report["ceilings"][side["precision"]]["rate"]
        assert side["of_ceiling"] == pytest.approx(side["operations_per_second"] / rate)
    assert sides["bf16 channels_last, compiled"]["compile_seconds"] > 0
    assert "best PyTorch: bf16 channels_last, 3.00 times our time (quartiles 2.50-3.50, 3 rounds)" in table(report)
    eager = next(line for line in table(report).splitlines() if line.startswith("eager float32"))
    assert eager.split()[2:6] == ["0.8000", "0.8000-0.8500", "8.00", "6.00-8.50"] and eager.endswith("25 %")


def test_without_a_compiler_the_others_are_measured_and_the_reason_is_told(monkeypatch, quick, one_torch_thread):
    def broken(function, **how):
        def fail(z):
            raise RuntimeError("No working C++ compiler found\nand much more")
        return fail

    monkeypatch.setattr(torch, "compile", broken)
    report = measure(small(), rounds=1)
    assert report["skipped"] == [
        {"name": "bf16 channels_last, compiled", "reason": "RuntimeError: No working C++ compiler found"}
    ]
    assert len(report["sides"]) == len(peers.CONFIGURATIONS)
    assert "bf16 channels_last, compiled: left out (RuntimeError: No working C++ compiler found)" in table(report)


def test_without_pytorch_ours_alone_is_measured_and_one_line_says_so(monkeypatch, quick):
    monkeypatch.setattr(machine, "torch_installed", lambda: False)
    monkeypatch.setattr(iteration, "make_ours", lambda setting: Fake())
    for precision, has_ceiling in (("fp32", True), ("bf16", False)):
        report = measure(small(precision=precision), rounds=2)
        assert [side["name"] for side in report["sides"]] == ["ours"] and report["best"] is None
        assert "PyTorch is not installed" in report["notes"][0]
        assert (report["ceilings"][precision]["rate"] is not None) == has_ceiling
        assert report["notes"][0] in table(report).splitlines()


def test_the_command_itself_needs_no_pytorch():
    code = """
import sys
sys.modules["torch"] = None
from dipengine.bench import machine, memory, turns
machine.torch_installed, memory.peak_memory, machine.PRODUCT, turns.LEAST = (lambda: False), (lambda side, setting: 5), 64, 0.0
from dipengine.cli.main import main
sys.exit(main("bench iteration --size 16 --levels 2 --channels 8 --precision fp32 --rounds 1 --layers".split()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "native plan" in result.stdout and "PyTorch is not installed" in result.stdout
    assert "level1.up" in result.stdout


def test_a_machine_that_changed_its_speed_is_called_not_idle(monkeypatch, quick):
    rates = iter([100e9, 60e9])
    monkeypatch.setattr(machine, "ceiling", lambda precision, threads: next(rates))
    monkeypatch.setattr(iteration, "make_ours", lambda setting: Fake())
    report = measure(small(), rounds=1, peers="none")
    assert not report["idle"] and report["ceilings"]["fp32"]["rate"] == 100e9
    assert "not idle" in table(report)
    assert machine.idle(100e9, 110e9) and machine.idle(None, None)


def test_a_disturbance_between_two_equal_ceilings_is_noticed(monkeypatch, quick):
    monkeypatch.setattr(machine, "ceiling", lambda precision, threads: 100e9)
    monkeypatch.setattr(iteration, "make_ours", lambda setting: Fake())
    for samples, disturbed in (([0.2, 0.21, 0.2, 0.24], []), ([0.2, 0.21, 0.2, 0.42], [4])):
        fixed_samples(monkeypatch, {"ours": samples})
        report = measure(small(), rounds=4, peers="none")
        assert report["disturbed_rounds"] == disturbed and report["idle"] == (not disturbed)
        assert ("far slower than at its median in round 4: the machine was not idle" in table(report)) == bool(disturbed)


def test_layers_have_floor_and_share(monkeypatch, quick):
    times = [LayerTime("head", "forward", 0.01), LayerTime("head", "backward", 0.03), LayerTime("adam", "backward", 0.01)]
    monkeypatch.setattr(iteration, "make_ours", lambda setting: Fake(times))
    fixed_samples(monkeypatch, {"ours": [0.2, 0.2]})
    report = measure(small(), rounds=2, peers="none", layers=True)
    head, adam = report["layers"]["rows"]
    rate = report["ceilings"]["fp32"]["rate"]
    assert head["forward"] == pytest.approx(
        {"seconds": 0.01, "floor": 2 * 8 * 3 * 16 * 24 / rate, "direct_floor": 2 * 8 * 3 * 16 * 24 / rate, "share": 0.05}
    )
    assert adam["backward"]["floor"] is None and "forward" not in adam
    assert report["layers"]["seconds"] == pytest.approx(0.05) and report["layers"]["share"] == pytest.approx(0.25)
    assert report["layers"]["elsewhere"] == pytest.approx(0.15)
    line = next(line for line in table(report).splitlines() if line.startswith("head"))
    assert line.split()[-2:] == ["20", "%"]

    monkeypatch.setattr(iteration, "make_ours", lambda setting: Fake(None))
    assert "no times of single layers" in table(measure(small(), rounds=2, peers="none", layers=True))


@pytest.mark.skipif(not backend.native_available(), reason="needs the native core")
def test_our_side_runs_iterations_and_times_every_layer_both_ways(one_torch_thread):
    ours = make_ours(small())
    ours.run(2)
    times = ours.layers()
    timed = [(time.name, time.direction) for time in times]
    names = [layer.name for layer in layers_of(SMALL, 16, 24)]
    assert len(set(timed)) == len(timed)
    assert {(n, d) for n in names for d in ("forward", "backward")} <= set(timed)
    assert ("perturb", "forward") in timed and ("loss", "forward") in timed and ("adam", "backward") in timed
    assert all(time.seconds > 0 for time in times)
    assert torch.get_num_threads() == 1


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_memory_is_measured_above_the_imports_and_apart_from_this_process(one_torch_thread):
    ballast = np.ones(60_000_000)  # 480 MB: what a child inherits as the peak that getrusage tells
    setting = small(architecture=Hourglass.regular(2, channels=32, upsample="nearest"), height=256, width=256)
    ours, eager = memory.peak_memory("ours", setting), memory.peak_memory(peers.EAGER, setting)
    if ours is None:
        pytest.skip("this system tells no peak of memory")
    # 9 MB of perturbed code in float32 on either side, and at least the four full-size images of PyTorch's autograd.
    assert 8e6 < ours < 400e6
    assert 40e6 < eager < 400e6
    assert ballast.nbytes > 400e6


def test_the_mark_follows_what_this_process_holds():
    code = ("from dipengine.bench import memory\nimport numpy\nmemory._lower_the_mark()\nbefore = memory.high_water_mark()\n"
            "x = numpy.ones(10_000_000)\ndel x\nprint(memory.high_water_mark() - before)")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) == pytest.approx(80e6, rel=0.1)


def test_a_side_that_cannot_be_run_is_told_and_the_others_are_measured(monkeypatch, quick, capfd):
    with pytest.raises(FitError, match="memory of no such side could not be measured .KeyError: 'no such side'"):
        memory_of_a_child("no such side", small())
    assert capfd.readouterr().err == ""

    def failing(side, setting):
        raise FitError("The memory of ours could not be measured (no reason).")

    monkeypatch.setattr(memory, "peak_memory", failing)
    monkeypatch.setattr(iteration, "make_ours", lambda setting: Fake())
    report = measure(small(), rounds=1, peers="none")
    assert report["sides"][0]["peak_memory_bytes"] is None
    assert report["notes"] == ["The memory of ours could not be measured (no reason)."]


# ---- the command ----------------------------------------------------------------------------------------------------


def test_a_small_run_prints_a_table_and_writes_all_of_it(tmp_path, capsys, one_torch_thread):
    arguments = ["--size", "64", "--rounds", "2", "--channels", "8", "--levels", "3", "--threads", "1", "--precision", "fp32",
                 "--peers", "eager", "--layers", "--json", tmp_path / "r.json"]
    assert run(*arguments) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    wanted = {
        "format", "date", "command_line", "machine", "cpu", "instruction_set", "python", "torch", "numpy", "dipengine",
        "environment", "architecture", "height", "width", "precision", "threads", "upsample", "parameters", "rounds", "path",
        "operations", "fewest_operations", "ceilings", "idle", "disturbed_rounds", "sides", "best", "skipped", "notes", "layers",
    }
    assert wanted <= set(report)
    assert report["command_line"] == ["dipengine", "bench", "iteration", *(str(word) for word in arguments)]
    assert (report["height"], report["width"], report["best"]) == (64, 64, "eager float32")
    ours, eager = report["sides"]
    for side in (ours, eager):
        assert len(side["seconds"]["samples"]) == 2
        assert side["seconds"]["median"] == pytest.approx(statistics.median(side["seconds"]["samples"]))
        assert side["peak_memory_bytes"] is None or side["peak_memory_bytes"] > 1e6
    expected = [a / b for a, b in zip(eager["seconds"]["samples"], ours["seconds"]["samples"])]
    assert eager["ratio"]["samples"] == pytest.approx(expected)
    assert set(report["ceilings"]) == {"fp32"}
    assert capsys.readouterr().out.rstrip("\n") == table(report)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size", "big"], "'big' is not a size"),
        (["--size", "64x"], "is not a size"),
        (["--size", "100"], "try 128x128"),
        (["--size", "64x80"], "try 64x96"),
        (["--size", "0"], "at least 1"),
        (["--rounds", "0"], "rounds is 0"),
        (["--threads", "0"], "threads is 0"),
        (["--levels", "0"], "0 levels"),
        (["--channels", "8,8"], "channels has 2 values for 5 levels"),
        (["--json", "no/such/folder/r.json"], "does not exist"),
        (["--json", "r.txt"], "should end in .json"),
        (["--peers", "some"], "invalid choice"),
    ],
)
def test_wrong_use_is_one_sentence_before_anything_is_measured(arguments, message, tmp_path, monkeypatch, capsys):
    def measured(*_, **__):
        raise AssertionError("something was measured")

    for module, name in ((memory, "peak_memory"), (machine, "ceiling"), (iteration, "make_ours")):
        monkeypatch.setattr(module, name, measured)
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_setting_refuses_what_it_cannot_measure():
    with pytest.raises(InputError, match="multiples of 4 of at least 8"):
        small(width=10)
    with pytest.raises(InputError, match="rounds"):
        measure(small(), rounds=0)
    with pytest.raises(InputError, match="peers"):
        measure(small(), peers="others")
    assert Setting.from_dict(json.loads(json.dumps(small().to_dict()))) == small()


def test_a_folder_is_no_report(tmp_path, capsys):
    (tmp_path / "r.json").mkdir()
    assert run("--json", tmp_path / "r.json") == OutputError.exit_status
    assert "is a folder" in capsys.readouterr().err
