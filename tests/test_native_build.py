"""The C++ core by itself: its tests under sanitizers, the installed package in hosts, symbols, versions, CUDA option."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dipengine._version import __version__
from dipengine.kernels.backend import instruction_sets
from native_builds import CMAKE, CORES, ROOT, build, configure, run

pytestmark = [
    pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="needs the source tree"),
    pytest.mark.skipif(CMAKE is None, reason='needs cmake: pip install "dipengine[test]"'),
]


# What this CPU cannot run is not built. How work goes to threads depends on the instruction set only where products are in float16: the
# highest set stands for all.
@pytest.mark.slow
@pytest.mark.parametrize("sanitizers, sets", [("address,undefined", instruction_sets()), ("thread", instruction_sets()[-1:])])
def test_cpp_tests_pass_under_sanitizers(tmp_path, sanitizers, sets):
    folder = build(ROOT, tmp_path / "build", "-DDIPENGINE_TESTS=ON", f"-DDIPENGINE_SANITIZE={sanitizers}", f"-DDIPENGINE_ONLY_ISAS={';'.join(sets)}",
                   "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1")
    claims = tmp_path / "claims"
    claims.mkdir()

    def share(_):
        result = run(folder / "tests/cpp/dipengine_tests", TESTS_CLAIMS=str(claims), UBSAN_OPTIONS="print_stacktrace=1")
        summary = re.search(r"^(\d+) tests, 0 failed$", result.stdout, re.MULTILINE)
        assert summary, result.stdout
        return int(summary.group(1))

    with ThreadPoolExecutor(int(CORES)) as pool:
        assert sum(pool.map(share, range(int(CORES)))) == len(list(claims.iterdir())) >= 85


def test_installed_package_serves_c_and_cpp_hosts(prefix, tmp_path):
    host = build(ROOT / "tests/cpp/host", tmp_path / "host", f"-DCMAKE_PREFIX_PATH={prefix}")
    drawn = [np.float32(word) for word in run(host / "host_c").stdout.split()]
    from dipengine.kernels import philox

    assert drawn == list(philox.uniform(42, 0, 0, 3, kernels="torch"))
    version, parameter, isa = run(host / "host_cpp", DIPENGINE_ISA="portable").stdout.split()
    assert (version, isa) == (__version__, "portable")
    assert float(parameter) == pytest.approx(0.75)  # Adam's first step is lr times the gradient's sign


def test_every_installed_header_stands_alone_in_c_and_cpp(prefix, tmp_path):
    include = prefix / "include"
    headers = sorted(str(path.relative_to(include)) for path in include.rglob("*.h"))
    assert "dipengine/fit.h" in headers and "dipengine/ops/conv.h" in headers
    ops = {path.parent.name for path in (ROOT / "csrc/ops").glob("*/*.h") if path.stem == path.parent.name}
    found = {Path(name).stem for name in headers if "/ops/" in name}
    assert ops == {name for name in found if not name.endswith("_cuda")}
    for compiler, standard, ending in (("cc", "c11", "c"), ("c++", "c++17", "cpp")):
        for name in headers:
            source = tmp_path / f"includes.{ending}"
            source.write_text(f"#include <{name}>\nint main(void) {{ return 0; }}\n")
            run(compiler, f"-std={standard}", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-I", include, source)
    source.write_text("#include <dipengine/dipengine.hpp>\nint main() { return 0; }\n")
    run("c++", "-std=c++17", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-I", include, source)


def test_every_function_of_the_headers_is_exported(core):
    headers = [*(ROOT / "csrc/include/dipengine").glob("*.h"), *(ROOT / "csrc/ops").glob("*/*.h")]
    headers = [path for path in headers if not path.stem.endswith("_cuda")]  # exported where CUDA is built in
    declared = set()
    for path in headers:
        declared |= set(re.findall(r"^DIPENGINE_API [^;(]*?(dipengine_\w+)\(", path.read_text(), re.MULTILINE))
    assert len(declared) > 50
    symbols = run("nm", "-D", "--defined-only", core / f"libdipengine.so.{__version__}").stdout
    assert not declared - {line.split()[-1] for line in symbols.splitlines()}


def test_library_has_a_soname_of_its_abi_and_exports_its_own_functions_alone(core):
    header = (ROOT / "csrc/include/dipengine/dipengine.h").read_text()
    abi = re.search(r"#define DIPENGINE_ABI_VERSION (\d+)", header).group(1)
    library = core / f"libdipengine.so.{__version__}"
    assert f"libdipengine.so.{abi}]" in run("readelf", "-d", library).stdout
    exported = [line.split()[-1] for line in run("nm", "-D", "--defined-only", library).stdout.splitlines()]
    assert len(exported) > 10 and all(name.startswith("dipengine_") for name in exported)


def test_kernels_share_no_symbol_between_instruction_sets(core):
    # A weak (inline) function compiled for AVX-512 could be the copy that the linker keeps for everybody, unless its name is
    # in the namespace of its instruction set.
    objects = [path for path in core.rglob("*_cpu.cpp.o")]
    assert objects
    for path in objects:
        isa = re.search(r"dipengine_kernels_(\w+)\.dir", str(path)).group(1)
        own = f"9dipengine{len(isa)}{isa}"
        symbols = [line.split() for line in run("nm", path).stdout.splitlines()]
        weak = [words[-1] for words in symbols if words[-2] in "WVu"]
        assert not [name for name in weak if not re.match(f"_ZNK?{own}", name)], path


def test_cuda_on_without_a_compiler_fails_with_the_remedy(tmp_path):
    result = configure(ROOT, tmp_path, "-DDIPENGINE_CUDA=ON", "-DCMAKE_CUDA_COMPILER=", check=False, CUDACXX="/nonexistent/nvcc")
    message = " ".join(result.stderr.split())
    assert result.returncode != 0
    assert "no working CUDA compiler was found; install the CUDA toolkit" in message


def test_an_unknown_cuda_option_is_refused(tmp_path):
    result = configure(ROOT, tmp_path, "-DDIPENGINE_CUDA=MAYBE", check=False)
    assert result.returncode != 0 and "takes AUTO, ON or OFF" in result.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_formulas_compile_for_cuda_devices(tmp_path):
    formulas = sorted((ROOT / "csrc").rglob("*_math.h")) + [
        path for path in sorted((ROOT / "csrc/math").glob("*.h")) if path.name != "host_device.h"
    ]
    includes = "\n".join(f'#include "{path.relative_to(ROOT / "csrc")}"' for path in formulas)
    source = tmp_path / "formulas.cu"
    source.write_text(f"""{includes}
__global__ void formulas(float* out, unsigned i) {{
  const dipengine::PhiloxBlock b = dipengine::philox_block({{i, 1, 2}}, i);
  const dipengine::NormalPair n = dipengine::normal_pair(b.w0, b.w1);
  const dipengine::Sigmoid<float> s = dipengine::sigmoid(n.even);
  const auto scalars = dipengine::adam_scalars<float>(i, 0.01, 0.9, 0.999, 1e-8);
  float m = n.odd, v = s.slope;
  out[i] = dipengine::adam_update(scalars, s.value, dipengine::float_from_bf16(dipengine::bf16_from_float(m)), m, v);
  out[i] += dipengine::weighted_square(m, v) + dipengine::masked_mse_tiling(1, i, 3).tiles;
}}
""")
    run("nvcc", "-std=c++17", "-fmad=false", "-arch=compute_80", "-ptx", "-I", ROOT / "csrc", "-I", ROOT / "csrc/include", source, "-o", tmp_path / "formulas.ptx")
    assert "fma.rn.f32" in (tmp_path / "formulas.ptx").read_text()
