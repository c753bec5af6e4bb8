"""What nvcc makes of the CUDA kernels for every architecture: registers, spills, tensor-core instructions, a library that loads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from cuda_compiler import (
    FLAGS,
    NVCC,
    PRODUCT_LOOPS,
    REGISTERS,
    ROOT,
    SOURCES,
    compile_kernels,
    instructions,
    product_loops,
    run,
    short_name,
    without_predicate,
)

ARCHITECTURES = (80, 86, 89, 90, 120)
# cuobjdump and nvdisasm, which it calls, from the toolkit or from their wheels, which put them beside no other program.
SEARCH_PATH = os.pathsep.join([os.environ["PATH"], *(str(Path(folder) / "nvidia/cu13/bin") for folder in sys.path if folder)])

pytestmark = [
    pytest.mark.skipif(not SOURCES, reason="needs the source tree"),
    pytest.mark.skipif(NVCC is None, reason="needs nvcc: the compile gates of the CUDA kernels were skipped"),
]


@cache
def machine_code(disassembler: str, architecture: int, object_: Path) -> list[str]:
    """What the disassembler prints of each kernel."""
    listing = run(disassembler, "-sass", "-arch", f"sm_{architecture}", object_, env=os.environ | {"PATH": SEARCH_PATH})
    return listing.split("Function :")[1:]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[tuple[str, int], dict[str, int]]:
    """Of every kernel and architecture: registers, stack, spill_stores, spill_loads."""
    folder = tmp_path_factory.mktemp("gates")
    found = compile_kernels(folder, ARCHITECTURES, "-gencode", "arch=compute_80,code=compute_80")
    found["objects", 0] = folder
    return found


@pytest.mark.slow
def test_no_kernel_spills_and_none_exceeds_its_registers_on_any_architecture(compiled):
    kernels = {key: value for key, value in compiled.items() if key[0] != "objects"}
    assert {name for name, _ in kernels} == set(REGISTERS)
    assert len(kernels) == len(REGISTERS) * len(ARCHITECTURES)
    for (name, architecture), use in sorted(kernels.items()):
        print(f"sm_{architecture:<4} {name:34} {use['registers']:4} registers")
        assert use["stack"] == use["spill_stores"] == use["spill_loads"] == 0, (name, architecture, use)
        assert use["registers"] <= REGISTERS[name], (name, architecture, use)
        assert use["shared"] == 0, (name, architecture, use)  # what a launch gives is all: test_emulator.py has its ceilings


@pytest.mark.slow
def test_convolutions_use_the_tensor_cores_and_asynchronous_copies(compiled, tmp_path):
    # In the machine code where there is a disassembler, else in the assembly that ptxas is given.
    disassembler = shutil.which("cuobjdump", path=SEARCH_PATH)
    if disassembler is None:
        print("no cuobjdump: PTX was looked at in place of machine code")
        words = {"bf16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "float32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
                 "rounding": "cvt.rna.tf32.f32", "matrices": "ldmatrix.sync.aligned.m8n8.x4", "copy": "cp.async.cg", "load": "ld.global.nc.v4"}
    else:
        words = {"bf16": "HMMA.16816.F32.BF16", "float32": "HMMA.1688.F32.TF32", "rounding": "TF32", "matrices": "LDSM.16.M",
                 "copy": "LDGSTS.E.BYPASS.128", "load": "LDG.E.128"}
    for name in ("conv_forward", "conv_data_gradient", "conv_weight_gradient", "conv_joint_gradients"):
        if disassembler is None:
            run(NVCC, *FLAGS, "-arch=compute_80", "-ptx", ROOT / f"csrc/ops/conv/{name}_cuda.cu", "-o", tmp_path / "code.ptx")
            codes = {"compute_80": (tmp_path / "code.ptx").read_text().split(".entry")[1:]}
        else:
            codes = {
                f"sm_{n}": machine_code(disassembler, n, compiled["objects", 0] / f"{name}_cuda.o") for n in ARCHITECTURES
            }
        for architecture, kernels in codes.items():
            kernels = [kernel for kernel in kernels if f"{name}_kernel" in kernel[:200]]
            assert len(kernels) == sum(short.startswith(f"{name}_kernel") for short in REGISTERS), architecture
            for kernel in kernels:
                element, other = ("float32", "bf16") if "Float32" in kernel[:200] else ("bf16", "float32")
                needs = {element, "load"} | ({"rounding"} if element == "float32" else set())
                if name != "conv_weight_gradient":
                    needs |= {"copy", "matrices"}
                elif element == "bf16":  # ldmatrix transposes 16-bit elements alone
                    needs |= {"matrices"}
                for need in needs:
                    assert words[need] in kernel, (architecture, kernel[:120], need)
                assert words[other] not in kernel, (architecture, kernel[:120], other)


def without_element(kernel: str) -> str:
    """Its name in bfloat16 and in float32."""
    return re.sub(r"(bf16|float32),|<(bf16|float32)>", "", kernel)


@pytest.mark.slow
def test_the_loops_of_products_are_short_and_divide_nothing(compiled):
    disassembler = shutil.which("cuobjdump", path=SEARCH_PATH)
    if disassembler is None:
        pytest.skip('needs cuobjdump: pip install "dipengine[test]"')
    found = []
    for name in ("conv_forward", "conv_data_gradient", "conv_weight_gradient", "conv_joint_gradients"):
        for kernel in machine_code(disassembler, 90, compiled["objects", 0] / f"{name}_cuda.o"):
            short = short_name(kernel.split()[0])
            of_both = without_element(short)
            found.append(of_both)
            for loop in product_loops(kernel) if of_both in PRODUCT_LOOPS else ():
                products = sum(word.startswith("HMMA") for word in loop)
                print(f"{short:45} {len(loop):4} instructions for {products} products")
                assert len(loop) <= PRODUCT_LOOPS[of_both] * products, (short, len(loop), products)
                assert not any(word.startswith(("I2F", "F2I", "MUFU")) for word in loop), (short, "an integer division")
                found.append((of_both, "a loop"))
    for name in PRODUCT_LOOPS:
        elements = sum(without_element(kernel) == name for kernel in REGISTERS)
        assert found.count(name) == elements > 0 and found.count((name, "a loop")) >= elements, name


@pytest.mark.slow
def test_every_kernel_waits_for_the_launches_before_it(compiled):
    disassembler = shutil.which("cuobjdump", path=SEARCH_PATH)
    if disassembler is None:
        pytest.skip('needs cuobjdump: pip install "dipengine[test]"')
    found = set()
    for source in SOURCES:
        for kernel in machine_code(disassembler, 90, compiled["objects", 0] / f"{source.stem}.o"):
            name = short_name(kernel.split()[0])
            code = [text for _, text in instructions(kernel)]
            at = {word: [i for i, text in enumerate(code) if without_predicate(text).startswith(word)] for word in ("ACQBULK", "PREEXIT", "EXIT")}
            # Global memory, atomics and copies among it; the constant bank (LDC) holds params, and shared memory is the block's own.
            memory = [i for i, text in enumerate(code) if re.match(r"(LDG|STG|LD|ST|ATOM|ATOMG|RED|REDG|LDGSTS)(\.|\s)", without_predicate(text))]
            found.add(name)
            assert len(at["ACQBULK"]) == 1 and code[at["ACQBULK"][0]].startswith("ACQBULK"), (name, "waits once, with no condition")
            assert at["ACQBULK"][0] < min(memory + at["EXIT"] + at["PREEXIT"]), (name, "and before anything else")
            assert at["PREEXIT"], (name, "lets the next begin")
            assert not any("CONSTANT" in code[i] for i in memory), (name, "reads by the read-only path, which may be before the wait")
    assert found == set(REGISTERS)


@pytest.mark.slow
def test_library_with_cuda_loads_without_a_driver_and_says_so(tmp_path):
    search = os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)])
    cmake = shutil.which("cmake", path=search)
    if cmake is None:
        pytest.skip('needs cmake: pip install "dipengine[test]"')
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=search) else []
    environment = os.environ | {"PATH": search}
    pybind11 = pytest.importorskip("pybind11", reason="needs pybind11 to build the Python module")
    package = tmp_path / "package/dipengine"
    shutil.copytree(ROOT / "engine/dipengine", package, ignore=shutil.ignore_patterns("_native*", "__pycache__"))
    run(cmake, "-S", ROOT, "-B", tmp_path, *generator, "-DDIPENGINE_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=80-virtual",
        "-DDIPENGINE_ONLY_ISAS=portable", "-DCMAKE_BUILD_TYPE=Debug", "-DDIPENGINE_PYTHON=ON", f"-DDIPENGINE_MODULE_DIR={package}",
        "-DDIPENGINE_SILICON=ON", "-DCMAKE_CUDA_FLAGS=-Xcicc -O0",  # nothing of a kernel is run or looked at
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", env=environment)
    run(cmake, "--build", tmp_path, "--target", "dipengine", "_native", "dipengine_silicon_tests", "dipengine_ceilings", "--parallel", os.cpu_count() or 1, env=environment)
    library = next(tmp_path.glob("libdipengine.so.*.*.*"))
    needed = re.findall(r"NEEDED.*\[(.+)\]", run("readelf", "-d", library))
    assert not any("cuda" in name for name in needed), needed
    exported = [line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()]
    assert "dipengine_conv_cuda_forward" in exported and all(name.startswith("dipengine_") for name in exported)
    script = """
