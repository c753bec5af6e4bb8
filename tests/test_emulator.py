"""The CUDA kernels on a CPU (tests/emulator): right in every order of execution, and every deleted barrier noticed."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

torch = pytest.importorskip("torch")

from conv_problems import FAMILIES, Problem, draw_layer, exact  # noqa: E402
from conv_problems import run as run_on_cpu  # noqa: E402
from emulated import NEEDS, ROOT, Device, build, run  # noqa: E402

pytestmark = [*NEEDS, pytest.mark.usefixtures("one_torch_thread")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="module")
def emulator(folder):
    return folder / "dipengine_emulator_tests"


@pytest.fixture(scope="module")
def device(folder):
    return Device(folder)


@pytest.mark.slow
def test_emulator_finds_every_kind_of_mistake_and_follows_the_documented_layouts(emulator):
    for part in ("emulator_", "golden_", "sums_of_products", "plans_"):
        assert re.search(r"^[1-9]\d* tests, 0 failed$", run(emulator, part), re.MULTILINE)


@pytest.mark.slow
def test_kernels_are_right_in_every_order_of_execution(emulator):
    assert "1 tests, 0 failed" in run(emulator, "scenarios_")


@pytest.mark.slow
def test_every_deleted_barrier_and_wait_is_noticed(emulator):
    said = run(emulator, "mutation_")
    deletions, places = map(int, re.search(r"(\d+) deletions of (\d+) barriers and waits", said).groups())
    assert deletions >= places >= 6


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_error_against_float64_is_at_most_twice_that_of_plain_pytorch(device, family):
    squares, counts = defaultdict(lambda: defaultdict(float)), defaultdict(int)
    # Long "paired" layers take the emulator minutes; its other tests have long ones.
    for seed in [seed for seed in range(128) if family != "paired" or seed % 4 != 3][:64]:
        problem = Problem(draw_layer(family, seed), torch.bfloat16, seed)
        expected, size = exact(problem)
        emulated = device.conv(problem)
        for who, out in (("torch", run_on_cpu(problem, "torch")), ("cuda", emulated)):
            for name in emulated:
                squares[who][name.rstrip("01")] += float(((out[name].double() - expected[name]) / size[name]).square().sum())
        for name in emulated:
            counts[name.rstrip("01")] += expected[name].numel()
    assert all(counts[name] > 10_000 for name in ("raw", "d_x", "d_weight"))
    ratios = {}
    for name, count in counts.items():
        cuda, twin = ((squares[who][name] / count) ** 0.5 for who in ("cuda", "torch"))
        ratios[name] = round(cuda / twin, 2)
        assert cuda <= 2 * twin + 4 * 2**-24, (name, cuda, twin)
    print(family, ratios)


def test_assembly_and_launches_stand_behind_the_platform_alone():
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file() and "platform/cuda" not in path.as_posix():
            text = path.read_text()
            assert not re.search(r"<<<|\basm\b|__syncthreads|threadIdx|__shfl|cudaLaunchKernel", text) or path.suffix not in (".cu", ".h"), path
