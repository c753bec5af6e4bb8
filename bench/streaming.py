"""Memory and disk that a large image takes beside its fits: decoded, cut into tiles, blended and written, with the input itself
standing in for what the fits deliver.

    python bench/streaming.py [--side 10000] [--formats tif,png,fits] [--folder FOLDER] [--json FILE]

Each format in a fresh process; its peak resident memory is that above what it held after its imports. FOLDER (a temporary one by
default) holds the picture: 8-bit colour, in FITS float32 grey.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"


def make(path: Path, side: int) -> None:
    """Waves and noise; libvips and the FITS writer make them piece by piece."""
    if path.suffix == ".fits":
        from astropy.io import fits

        cards = [("SIMPLE", True), ("BITPIX", -32), ("NAXIS", 2), ("NAXIS1", side), ("NAXIS2", side)]
        stream = fits.StreamingHDU(str(path), fits.Header(cards))
        rng = np.random.default_rng(0)
        for first in range(0, side, 500):
            stream.write(rng.normal(1000, 50, (min(500, side - first), side)).astype(np.float32))
        stream.close()
        return
    import pyvips

    noise, waves = pyvips.Image.gaussnoise(side, side, sigma=12, mean=120), pyvips.Image.sines(side, side, hfreq=3, vfreq=2) * 60
    planes = [(noise + waves).cast("uchar"), (noise * 0.8 + waves).cast("uchar"), (noise + 20 - waves).cast("uchar")]
    planes[0].bandjoin(planes[1:]).copy(interpretation="srgb").write_to_file(str(path))


def peak() -> int:
    """Most resident memory of this process so far, bytes; pages of mapped files count. Linux alone: getrusage would tell the
    parent's, where that was higher."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def measure(source: Path) -> dict:
    """In this process: from file to file."""
    from dipengine.fitting.settings import Settings
    from dipengine.images.vips import load_pyvips
    from dipengine.tiling import TileRequest, plan_tiles, remove

    load_pyvips()
    before, seconds, begin = peak(), {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal begin
        seconds[name], begin = round(time.perf_counter() - begin, 1), time.perf_counter()

    folder = source.parent / f"{source.name}.tiles"
    tiled = plan_tiles(source, "denoise", {}, Settings(), folder=folder, tile=TileRequest.parse("512"))
    lap("plan")
    for tile in tiled.pending:
        image, _, _ = tiled.tile_image(tile.index)
        tiled.add(tile.index, tiled.values.to_unit(image.pixels), {})
    lap("tiles")
    result = tiled.assemble()
    lap("blend")
    output = source.with_stem("out")
    tiled.write(output, result)
    lap("write")
    held = peak() - before
    same = all(np.allclose(result.read(rows), band.pixels, rtol=1e-5) for rows, band in tiled.image.bands())
    disk = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    remove(folder)
    output.unlink()
    return {"peak_bytes": held, "disk_bytes": disk, "tiles": len(tiled.grid), "seconds": seconds, "same_pixels": same}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=10000)
    parser.add_argument("--formats", default="tif,png,fits")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path, default=RESULTS / "streaming.json")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.one is not None:
        print(json.dumps(measure(parsed.one)))
        return 0
    record = {"side": parsed.side, "date": date.today().isoformat(), "formats": {}}
    with tempfile.TemporaryDirectory(dir=parsed.folder) as folder:
        for ending in parsed.formats.split(","):
            source = Path(folder) / f"in.{ending}"
            make(source, parsed.side)
            said = subprocess.run([sys.executable, __file__, "--one", str(source)], check=True, stdout=subprocess.PIPE, text=True)
            got = record["formats"][ending] = json.loads(said.stdout)
            source.unlink()
            print(f"{ending}: {got['peak_bytes'] / 1e6:.0f} MB above the imports, {got['disk_bytes'] / 1e9:.2f} GB on the disk, "
                  f"{got['tiles']} tiles, seconds {got['seconds']}, same pixels: {got['same_pixels']}")
    parsed.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
