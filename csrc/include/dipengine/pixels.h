/* An image as ops see it. C-compatible. */
#ifndef DIPENGINE_PIXELS_H_
#define DIPENGINE_PIXELS_H_

#include <stdint.h>

/* [height, width, channels], channels contiguous; strides in elements. Absent where data is NULL. */
typedef struct dipengine_pixels {
  void* data;
  int64_t row_stride, pixel_stride;
} dipengine_pixels;

#endif
