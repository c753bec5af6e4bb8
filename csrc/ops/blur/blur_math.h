// Blur and its transpose as one correlation of a padded image, and how that is laid out.
//
//   result[y, x] = sum_{a, b} weights[a, b] * padded[y + a, x + b]
//
// Blur: padded is the image, the weights are the kernel turned by 180 degrees. Transpose: padded is the gradient with
// kh - 1 and kw - 1 zeros on all sides, the weights are the kernel.
#pragma once

#include "math/host_device.h"

namespace dipengine {

constexpr int64_t kBlurRows = 4;     // of the result, in a register tile
constexpr int64_t kBlurSlack = 128;  // elements that a register tile may read past a row
constexpr int64_t kBlurRun = 32;     // taps in a run, about
constexpr int64_t kBlurRuns = 32;    // runs before their sum is put away

struct BlurLayout {
  int64_t height, width;        // of the result, pixels
  int64_t first_row, last_row;  // of the padded image: rows that hold data; the others are zero and not stored
  int64_t left;                 // zero pixels in front of a row's data
  int64_t data_width;           // pixels of data in a row
  int64_t pitch;                // elements of a padded row
};

DIPENGINE_HD BlurLayout blur_layout(int64_t height, int64_t width, int64_t channels, int64_t kernel_height,
                                    int64_t kernel_width, bool backward) {
  const int64_t up = kernel_height - 1, side = kernel_width - 1;
  BlurLayout l;
  l.height = backward ? height + up : height;
  l.width = backward ? width + side : width;
  l.first_row = backward ? up : 0;
  l.last_row = height + up;
  l.left = backward ? side : 0;
  l.data_width = backward ? width : width + side;
  l.pitch = ((l.width + side) * channels + kBlurSlack + 15) / 16 * 16;
  return l;
}

}  // namespace dipengine
