"""Images with their metadata, read and written by well-kept libraries: libvips for pictures, astropy for FITS."""

from dipengine.images.arrays import from_array
from dipengine.images.atomic import atomic_path, check_target
from dipengine.images.blur_kernels import checked_kernel, read_kernel
from dipengine.images.image import Image, Metadata
from dipengine.images.limits import MAX_PIXELS
from dipengine.images.masks import read_mask
from dipengine.images.reading import read_image
from dipengine.images.values import ValueMap
from dipengine.images.writing import check_writable, write_image

__all__ = [
    "MAX_PIXELS",
    "Image",
    "Metadata",
    "ValueMap",
    "atomic_path",
    "check_target",
    "check_writable",
    "checked_kernel",
    "from_array",
    "read_image",
    "read_kernel",
    "read_mask",
    "write_image",
]
