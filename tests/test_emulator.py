"""The CUDA kernels on a CPU (tests/emulator): right in every order of execution, and every deleted barrier noticed."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")

from conv_problems import FAMILIES, Problem, draw_layer, exact, nearest_tf32  # noqa: E402
from conv_problems import run as run_on_cpu  # noqa: E402
from emulated import NEEDS, ROOT, Device, build, run  # noqa: E402

pytestmark = [*NEEDS, pytest.mark.usefixtures("one_torch_thread")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="module")
def emulator(folder):
    return folder / "dipengine_emulator_tests"


@pytest.mark.slow
def test_emulator_finds_every_kind_of_mistake_and_follows_the_documented_layouts(emulator):
    for part in ("emulator_", "golden_", "sums_of_products", "plans_"):
        assert re.search(r"^[1-9]\d* tests, 0 failed$", run(emulator, part), re.MULTILINE)


@pytest.mark.slow
def test_whole_iterations_agree_with_the_plan_on_a_cpu_and_have_the_same_bits_in_company(emulator):
    assert re.search(r"^[1-9]\d* tests, 0 failed$", run(emulator, "fit_"), re.MULTILINE)


def in_shards(emulator, test):
    """What the test of scenarios says, every so many of them in a process of its own."""
    count = os.cpu_count() or 1
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda i: run("env", f"EMULATOR_SHARD={i}/{count}", emulator, test), range(count)))


@pytest.mark.slow
def test_kernels_are_right_in_every_order_of_execution(emulator):
    for said in in_shards(emulator, "scenarios_"):
        assert "1 tests, 0 failed" in said


@pytest.mark.slow
def test_every_deleted_barrier_and_wait_is_noticed(emulator):
    for said in in_shards(emulator, "mutation_"):
        deletions, places = map(int, re.search(r"(\d+) deletions of (\d+) barriers and waits", said).groups())
        assert deletions >= places >= 6


def plain_pytorch(problem):
    """The problem's outputs as PyTorch's own operations give them at the precision of the kernels' products."""
    if problem.dtype == torch.bfloat16:
        return run_on_cpu(problem, "torch")
    out, _ = exact(problem, nearest_tf32)  # sums of products as good as exact
    if "d_bias" in out:  # no product
        out["d_bias"] = run_on_cpu(problem, "torch")["d_bias"]
    return out


def squared_errors(folder, family, dtype, seeds):
    """By who ("torch", "cuda") and output: the sum of squared errors, in sizes of the outputs; and the number of values."""
    torch.set_num_threads(1)
    device = Device(folder)
    squares, counts = {"torch": defaultdict(float), "cuda": defaultdict(float)}, defaultdict(int)
    for seed in seeds:
        problem = Problem(draw_layer(family, seed), dtype, seed)
        expected, size = exact(problem)
        emulated = device.conv(problem, tickets=seed % 4 in (1, 2))
        for who, out in (("torch", plain_pytorch(problem)), ("cuda", emulated)):
            for name in emulated:
                squares[who][name.rstrip("01")] += float(((out[name].double() - expected[name]) / size[name]).square().sum())
        for name in emulated:
            counts[name.rstrip("01")] += expected[name].numel()
    return squares, counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype"),
    # The shapes of the other families are about tiles of the CPU's kernels.
    [(family, torch.bfloat16) for family in FAMILIES]
    + [(family, torch.float32) for family in FAMILIES if family not in ("even", "paired", "wide")],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_error_against_float64_is_at_most_twice_that_of_plain_pytorch(folder, family, dtype):
    # Long "paired" layers take the emulator minutes; its other tests have long ones.
    seeds = [seed for seed in range(128) if family != "paired" or seed % 4 != 3][:64]
    count = os.cpu_count() or 1
    with multiprocessing.get_context("fork").Pool(count) as pool:
        parts = pool.starmap(squared_errors, [(folder, family, dtype, seeds[i::count]) for i in range(count)])
    counts = {name: sum(part[name] for _, part in parts) for _, every in parts for name in every}
    assert all(counts[name] > 10_000 for name in ("raw", "d_x", "d_weight"))
    ratios = {}
    for name, number in counts.items():
        cuda, twin = ((sum(part[who][name] for part, _ in parts) / number) ** 0.5 for who in ("cuda", "torch"))
        ratios[name] = round(cuda / twin, 2)
        assert cuda <= 2 * twin + 4 * 2**-24, (name, cuda, twin)
    print(family, dtype, ratios)


def sampled(folder):
    from cuda_launches import BFLOAT16, LayerLaunches, SampledDevice

    from dipengine.bench.operations import Layer, Part

    device = SampledDevice(folder, 227 * 1024, 1 << 26)
    layers = [Layer(str(size), (Part(size, size, 128),), 128, size, size, 1) for size in (32, 128)]
    return [launch for layer in layers for run in (LayerLaunches(device, layer, BFLOAT16),) for launch in run.forward() + run.backward()]


@pytest.mark.slow
def test_sampled_launches_are_counted_as_if_all_blocks_had_run(folder):
    sys.path.append(str(ROOT / "bench"))
    with multiprocessing.get_context("fork").Pool(1) as pool:  # the library's setting stays there
        launches = pool.apply(sampled, [folder])
    counted = {(launch.layer, launch.step): launch for launch in launches if launch.products}
    assert min(launch.blocks for launch in counted.values()) <= 64 < max(launch.grid[0] for launch in counted.values())
    for size in (32, 128):
        for step in ("forward", "data", "weights"):
            assert counted[str(size), step].products == size**2 * 128 * 128 / (16 * 8 * 16)
        forward = counted[str(size), "forward"]
        images = size**2 * 128 * 2
        assert forward.arrays == images + 128 * 128 * 2 and images < forward.written < 1.2 * images and forward.asked > forward.arrays


def test_assembly_and_launches_stand_behind_the_platform_alone():
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file() and "platform/cuda" not in path.as_posix():
            text = path.read_text()
            assert not re.search(r"<<<|\basm\b|__syncthreads|threadIdx|__shfl|cudaLaunchKernel", text) or path.suffix not in (".cu", ".h"), path
