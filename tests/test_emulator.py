"""The CUDA kernels on a CPU (tests/emulator): right in every order of execution, and every deleted barrier noticed."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")

from conftest import alone_in  # noqa: E402
from conv_problems import FAMILIES, Problem, draw_layer, exact, nearest_tf32  # noqa: E402
from conv_problems import run as run_on_cpu  # noqa: E402
from cuda_compiler import REGISTERS, short_name  # noqa: E402
from emulated import NEEDS, ROOT, Device, build, run  # noqa: E402

pytestmark = [*NEEDS, pytest.mark.usefixtures("one_torch_thread")]


@pytest.fixture(scope="module")
def folder(emulator_folder):
    with alone_in(emulator_folder):
        return build(emulator_folder)


@pytest.fixture(scope="module")
def emulator(folder):
    return folder / "dipengine_emulator_tests"


@pytest.mark.slow
def test_emulator_finds_every_kind_of_mistake_and_follows_the_documented_layouts(emulator):
    for part in ("emulator_", "golden_", "sums_of_products", "plans_"):
        assert re.search(r"^[1-9]\d* tests, 0 failed$", run(emulator, part), re.MULTILINE)


@pytest.mark.slow
def test_launches_and_recordings_keep_the_rules_of_cudas_runtime(folder):
    assert re.search(r"^[1-9]\d* tests, 0 failed$", run(folder.parent / "runtime/dipengine_runtime_tests"), re.MULTILINE)


@pytest.mark.slow
def test_the_program_for_a_gpu_goes_on_behind_tests_that_end_in_any_way(folder):
    program = folder.parent / "runtime/dipengine_silicon_harness"

    def said(*arguments, **environment):
        return subprocess.run([program, *arguments], capture_output=True, text=True, env=os.environ | {"DIPENGINE_SILICON_SECONDS": "2"} | environment)

    result = said()
    name = "silicon_cases.cpp/case_"
    assert re.findall(r"^passed (\S+)$", result.stdout, re.MULTILINE) == [
        f"{name}that_passes", "silicon_cases.cpp/conv_case", "silicon_cases.cpp/conv_case_in_tiles_of_large_images", f"{name}between", f"{name}behind",
        "fit_case_behind"]
    assert re.findall(r"^FAILED (\S+)$", result.stdout, re.MULTILINE) == [
        f"{name}that_is_wrong", f"{name}that_aborts", f"{name}that_loses_the_device", f"{name}that_hangs", "fit_case_that_loses_the_device"]
    assert result.returncode == 1 and result.stdout.endswith("11 tests, 5 failed\n")
    for words in (r"x\[3\] is 1 where 2 is expected\nFAILED \S+wrong", r"and says so before\n    ended its process by signal 6 .*\nFAILED \S+aborts",
                  r"the device is lost: misaligned address\nFAILED \S+device", r"did not end within 2 s\nFAILED \S+hangs",
                  r"an iteration failed\nABORTED .*misaligned address\n    ended its process with status 3\n    a kernel failed\n(.*\n)+FAILED fit_case"):
        assert re.search(words, result.stdout), words
    assert said("fit_case_behind").stdout == "passed fit_case_behind\n1 tests, 0 failed\n"
    assert said("--here", f"{name}behind").returncode == 0 and said(NO_DEVICE="1").returncode == 2
    assert said("--list").stdout.count("\n") == 11 and said("nothing").returncode == 1


@pytest.mark.slow
def test_whole_iterations_agree_with_the_plan_on_a_cpu_and_have_the_same_bits_in_company(emulator):
    assert re.search(r"^[1-9]\d* tests, 0 failed$", run(emulator, "fit_"), re.MULTILINE)
    for name in ("fit_one_step", "fit_in_company"):  # in the tiles of sm_90
        assert "1 tests, 0 failed" in run("env", "EMULATOR_SHARED_KB=227", emulator, name)


def in_shards(emulator, test):
    """What the test of scenarios says, every so many of them in a process of its own."""
    count = os.cpu_count() or 1
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda i: run("env", f"EMULATOR_SHARD={i}/{count}", emulator, test), range(count)))


def launched(emulator, said):
    """By kernel: the most shared memory that a block was given, from what the test of scenarios says of its launches."""
    symbols = {name: int(address, 16) for address, name in re.findall(r"^(\w+) [tTwW] (\w+)$", run("nm", emulator), re.MULTILINE)}
    kernels = {symbols[name] - symbols["dipengine_last_error"]: short_name(name)
               for name in symbols if re.match(r"_ZN9dipengine.*\d[a-z_]+_kernel[EI]", name)}
    of_tests = {symbols[name] - symbols["dipengine_last_error"] for name in symbols if "8emulated" in name}
    found = defaultdict(int)
    for distance, shared in re.findall(r"^launched (-?\d+) (\d+)$", said, re.MULTILINE):
        if int(distance) in of_tests:
            continue
        found[kernels[int(distance)]] = max(found[kernels[int(distance)]], int(shared))
    return found


# Most bytes of shared memory of a block, of kernels whose need does not depend on the layer. Of the others the plans are tested
# (test_conv_plans.cpp): two blocks to a multiprocessor, or one of weight gradients.
SHARED = {
    "adam_kernel": 32,
    "blur_kernel": 28 * 1024,
    "census_kernel": 256,
    "conv_bias_gradient_kernel": 7 * 1024,  # merges its parts: 28 bytes a thread, as norms do
    "conv_few_gradient_kernel": 64 * 1024,  # 192 places and 48 columns of 272 bytes: three blocks on sm_90
    "deviance_kernel": 512,
    "deviance_finish_kernel": 512,
    "masked_mse_kernel": 256,
    "masked_mse_finish_kernel": 256,
    "moments_kernel": 6 * 1024,
    "norm_statistics_kernel": 7 * 1024,
    "norm_backward_kernel": 7 * 1024,
    "sums_kernel": 4 * 1024,
}  # others: none
BY_LAYER = ("conv_forward_kernel", "conv_data_gradient_kernel", "conv_head_gradient_kernel", "conv_weight_gradient_kernel",
            "conv_joint_gradients_kernel")  # the last: a block a multiprocessor, and as much as the device has


@pytest.mark.slow
def test_kernels_are_right_in_every_order_of_execution_and_each_has_run(emulator):
    said = in_shards(emulator, "scenarios_")
    assert all("1 tests, 0 failed" in part for part in said)
    found = launched(emulator, "\n".join(said))
    assert set(found) == set(REGISTERS)
    for name, shared in found.items():
        assert name.startswith(BY_LAYER) or shared <= SHARED.get(name.partition("<")[0], 0), (name, shared)


def barriers_and_waits():
    """Every call of one in the kernels, as "FILE:LINE"; the headers that declare them are left out."""
    found = set()
    for path in (ROOT / "csrc").rglob("*.*"):
        if path.suffix in (".cu", ".h") and path.name not in ("thread.h", "copy.h"):
            lines = enumerate(path.read_text().splitlines(), 1)
            found |= {f"{path.name}:{i}" for i, line in lines if re.search(r"\bsync_(threads|warp)\(|\bcopy_wait<|\blast_block\(|\bwait_for_launches\(", line.partition("//")[0])}
    return found


@pytest.mark.slow
def test_every_deleted_barrier_and_wait_is_noticed(emulator):
    said = "\n".join(in_shards(emulator, "mutation_"))
    assert said.count("1 tests, 0 failed") == (os.cpu_count() or 1)
    deleted = {site for site in re.findall(r"^deleted (\S+)$", said, re.MULTILINE) if not site.startswith("test_")}  # but of tests' own kernels
    assert deleted == barriers_and_waits() != set()


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
        emulated = device.conv(problem, tickets=seed % 4 in (1, 2), large=seed % 2 == 1)
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


FIFTEEN_MEGAPIXELS = 9 << 30  # bytes of the largest image in float32, and more; hardly any of them are touched


def launches_of_fifteen_megapixels(folder, dtype):
    from cuda_launches import BFLOAT16, LayerLaunches, SampledDevice, rest

    from dipengine.bench.operations import Layer, Part, layers_of
    from dipengine.generators.architecture import Hourglass

    architecture, device = Hourglass.regular(upsample="nearest"), SampledDevice(folder, 227 * 1024, FIFTEEN_MEGAPIXELS)
    found = []
    for layer in layers_of(architecture, 3904, 3968):
        if layer.name in ("level0.up", "level0.point", "head"):  # not their weights' gradients, whose blocks go over the whole image
            layer_launches = LayerLaunches(device, layer, dtype)
            found += layer_launches.forward()
            found += device.launches(layer.name, "data", "dipengine_conv_cuda_data_gradient", layer_launches.params)
    if dtype == BFLOAT16:  # whose blocks go over the whole image, too: few pixels, in rows as far apart as may be
        joint = LayerLaunches(device, Layer("level0.point", (Part(64, 8, 128),), 128, 64, 8, 1), dtype, heads=3)
        joint.params.raw.row_stride = joint.sources[0].x.row_stride = joint.sources[0].d_x.row_stride = (2**31 - 1) // 64 // 8 * 8
        found += joint.backward()
    return found + rest(device, architecture, 3904, 3968, dtype)


@pytest.mark.slow
@pytest.mark.skipif(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < FIFTEEN_MEGAPIXELS, reason="needs 9 GiB of address space")
@pytest.mark.parametrize("dtype", ["BFLOAT16", "FLOAT32"])
def test_no_number_of_a_kernel_overflows_at_fifteen_megapixels(folder, dtype):
    """The emulator looks at every calculation; 128 channels of 3904 x 3968 pixels are nearly 2^31 values, 4 or 8 GB."""
    sys.path.append(str(ROOT / "bench"))
    import cuda_launches

    with multiprocessing.get_context("fork").Pool(1) as pool:  # the library's setting stays there
        launches = pool.apply(launches_of_fifteen_megapixels, [folder, getattr(cuda_launches, dtype)])
    assert max(launch.written for launch in launches) > 3.9e9


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
