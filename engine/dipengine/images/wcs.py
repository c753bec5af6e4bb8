"""Scale the world coordinates in a FITS header with the image, so that every pixel keeps its place in the sky.

With pixel centres at whole numbers (FITS standard 4.0, section 8.1) the first pixel reaches from 0.5 to 1.5, so a
position p becomes (p - 0.5) * scale + 0.5 and a step of one pixel becomes 1 / scale of what it was.
"""

import re
from collections.abc import MutableMapping

_WCS_KEY = re.compile(r"^(?:CTYPE|CRVAL|CRPIX|CDELT|CUNIT)[12]([A-Z]?)$|^(?:CD|PC)[12]_[12]([A-Z]?)$")
_MATRIX_KEY = re.compile(r"^(CD|PC)(\d)_(\d)([A-Z]?)$")
_SIP_KEY = re.compile(r"^(?:A|B|AP|BP)_(\d)_(\d)$")
_SIP_LIMIT_KEYS = ("A_DMAX", "B_DMAX")


def scale_wcs(header: MutableMapping, scale: float) -> None:
    """Change `header` in place for an image whose two pixel axes have `scale` times as many pixels.

    Covers CRPIX, CDELT with PC or CROTA, CD, every alternative description (suffix A to Z), SIP polynomials
    (Shupe et al. 2005) and the LTM/LTV keywords of IRAF. Axis 3 and beyond keep their coordinates. TPV and other
    PV terms need no change: they act after the linear part. Distortion tables are not covered.
    """
    keys = list(dict.fromkeys(header))
    descriptions = {match.group(1) or match.group(2) or "" for match in map(_WCS_KEY.match, keys) if match}
    for suffix in sorted(descriptions):
        _scale_linear_part(header, keys, suffix, scale)
    for match in filter(None, map(_SIP_KEY.match, keys)):
        # f(u, v) is in pixels of u and v: f' = scale * f(u'/scale, v'/scale).
        header[match.group(0)] *= scale ** (1 - int(match.group(1)) - int(match.group(2)))
    for key in _SIP_LIMIT_KEYS:
        if key in header:
            header[key] *= scale
    _scale_iraf_keys(header, keys, scale)


def _scale_linear_part(header: MutableMapping, keys: list[str], suffix: str, scale: float) -> None:
    matrices = [m for m in map(_MATRIX_KEY.match, keys) if m and m.group(4) == suffix]
    has_cd = any(match.group(1) == "CD" for match in matrices)
    for axis in (1, 2):
        header[f"CRPIX{axis}{suffix}"] = (float(header.get(f"CRPIX{axis}{suffix}", 0.0)) - 0.5) * scale + 0.5
        key = f"CDELT{axis}{suffix}"
        if key in header or not has_cd:
            header[key] = float(header.get(key, 1.0)) / scale
    for match in matrices:
        kind, world, pixel = match.group(1), int(match.group(2)), int(match.group(3))
        if kind == "CD":
            header[match.group(0)] /= scale if pixel <= 2 else 1.0
        elif (pixel <= 2) != (world <= 2):
            # CDELT above has scaled world axes 1 and 2: terms that mix them with other axes are put right here.
            header[match.group(0)] *= 1.0 / scale if pixel <= 2 else scale


def _scale_iraf_keys(header: MutableMapping, keys: list[str], scale: float) -> None:
    """LTM and LTV map a parent's pixels to this image's: logical = LTM * parent + LTV."""
    for axis in (1, 2):
        if not any(key == f"LTV{axis}" or key.startswith(f"LTM{axis}_") for key in keys):
            continue
        header[f"LTV{axis}"] = (float(header.get(f"LTV{axis}", 0.0)) - 0.5) * scale + 0.5
        header.setdefault(f"LTM{axis}_{axis}", 1.0)
        for other in (1, 2):
            key = f"LTM{axis}_{other}"
            if key in header:
                header[key] *= scale
