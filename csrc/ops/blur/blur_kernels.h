// The CPU kernels of blur, one table per instruction set.
#pragma once

#include "ops/blur/blur.h"
#include "ops/blur/blur_math.h"

namespace dipengine {

struct BlurKernels {
  struct Set {
    // One row of data into the padded image, zeros around it.
    void (*pad)(const BlurLayout& layout, int64_t channels, const dipengine_pixels& from, int64_t row, void* padded);
    // kBlurRows rows of the result, or those that are left, from first on.
    void (*correlate)(const BlurLayout& layout, int64_t channels, int64_t kernel_height, int64_t kernel_width,
                      const void* padded, const void* weights, int64_t first, const dipengine_pixels& to);
  };
  Set float32;
  Set float64;  // only in the portable table
};

}  // namespace dipengine
