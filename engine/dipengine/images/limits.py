"""How large an image may be, and that it is one, decided from the header before anything is decoded."""

from dipengine.errors import ImageError

MAX_PIXELS = 200_000_000
_CHANNELS_PER_PIXEL = 4


def check_size(source: str, height: int, width: int, channels: int, max_pixels: int) -> None:
    """Refuse an image of no pixels, and one of more than `max_pixels`.

    More than four channels count as more pixels (H * W * C / 4), so that a file that claims thousands of
    channels is no way around the limit. Raises ImageError.
    """
    if height < 1 or width < 1 or channels < 1:
        raise ImageError(f"{source} holds no pixels ({width} x {height}); give an image of at least 1 x 1.")
    pixels = height * width * max(channels, _CHANNELS_PER_PIXEL) // _CHANNELS_PER_PIXEL
    if pixels > max_pixels:
        raise ImageError(
            f"{source} claims {width} x {height} pixels of {channels} channel{'s' * (channels != 1)}, more than the "
            f"limit of {max_pixels:,}; raise --max-pixels (max_pixels) if you trust the file."
        )
