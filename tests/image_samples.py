"""Sample images for the tests of dipengine.images, and a small PNG codec that shares nothing with libvips."""

import struct
import zlib
from pathlib import Path

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPE = {1: 0, 3: 2, 2: 4, 4: 6}


def noise(dtype: str, channels: int = 3, size: tuple[int, int] = (23, 37), seed: int = 0) -> np.ndarray:
    """H x W x C random values over the dtype's whole range (floats: normal, mean 5, deviation 100)."""
    rng = np.random.default_rng(seed)
    shape = size + (channels,)
    if np.dtype(dtype).kind == "f":
        return rng.normal(5, 100, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def smooth(size: tuple[int, int] = (48, 64), channels: int = 3) -> np.ndarray:
    """H x W x C uint8 waves, which JPEG keeps to within a few levels."""
    y, x = np.mgrid[: size[0], : size[1]]
    planes = [127 + 100 * np.sin(x / (9 + c) + c) * np.cos(y / (11 - c)) for c in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk: length, kind, data, checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, bits: int, channels: int) -> bytes:
    """Signature and IHDR."""
    fields = struct.pack(">IIBBBBB", width, height, bits, _COLOUR_TYPE[channels], 0, 0, 0)
    return _SIGNATURE + png_chunk(b"IHDR", fields)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write H x W x C uint8 or uint16, unfiltered."""
    height, width, channels = pixels.shape
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = png_header(width, height, 8 * pixels.dtype.itemsize, channels)
    path.write_bytes(head + png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b""))


def read_png(path: Path) -> np.ndarray:
    """H x W x C uint8 or uint16 of a PNG that is not interlaced and has no palette."""
    blob, position, data = path.read_bytes(), 8, b""
    while position < len(blob):
        length, kind = struct.unpack(">I4s", blob[position : position + 8])
        body = blob[position + 8 : position + 8 + length]
        position += length + 12
        if kind == b"IHDR":
            width, height, bits, colour, _, _, interlace = struct.unpack(">IIBBBBB", body)
        elif kind == b"IDAT":
            data += body
    assert interlace == 0 and bits in (8, 16)
    channels = {value: key for key, value in _COLOUR_TYPE.items()}[colour]
    step = channels * bits // 8
    raw = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * step)
    above = np.zeros(width * step, np.uint8)
    rows = []
    for line in raw:
        above = _unfilter(int(line[0]), line[1:], above, step)
        rows.append(above)
    pixels = np.stack(rows).reshape(height, width, channels, bits // 8)
    return pixels.view(">u2")[..., 0].astype(np.uint16) if bits == 16 else pixels[..., 0].copy()


def _unfilter(kind: int, line: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    out = [0] * step + line.tolist()
    up = [0] * step + above.tolist()
    for i in range(step, len(out)):
        a, b, c = out[i - step], up[i], up[i - step]
        nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
        out[i] = (out[i] + (0, a, b, (a + b) // 2, nearest)[kind]) & 255
    return np.array(out[step:], np.uint8)
