"""The CUDA kernels and what nvcc makes of them: registers, spills and shared memory by kernel and architecture."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NVCC = shutil.which("nvcc")
SOURCES = sorted((ROOT / "csrc").rglob("*_cuda.cu"))
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-I", str(ROOT / "csrc"), "-I", str(ROOT / "csrc/include"))

# Most registers of a thread, by kernel. With 128 threads 255 are what two blocks a multiprocessor leave and 168 what three do,
# with 256 threads 128.
REGISTERS = {
    "sigmoid_backward_kernel": 64,
    "adam_kernel": 64,
    "perturb_kernel": 64,
    "masked_mse_kernel": 112,
    "masked_mse_finish_kernel": 96,
    "blur_kernel": 104,
    "deviance_kernel": 104,
    "deviance_finish_kernel": 112,
    "downsample_rows_kernel": 64,
    "downsample_columns_kernel": 64,
    "upsample_rows_kernel": 64,
    "upsample_columns_kernel": 64,
    "moments_kernel": 96,
    "sums_kernel": 96,
    "norm_fold_gradient_kernel": 64,
    "conv_weight_sum_kernel": 64,
    "conv_widen_kernel": 64,
    "conv_narrow_kernel": 64,
    "conv_input_operand_kernel": 128,
    "conv_gradient_operand_kernel": 128,
    "census_kernel": 64,
    "conv_joint_gradients_kernel<64,128>": 192,
    "conv_joint_gradients_kernel<128,64>": 255,
    "conv_joint_gradients_kernel<128,128>": 255,
    "turn_begin_kernel": 64,
    "turn_judge_kernel": 64,
    "turn_end_kernel": 72,
    "turn_copy_kernel": 64,
    "turn_margin_kernel": 64,
} | {
    name.replace("<", f"<{element},") if "<" in name else f"{name}<{element}>": most
    for name, by_element in {
        "norm_statistics_kernel": (120, 104),
        "norm_backward_kernel": (104, 104),
        "conv_pack_kernel": (96, 80),
        "conv_pack_all_kernel": (96, 80),
        "conv_forward_kernel<4,1,2,1,1>": (168, 168),
        "conv_forward_kernel<4,1,2,2,1>": (168, 168),
        "conv_forward_kernel<4,1,2,1,3>": (168, 168),
        "conv_forward_kernel<4,1,2,2,3>": (168, 168),
        "conv_forward_kernel<2,2,4,2,1>": (248, 232),
        "conv_forward_kernel<2,2,4,4,1>": (255, 255),
        "conv_data_gradient_kernel<4,1,2,1,1>": (152, 144),
        "conv_data_gradient_kernel<4,1,2,2,1>": (168, 168),
        "conv_data_gradient_kernel<4,1,2,1,3>": (152, 136),
        "conv_data_gradient_kernel<4,1,2,2,3>": (168, 168),
        "conv_data_gradient_kernel<2,2,4,2,1>": (208, 216),
        "conv_data_gradient_kernel<2,2,4,4,1>": (255, 248),
        "conv_head_gradient_kernel": (255, 255),
        "conv_weight_gradient_kernel<1>": (208, 168),
        "conv_weight_gradient_kernel<4>": (240, 208),
        "conv_weight_gradient_kernel<9>": (255, 255),
        "conv_few_gradient_kernel": (168, 168),
        "conv_bias_gradient_kernel": (96, 64),
    }.items()
    for element, most in zip(("bf16", "float32"), by_element, strict=True)
}

# Most instructions, of sm_90, for a product in the loops of products, what they do once in many products among them.
PRODUCT_LOOPS = {
    "conv_forward_kernel<4,1,2,1,1>": 15, "conv_forward_kernel<4,1,2,1,3>": 16, "conv_forward_kernel<4,1,2,2,1>": 9,
    "conv_forward_kernel<4,1,2,2,3>": 9, "conv_forward_kernel<2,2,4,2,1>": 5.5, "conv_forward_kernel<2,2,4,4,1>": 3.5,
    "conv_data_gradient_kernel<4,1,2,1,1>": 33, "conv_data_gradient_kernel<4,1,2,1,3>": 34, "conv_data_gradient_kernel<4,1,2,2,1>": 22,
    "conv_data_gradient_kernel<4,1,2,2,3>": 18, "conv_data_gradient_kernel<2,2,4,2,1>": 13, "conv_data_gradient_kernel<2,2,4,4,1>": 7,
    "conv_head_gradient_kernel": 7, "conv_joint_gradients_kernel<64,128>": 20, "conv_joint_gradients_kernel<128,64>": 10.5,
    "conv_joint_gradients_kernel<128,128>": 8.5, "conv_weight_gradient_kernel<4>": 5.5, "conv_weight_gradient_kernel<9>": 5,
}  # but of weights' gradients of one tap, whose products are no loop of their own


def instructions(code: str) -> list[tuple[int, str]]:
    """Address and text of each, from what `cuobjdump -sass` prints of a kernel."""
    return [(int(at, 16), text) for at, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", code, re.MULTILINE)]


def without_predicate(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text)


def product_loops(code: str) -> list[list[str]]:
    """The instructions of each loop of a kernel that multiplies on the tensor cores and has no such loop inside, but the outermost of
    those that run over the same products; from what `cuobjdump -sass` prints of the kernel."""
    lines = instructions(code)
    loops = set()
    for at, text in lines:
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if target and int(target.group(1), 16) <= at:
            loops.add((int(target.group(1), 16), at))
    bodies = {loop: [without_predicate(text) for at, text in lines if loop[0] <= at <= loop[1]] for loop in loops}
    products = {loop: sum(word.startswith("HMMA") for word in body) for loop, body in bodies.items()}
    inside = {loop for loop in loops if products[loop] and not any(
        other != loop and loop[0] <= other[0] and other[1] <= loop[1] and 0 < products[other] for other in loops)}
    # A loop over stages around one over rounds: as many products in both.
    return [bodies[max((around for around in loops if around[0] == loop[0] and products[around] == products[loop]),
                       key=lambda around: around[1])] for loop in sorted(inside)]


def run(*command: object, **options) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def short_name(mangled: str) -> str:
    """`conv_forward_kernel<bf16,4,1,2,1>` of _ZN...19conv_forward_kernelINS_4cuda8Bfloat16ENS_8ConvTileILi4ELi1ELi2ELi1EEEE..."""
    name = re.search(r"\d+([a-z_]+_kernel)", mangled).group(1)
    arguments = [short for tag, short in (("Bfloat16", "bf16"), ("Float32", "float32")) if tag in mangled] + re.findall(r"Li(\d+)E", mangled)
    return name + (f"<{','.join(arguments)}>" if arguments else "")


def compile_kernels(folder: Path, architectures: tuple[int, ...], *more: str) -> dict[tuple[str, int], dict[str, int]]:
    """By (kernel, architecture): registers, stack, spill_stores, spill_loads and shared, static bytes. Objects are left in folder."""
    # Those of one kind share what comes before ptxas: the sources differ between them in nothing (thread.h, copy.h).
    shared = {n: 80 if 80 in architectures and n < 90 else n for n in architectures}
    targets = [word for virtual in sorted(set(shared.values())) for word in (
        "-gencode", f"arch=compute_{virtual},code=[{','.join(f'sm_{n}' for n in architectures if shared[n] == virtual)}]")]
    found = {}
    for source in SOURCES:
        log = run(NVCC, *FLAGS, *targets, *more, "--threads", os.cpu_count() or 1, "-Xptxas", "-v", "-c", source, "-o", folder / f"{source.stem}.o")
        for name, architecture, rest in re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'(.*?Used \d+ registers[^\n]*)", log, re.DOTALL):
            stack, stores, loads = map(int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", rest).groups())
            shared = re.search(r"(\d+) bytes smem", rest)
            found[short_name(name), int(architecture)] = {
                "registers": int(re.search(r"Used (\d+) registers", rest).group(1)), "stack": stack, "spill_stores": stores, "spill_loads": loads,
                "shared": int(shared.group(1)) if shared else 0,
            }
    return found
