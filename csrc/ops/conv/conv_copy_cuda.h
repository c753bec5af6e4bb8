// Pixels that are brought into shared memory as they are, past registers.
#pragma once

#include "ops/conv/conv_cuda_plan.h"
#include "platform/cuda/copy.h"

namespace dipengine {

// A rectangle of places for pixels, which `lanes` threads share, of which this is number `lane`: each goes down a column.
struct CopyShape {
  int lane, lanes, rows, columns;
};

// 16 bytes of every place's pixel, zeros where it has none, to rows of shared memory that begin row_bytes apart. row_of(row) and
// column_of(column, &place) are the pixel's, -1: none; place: bytes from the row's begin. image: at the thread's channels; NULL: zeros.
template <typename Stored, typename Row, typename Column>
DIPENGINE_DEVICE void copy_pixels(const Stored* image, int64_t row_stride, int64_t pixel_stride, const CopyShape& shape, int row_bytes,
                                  unsigned char* to, const Row& row_of, const Column& column_of) {
  const int at_once = shape.lanes / shape.columns;  // rows; 0: not even one
  const int first = at_once > 0 ? shape.lane / shape.columns : 0, step = at_once > 0 ? at_once : 1;
  if (at_once > 0 && first >= at_once) return;
  // Strides of 31 bits (in_sixteens), so that a row is one multiplication away.
  const uint32_t row_step = static_cast<uint32_t>(row_stride) * static_cast<uint32_t>(sizeof(Stored));
  for (int column = shape.lane - first * shape.columns; column < shape.columns; column += shape.lanes) {
    int place;
    const int x = column_of(column, &place);
    const bool some = image != nullptr && x >= 0;
    const auto* const from = reinterpret_cast<const unsigned char*>(some ? image + pixel_at(0, 0, x, pixel_stride) : nullptr);
    unsigned char* own = to + place + first * row_bytes;
    for (int row = first; row < shape.rows; row += step, own += step * row_bytes) {
      const int y = row_of(row);
      cuda::copy_async16(own, from + static_cast<uint64_t>(static_cast<uint32_t>(y)) * row_step, some && y >= 0);
    }
  }
}

// For all that the thread has begun to copy.
DIPENGINE_DEVICE void wait_for_copies() {
  cuda::copy_commit();
  cuda::copy_wait<0>();
}

}  // namespace dipengine