import ctypes, sys
core = ctypes.CDLL(sys.argv[1])
core.dipengine_last_error.restype = ctypes.c_char_p
class Params(ctypes.Structure):  # dipengine_perturb_cuda_params
    _fields_ = [("struct_size", ctypes.c_size_t), ("stream", ctypes.c_void_p), ("fits", ctypes.c_int64), ("count", ctypes.c_int64),
                ("seeds", ctypes.c_void_p), ("steps", ctypes.c_void_p), ("active", ctypes.c_void_p), ("noise_stream", ctypes.c_uint32),
                ("z_dtype", ctypes.c_int32), ("z", ctypes.c_void_p), ("z_fit_stride", ctypes.c_int64), ("z_scale", ctypes.c_float),
                ("std", ctypes.c_float), ("out_dtype", ctypes.c_int32), ("out", ctypes.c_void_p), ("out_fit_stride", ctypes.c_int64),
                ("code_seeds", ctypes.c_void_p), ("code_stream", ctypes.c_uint32)]
p = Params(struct_size=ctypes.sizeof(Params), fits=1, count=16, seeds=16, steps=16, z=16, out=16, z_fit_stride=16)
print(core.dipengine_perturb_cuda(ctypes.byref(p)), core.dipengine_last_error().decode())
"""
    without = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(package.parent)}
    said = run(sys.executable, "-c", script, library, env=without)
    assert said.startswith("3 perturb needs a CUDA device and its driver"), said
    said = run(sys.executable, "-m", "dipengine", "doctor", env=without)
    assert re.search(r"^CUDA kernels +for 80-virtual \(nvcc [\d.]+\); No CUDA device can be used here: ", said, re.MULTILINE), said
    script = "from dipengine.fitting.device import place; from dipengine.fitting.settings import Settings; print(place(Settings()).device)"
    assert run(sys.executable, "-c", script, env=without) == "cpu\n"
    assert package.as_posix() in run(sys.executable, "-c", "import dipengine; print(dipengine.__file__)", env=without)

    # The programs of the acceptance: all of the emulator's scenarios are in the one for a GPU, which says that there is none.
    tests = tmp_path / "tests/silicon/dipengine_silicon_tests"
    listed = run(tests, "--list", env=without).split()
    for path in (ROOT / "tests/emulator").glob("test_*.cpp"):
        for name in re.findall(r"^SCENARIO\((\w+)\)", path.read_text(), re.MULTILINE):
            assert f"{path.name}/{name}" in listed
    assert any(name.startswith("fit_") for name in listed) and not any(name.startswith(("emulator_", "mutation_")) for name in listed)
    for program, status, words in ((tests, 2, "No CUDA device can be used here: "),
                                   (tests.with_name("dipengine_ceilings"), 1, "The device cannot be measured: ")):
        ended = subprocess.run([program], capture_output=True, text=True, env=without)
        assert ended.returncode == status and ended.stdout.startswith(words), ended.stdout
