"""`dipengine bench render`: painting an exported generator beside a plain export and PyTorch, in turns in one run, as a report.

The report is one JSON-able object that holds everything that `table` prints, the raw samples and the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Protocol

import numpy as np

from dipengine.bench import machine
from dipengine.bench.iteration import peer_threads
from dipengine.bench.setting import Setting
from dipengine.bench.turns import disturbed_rounds, ratios, spread_of, take_turns
from dipengine.errors import InputError
from dipengine.export.consolidate import Consolidated, consolidate
from dipengine.export.exporter import require_onnx, verified
from dipengine.export.generator_file import FittedGenerator
from dipengine.fitting import metrics
from dipengine.generators.code import Code
from dipengine.generators.initial import initial_parameters
from dipengine.images import ValueMap
from dipengine.rendering.renderer import Renderer

FORMAT = 1
OURS = "ours, fp32"
PRECISIONS = ("fp32", "fp16", "int8")
SAME = 60.0  # dB between two float32 paintings of one network: below, they are not of one network


class Painting(Protocol):
    """One way to paint the generator."""

    def paint(self) -> np.ndarray:
        """The image, float32 [1, C, H, W], on the canvas or its window."""


class _Turn:
    def __init__(self, painting: Painting) -> None:
        self._painting = painting

    def run(self, n: int) -> None:
        for _ in range(n):
            self._painting.paint()


class _Ours:
    def __init__(self, data: bytes, threads: int) -> None:
        self._renderer = Renderer(data, provider="cpu", threads=threads)

    def paint(self) -> np.ndarray:
        return self._renderer.render().transpose(2, 0, 1)[None]


def random_generator(setting: Setting) -> FittedGenerator:
    """A generator of initial weights: times are those of any."""
    a = setting.architecture
    shape = (setting.height, setting.width)
    return FittedGenerator("bench", a, initial_parameters(a, 0), Code(depth=a.input_depth), shape, shape, ValueMap(0.0, 1.0), "float32",
                           setting.target(), None, 0, 0)


def measure(
    generator: FittedGenerator, *, threads: int, rounds: int = 5, peers: bool = True, say: Callable[[str], None] = lambda text: None,
    arguments: list[str] | None = None,
) -> dict[str, Any]:
    """Measure and report.

    generator: is painted as it is, without consolidation. peers: measure a plain export and PyTorch too, where PyTorch is installed.
    say: told what is being done. arguments: the command line, for the report. Raises InputError for no rounds or threads,
    DependencyError without onnx or onnxruntime.
    """
    if rounds < 1:
        raise InputError(f"rounds is {rounds}; ask for at least 1.")
    if not 1 <= threads <= 1024:
        raise InputError(f"threads is {threads}; ask for 1 to 1024.")
    require_onnx()
    import onnxruntime

    notes, skipped = [], []
    if peers and not machine.torch_installed():
        peers = False
        notes.append('PyTorch is not installed: nothing is compared (pip install "dipengine[cpu]").')
    say("freezing")
    frozen = consolidate(generator, enough=0, threads=threads)
    paintings: dict[str, Painting] = {}
    sizes: dict[str, int] = {}
    for precision in PRECISIONS:
        say(f"building: ours, {precision}")
        data, _ = verified(generator, frozen, precision, "seed" if generator.code.kind == "noise" else "stored", threads)
        paintings[f"ours, {precision}"], sizes[f"ours, {precision}"] = _Ours(data, threads), len(data)
    before = machine.ceiling("fp32", threads)
    with peer_threads(threads, peers):
        if peers:
            others, skipped = _others(generator, frozen, threads, say)
            paintings |= others
        images = {name: painting.paint() for name, painting in paintings.items()}
        samples = take_turns({name: _Turn(painting) for name, painting in paintings.items()}, rounds, say)
    after = machine.ceiling("fp32", threads)
    window = generator.origin + generator.crop
    rows = [_row(name, images, samples, window, sizes.get(name) or getattr(painting, "bytes", None))
            for name, painting in paintings.items()]
    notes += [f"{row['name']} paints another picture ({row['psnr']:.1f} dB): its time says nothing." for row in rows
              if row["psnr"] is not None and row["psnr"] < SAME and not any(word in row["name"] for word in ("fp16", "int8", "bf16"))]
    disturbed = disturbed_rounds(samples)
    return {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command_line": ["dipengine", *(sys.argv[1:] if arguments is None else arguments)],
        **machine.facts(),
        "onnxruntime": onnxruntime.__version__,
        "architecture": generator.architecture.to_dict(),
        "parameters": generator.architecture.parameter_count,
        "height": generator.crop[0],
        "width": generator.crop[1],
        "threads": threads,
        "rounds": rounds,
        "ceilings": {"fp32": {"before": before, "after": after}},
        "idle": not disturbed and machine.idle(before, after),
        "disturbed_rounds": disturbed,
        "sides": rows,
        "skipped": skipped,
        "notes": notes,
    }


def _others(
    generator: FittedGenerator, frozen: Consolidated, threads: int, say: Callable[[str], None]
) -> tuple[dict[str, Painting], list[dict[str, str]]]:
    """The peers that run here, and those that do not with the reason."""
    from dipengine.bench.rendering_peers import EXPORT, WAYS, EagerPainting, ExportedPainting, plain_network

    try:
        network = plain_network(generator, frozen)
    except InputError as error:
        return {}, [{"name": "PyTorch", "reason": str(error)}]
    z = np.ascontiguousarray(generator.code.make(generator.canvas).transpose(2, 0, 1)[None])
    found: dict[str, Painting] = {}
    skipped = []
    for name, batch in ((EXPORT, False), (f"{EXPORT}, batch statistics", True)):
        say(f"building: {name}")
        try:
            found[name] = ExportedPainting(network, z, threads, batch_statistics=batch)
        except Exception as error:  # whatever the exporter, or its absence, raises: the others are measured all the same
            skipped.append({"name": name, "reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"})
    for name, way in WAYS.items():
        found[name] = EagerPainting(network, z, way)
    return found, skipped


def _row(
    name: str, images: dict[str, np.ndarray], samples: dict[str, list[float]], window: tuple[int, int, int, int], size: int | None
) -> dict[str, Any]:
    top, left, height, width = window
    image, ours = images[name], images[OURS]
    if image.shape != ours.shape:
        image = image[:, :, top : top + height, left : left + width]
    return {
        "name": name,
        "seconds": spread_of(samples[name]),
        "ratio": None if name == OURS else spread_of(ratios(samples[name], samples[OURS])),
        "psnr": None if name == OURS or np.array_equal(image, ours) else metrics.psnr(image, ours, 1.0),
        "file_bytes": size,
    }


def _between(spread: dict[str, Any], digits: int) -> str:
    return f"{spread['lower_quartile']:.{digits}f}-{spread['upper_quartile']:.{digits}f}"


def table(report: dict[str, Any]) -> str:
    """Everything that was measured, as lines of at most 130 characters."""
    ceiling = report["ceilings"]["fp32"]
    giga = ", ".join("-" if ceiling[when] is None else f"{ceiling[when] / 1e9:.0f} {when}" for when in ("before", "after"))
    lines = [
        f"{report['height']}x{report['width']}, {report['parameters']:,} parameters, {report['threads']} threads, "
        f"{report['rounds']} rounds",
        f"{report['cpu']}, ONNX Runtime {report['onnxruntime']}" + (f", PyTorch {report['torch']}" if report["torch"] else ""),
        f"float32 matrix product, GFLOP/s: {giga}",
    ]
    if not report["idle"]:
        lines.append("The machine was not idle; measure again.")
    lines += ["", f"{'':<42}{'ms':>9}{'quartiles':>17}{'x ours':>8}{'quartiles':>13}{'dB to ours':>12}{'MB':>7}"]
    for row in report["sides"]:
        seconds, ratio = row["seconds"], row["ratio"]
        text = f"{row['name']:<42}{1e3 * seconds['median']:>9.1f}"
        text += f"{_between({key: 1e3 * seconds[key] for key in ('lower_quartile', 'upper_quartile')}, 1):>17}"
        text += f"{ratio['median']:>8.2f}{_between(ratio, 2):>13}" if ratio else " " * 21
        text += f"{row['psnr']:>12.1f}" if row["psnr"] is not None else " " * 12
        text += f"{row['file_bytes'] / 1e6:>7.2f}" if row["file_bytes"] else ""
        lines.append(text.rstrip())
    lines += [f"{entry['name']}: left out ({entry['reason'][:160]})" for entry in report["skipped"]]
    return "\n".join(lines + report["notes"])
