"""Every launch of an iteration on the CUDA kernels against what an H200 could do: a computed table, in which nothing was measured.

    python bench/roofline_cuda.py [--sizes 256 512] [--upsample nearest bilinear] [--dtype bf16 float32] [--build FOLDER]
                                   [--json FILE] [--markdown FILE]

Launches, products and bytes come from the kernels' own code (cuda_launches.py), registers and static shared memory from nvcc for sm_90.

- `MB`: each array that a launch reads, once, and what its threads write. `asked`: what its threads ask for, caches included.
- `GFLOP`: two operations for each product of the tensor cores as issued, ragged tiles included. `direct`: the share of what the plain
  convolution would take in that direction. Of launches of more than 64 blocks both, and bytes, are those of a sample of the blocks:
  exact where all do the same, within some percent where those at the image's border do more (data gradients).
- `floor`: the larger of MB over the bandwidth and GFLOP over what mma.sync reaches. `spread`: the same with the operations on the
  multiprocessors that have a block alone: what the busiest of them gets, ceil(blocks / 132) of the blocks.
- `an SM`: blocks on one multiprocessor at a time, by registers, shared memory, threads and blocks. `waves`: blocks over those that all
  132 hold at a time. A star stands where that is less than one, two where there are fewer blocks than multiprocessors: what other fits
  of a cohort would fill.

The ceilings are assumptions: 4.8 TB/s and 989 (bf16) or 494 (tf32) TFLOP/s are NVIDIA's figures for dense products by wgmma, of which
mma.sync is taken to reach 62 % on Hopper. Needs nvcc, g++, cmake and the tests' environment.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from cuda_compiler import compile_kernels, run  # noqa: E402
from cuda_launches import BFLOAT16, FLOAT32, Launch, SampledDevice, iteration  # noqa: E402
from emulated import build  # noqa: E402

from dipengine.bench.operations import Layer, layers_of  # noqa: E402
from dipengine.generators.architecture import Hourglass  # noqa: E402

OPERATIONS = {BFLOAT16: 2 * 16 * 8 * 16, FLOAT32: 2 * 16 * 8 * 8}  # of a product
PEAKS = {"bf16": 989, "float32": 494}  # TFLOP/s of dense products, float32 as tf32


@dataclass(frozen=True)
class Machine:
    """An H200; a multiprocessor's limits are those of compute capability 9.0 (CUDA C++ Programming Guide, "Technical Specifications")."""

    bandwidth: float  # bytes/s
    flops: float  # that mma.sync reaches
    multiprocessors: int = 132
    registers: int = 65536
    warp_registers: int = 256  # that a warp's are a multiple of
    threads: int = 2048
    blocks: int = 32
    shared: int = 228 * 1024
    block_shared: int = 227 * 1024
    reserved: int = 1024  # bytes of shared memory that each block takes beside its own

    def occupancy(self, registers: int, shared: int, threads: int) -> int:
        """Blocks that a multiprocessor holds at a time."""
        warps = threads // 32
        warp = ceil(registers * 32 / self.warp_registers) * self.warp_registers
        by_registers = self.registers // warp // 4 * 4 // warps  # each of four schedulers has a quarter of the registers
        by_shared = self.shared // (ceil((shared + self.reserved) / 128) * 128)
        return min(by_registers, by_shared, self.threads // threads, self.blocks)


def row(launch: Launch, usage: dict[str, int], machine: Machine, dtype: int, layers: dict[str, Layer]) -> dict:
    occupancy = machine.occupancy(usage["registers"], launch.shared + usage["shared"], launch.threads)
    operations, moved = launch.products * OPERATIONS[dtype], launch.arrays + launch.written
    memory, compute = moved / machine.bandwidth, operations / machine.flops
    busiest = ceil(launch.blocks / machine.multiprocessors) * machine.multiprocessors / launch.blocks
    direct = None
    if operations:
        forward, backward = layers[launch.layer].operations(reduced=False)
        whole = {"forward": forward, "weights": forward, "data": backward - forward, "both": backward}[launch.step]
        direct = operations / whole
    return asdict(launch) | {
        "registers": usage["registers"], "static_shared": usage["shared"], "blocks": launch.blocks, "blocks_an_sm": occupancy,
        "waves": launch.blocks / (occupancy * machine.multiprocessors), "bytes": moved, "operations": operations, "share_of_direct": direct,
        "floor_us": 1e6 * max(memory, compute), "spread_us": 1e6 * max(memory, compute * busiest),
        "bound": ("compute" if compute > memory else "memory"),
    }


def mark(found: dict, machine: Machine) -> str:
    return "**" if found["blocks"] < machine.multiprocessors else "*" if found["waves"] < 1 else ""


def table(rows: list[dict], machine: Machine) -> str:
    head = ("layer", "step", "kernel", "blocks", "threads", "registers", "shared KB", "an SM", "waves", "", "MB", "asked MB", "GFLOP", "direct",
            "floor us", "spread us", "bound")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        share = "" if r["share_of_direct"] is None else f"{r['share_of_direct']:.2f}"
        cells = (r["layer"], r["step"], r["kernel"].replace("_kernel", ""), "x".join(map(str, r["grid"])), r["threads"], r["registers"],
                 f"{(r['shared'] + r['static_shared']) / 1024:.1f}", r["blocks_an_sm"], f"{r['waves']:.2f}", mark(r, machine).replace("*", "\\*"),
                 f"{r['bytes'] / 1e6:.2f}", f"{r['asked'] / 1e6:.1f}", f"{r['operations'] / 1e9:.3f}" if r["operations"] else "", share,
                 f"{r['floor_us']:.2f}", f"{r['spread_us']:.2f}", r["bound"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def summary(name: str, rows: list[dict], machine: Machine) -> str:
    products = [r for r in rows if r["operations"]]
    below = [r for r in products if r["waves"] < 1]
    layers = sorted({r["layer"] for r in below}, key=[r["layer"] for r in rows].index)
    return (f"{name}: {len(rows)} launches, {sum(r['operations'] for r in rows) / 1e9:.1f} GFLOP of products, "
            f"{sum(r['bytes'] for r in rows) / 1e6:.0f} MB; floors add up to {sum(r['floor_us'] for r in rows):.0f} us, "
            f"{sum(r['spread_us'] for r in rows):.0f} us with the operations on the multiprocessors that have a block. "
            f"{len(below)} of {len(products)} launches with products are below one wave, in {', '.join(layers) or 'no layer'}.")


def compact(rows: list[dict]) -> dict[str, list]:
    """The same with each name once."""
    columns = list(rows[0])
    values = ([round(value, 4) if isinstance(value, float) else value for value in row.values()] for row in rows)
    return {"columns": columns, "rows": list(values)}


@dataclass(frozen=True)
class Case:
    """A network, and what it is assumed to run on."""

    upsample: str
    dtype: str
    machine: Machine
    peak: float

    @property
    def architecture(self) -> Hourglass:
        return Hourglass(upsample=(self.upsample,) * 5)

    def rows(self, device: SampledDevice, usage: dict[str, dict[str, int]], size: int) -> list[dict]:
        dtype = BFLOAT16 if self.dtype == "bf16" else FLOAT32
        layers = {layer.name: layer for layer in layers_of(self.architecture, size, size)}
        launches = iteration(device, self.architecture, size, size, dtype)
        return [row(launch, usage[launch.kernel], self.machine, dtype, layers) for launch in launches]

    def assumed(self, share: float) -> str:
        return (f"Computed, not measured: {self.upsample} upsampling, {self.dtype}; assumed {self.machine.bandwidth / 1e12:g} TB/s and "
                f"{self.peak:g} TFLOP/s, of which mma.sync {share:.0%}; {self.machine.multiprocessors} multiprocessors.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--upsample", choices=("nearest", "bilinear"), nargs="+", default=["nearest", "bilinear"])
    parser.add_argument("--dtype", choices=tuple(PEAKS), nargs="+", default=list(PEAKS))
    parser.add_argument("--bandwidth", type=float, default=4.8, help="TB/s")
    parser.add_argument("--mma-share", type=float, default=0.62, help="of the peak that mma.sync reaches")
    parser.add_argument("--build", type=Path, help="folder to build the emulated device in; a temporary one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    cases = [Case(upsample, dtype, Machine(options.bandwidth * 1e12, PEAKS[dtype] * 1e12 * options.mma_share), PEAKS[dtype])
             for dtype in options.dtype for upsample in options.upsample]
    summaries, tables, found = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        usage = {name: use for (name, _), use in compile_kernels(Path(folder), (90,)).items()}
        memory = max(max(options.sizes) ** 2 * 128 * 4, 1 << 26)
        device = SampledDevice(build(options.build or Path(folder) / "emulator"), cases[0].machine.block_shared, memory)
        for case in cases:
            launches = {}
            for size in options.sizes:
                name = f"{size}x{size}, {case.upsample}, {case.dtype}"
                rows = case.rows(device, usage, size)
                summaries.append("- " + summary(name, rows, case.machine))
                tables += [f"## {name}", case.assumed(options.mma_share), table(rows, case.machine)]
                launches[str(size)] = compact(rows)
            found.append({"upsample": case.upsample, "dtype": case.dtype, "peak_tflops": case.peak, "assumed": asdict(case.machine),
                          "launches": launches})
    print("\n".join(summaries), "\n\n".join(tables), sep="\n\n")
    if options.markdown:
        title = "# Roofline of the CUDA kernels\n\nComputed, nothing measured. What the columns are: `bench/roofline_cuda.py`."
        options.markdown.write_text("\n\n".join([title, "\n".join(summaries), *tables]) + "\n")
    if options.json:
        report = {"measured": False, "mma_share": options.mma_share, "compiler": run("nvcc", "--version").splitlines()[3], "networks": found}
        options.json.write_text(json.dumps(report, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
