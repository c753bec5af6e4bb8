"""Images with their metadata, read and written by well-kept libraries: libvips for pictures, astropy for FITS."""

from dipengine.images.arrays import from_array
from dipengine.images.atomic import atomic_path, check_target, write_json
from dipengine.images.blur_kernels import checked_kernel, read_kernel
from dipengine.images.image import Image, Metadata
from dipengine.images.large import LargeImage, decode, read_header
from dipengine.images.limits import MAX_PIXELS
from dipengine.images.masks import read_large_mask, read_mask
from dipengine.images.raw import RawPixels
from dipengine.images.reading import read_image
from dipengine.images.values import ValueMap
from dipengine.images.writing import check_writable, write_image, write_image_from

__all__ = [
    "MAX_PIXELS",
    "Image",
    "LargeImage",
    "Metadata",
    "RawPixels",
    "ValueMap",
    "atomic_path",
    "check_target",
    "check_writable",
    "checked_kernel",
    "decode",
    "from_array",
    "read_header",
    "read_image",
    "read_kernel",
    "read_large_mask",
    "read_mask",
    "write_image",
    "write_image_from",
    "write_json",
]
