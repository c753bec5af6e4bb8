// Blur and its transpose on a CUDA device, as the one correlation of a padded image that blur_math.h lays out.
//
// A block makes 32 rows of 64 elements (channels interleaved: a neighbouring tap is `channels` elements away), a thread 8 rows
// of one element. A patch of the padded image for 8 rows and some columns of the kernel lies in shared memory with their
// weights; for each column a thread reads 15 elements and 8 weights for 64 multiply-adds. Zeros around the image are made
// while loading. Sums of 32 taps are added up with their rounding errors kept (W. Kahan, "Further remarks on reducing
// truncation errors", 1965). kernel_height * kernel_width multiply-adds an element: bound by arithmetic from about 5 x 5 on.
#include "ops/blur/blur_cuda.h"

#include "ops/blur/blur_math.h"
#include "platform/cuda/copy.h"
#include "platform/cuda/launch.h"
#include "platform/pixels.h"

namespace dipengine {
namespace {

using Params = dipengine_blur_cuda_params;

constexpr int kThreads = 256;
constexpr int kColumns = 64;                          // elements of a row that a block makes
constexpr int kGroups = kThreads / kColumns;          // threads down a column
constexpr int kRows = 8;                              // of a thread
constexpr int kTileRows = kGroups * kRows;            // of a block
constexpr int kTaps = 8;                              // kernel rows of a patch
constexpr int kRun = 4;                               // kernel columns of a run
constexpr int kHalo = 96;                             // elements by which a patch is wider than a tile, at most
constexpr int kPitch = kColumns + kHalo;              // of a patch
constexpr int kPatchRows = kTileRows + kTaps - 1;
constexpr int kWeights = kTaps * (kHalo + 1);
constexpr int64_t kMost = int64_t{1} << 30;

struct Launch {
  BlurLayout layout;
  dipengine_pixels from, to;
  int64_t from_fit_stride, to_fit_stride, kernel_fit_stride;
  const float* kernel;
  const uint8_t* active;
  const int64_t* sizes;
  int32_t channels, kernel_height, kernel_width, tiles;  // tiles: along a row
  int32_t turned;                                        // the weights are the kernel turned by 180 degrees
};

// Kernel rows [row, row + kTaps) and columns [column, column + columns).
struct Patch {
  int row, column, columns;
};

// weights[column][row], those past the kernel 0.
DIPENGINE_DEVICE void load_weights(const Launch& l, const float* kernel, const Patch& patch, float* weights) {
  const int taps = l.kernel_height * l.kernel_width;
  for (int i = cuda::thread_index(); i < patch.columns * kTaps; i += kThreads) {
    const int row = patch.row + i % kTaps, at = row * l.kernel_width + patch.column + i / kTaps;
    weights[i] = row < l.kernel_height ? kernel[l.turned != 0 ? taps - 1 - at : at] : 0.0f;
  }
}

// The padded image from row `row` and element `element` on.
DIPENGINE_DEVICE void load_patch(const Launch& l, const BlurLayout& layout, const float* from, int64_t row, int64_t element,
                                 int width, float* patch) {
  for (int j = cuda::thread_index() % kColumns; j < width; j += kColumns) {
    const int32_t all = static_cast<int32_t>(element) + j, pixel = all / l.channels - static_cast<int32_t>(layout.left);
    const bool inside = pixel >= 0 && pixel < layout.data_width;
    const float* column = from + pixel * l.from.pixel_stride + all % l.channels;
    for (int r = cuda::thread_index() / kColumns; r < kPatchRows; r += kGroups) {
      const int64_t y = row + r;
      const bool there = inside && y >= layout.first_row && y < layout.last_row;
      patch[r * kPitch + j] = there ? column[(y - layout.first_row) * l.from.row_stride] : 0.0f;
    }
  }
}

struct Sums {
  float sum[kRows], lost[kRows];
};

// One kernel column: run[k] += sum over a of weights[a] * input[k + a], a < taps.
DIPENGINE_DEVICE void add_column(const float* input, const float* weights, int taps, float (&run)[kRows]) {
  float x[kRows + kTaps - 1], w[kTaps];
  DIPENGINE_UNROLL
  for (int i = 0; i < kRows + kTaps - 1; ++i) x[i] = input[i * kPitch];
  DIPENGINE_UNROLL
  for (int i = 0; i < kTaps; i += 4) {
    const cuda::Bytes16 four = cuda::load16(weights + i);
    DIPENGINE_UNROLL
    for (int e = 0; e < 4; ++e) w[i + e] = float_from_bits(four.word[e]);
  }
  DIPENGINE_UNROLL
  for (int a = 0; a < kTaps; ++a) {
    if (a >= taps) continue;  // not zero times whatever lies there
    DIPENGINE_UNROLL
    for (int k = 0; k < kRows; ++k) run[k] = fma(w[a], x[k + a], run[k]);
  }
}

DIPENGINE_DEVICE void add_patch(const Launch& l, const Patch& patch, const float* input, const float* weights, Sums& sums) {
  const int left = l.kernel_height - patch.row, taps = left < kTaps ? left : kTaps;
  for (int first = 0; first < patch.columns; first += kRun) {
    float run[kRows] = {};
    for (int b = first; b < first + kRun && b < patch.columns; ++b) {
      add_column(input + b * l.channels, weights + b * kTaps, taps, run);
    }
    DIPENGINE_UNROLL
    for (int k = 0; k < kRows; ++k) {
      const float more = run[k] - sums.lost[k], sum = sums.sum[k] + more;
      sums.lost[k] = (sum - sums.sum[k]) - more;
      sums.sum[k] = sum;
    }
  }
}

DIPENGINE_KERNEL(kThreads, 2) blur_kernel(DIPENGINE_PARAMS(Launch) l) {
  const int64_t fit = cuda::block_y();
  cuda::wait_for_launches();
  if (l.active != nullptr && l.active[fit] == 0) return;
  const float* const from = static_cast<const float*>(l.from.data) + fit * l.from_fit_stride;
  const float* const kernel = l.kernel + fit * l.kernel_fit_stride;
  float* const weights = reinterpret_cast<float*>(cuda::shared_memory());
  float* const image = weights + kWeights;
  const int column = cuda::thread_index() % kColumns, group = cuda::thread_index() / kColumns;
  const int64_t row = static_cast<int64_t>(cuda::block_x() / l.tiles) * kTileRows;
  const int64_t element = static_cast<int64_t>(cuda::block_x() % l.tiles) * kColumns;
  const int most = kHalo / l.channels + 1;
  BlurLayout layout = l.layout;
  if (l.sizes != nullptr) {
    layout = blur_layout(l.sizes[2 * fit], l.sizes[2 * fit + 1] / l.channels, l.channels, l.kernel_height, l.kernel_width,
                         l.turned == 0);
    if (row >= layout.height || element >= layout.width * l.channels) return;
  }

  Sums sums{};
  for (int a = 0; a < l.kernel_height; a += kTaps) {
    for (int b = 0; b < l.kernel_width; b += most) {
      const Patch patch = {a, b, l.kernel_width - b < most ? l.kernel_width - b : most};
      if (a + b > 0) cuda::sync_threads();  // the patch before has been read
      load_weights(l, kernel, patch, weights);
      load_patch(l, layout, from, row + a, element + static_cast<int64_t>(b) * l.channels, kColumns + (patch.columns - 1) * l.channels,
                 image);
      cuda::sync_threads();
      add_patch(l, patch, image + group * kRows * kPitch + column, weights, sums);
    }
  }
  cuda::let_next_begin();
  const int64_t own = element + column;
  if (own >= layout.width * l.channels) return;
  const int32_t pixel = static_cast<int32_t>(own) / l.channels, channel = static_cast<int32_t>(own) % l.channels;
  float* to = static_cast<float*>(l.to.data) + fit * l.to_fit_stride + pixel * l.to.pixel_stride + channel;
  DIPENGINE_UNROLL
  for (int k = 0; k < kRows; ++k) {
    const int64_t y = row + group * kRows + k;
    if (y < layout.height) to[y * l.to.row_stride] = sums.sum[k];
  }
}

dipengine_status check(const Params* params, const char* op) {
  DIPENGINE_TRY(check_struct(params, op));
  const Params& p = *params;
  DIPENGINE_TRY(check_size(p.height, p.width, p.channels, op));
  DIPENGINE_REQUIRE(p.fits >= 1, "%s was given %lld fits; give at least one.", op, static_cast<long long>(p.fits));
  DIPENGINE_REQUIRE(p.kernel_height >= 1 && p.kernel_width >= 1 && p.kernel_height <= kMost / p.kernel_width,
                    "%s was given a kernel of %lld x %lld; each side must be at least 1, and their product at most 2^30.", op,
                    static_cast<long long>(p.kernel_height), static_cast<long long>(p.kernel_width));
  DIPENGINE_REQUIRE(p.height <= kMost && p.channels <= kMost && p.width <= kMost / p.channels - 2 * p.kernel_width,
                    "%s was given %lld x %lld pixels of %lld channels; a padded row holds at most 2^30 elements.", op,
                    static_cast<long long>(p.height), static_cast<long long>(p.width), static_cast<long long>(p.channels));
  DIPENGINE_REQUIRE(p.kernel != nullptr, "%s was given no kernel; point it at its weights, in device memory.", op);
  return DIPENGINE_OK;
}

dipengine_status run(const Params& p, bool backward, const char* op) {
  Launch l{};
  l.layout = blur_layout(p.height, p.width, p.channels, p.kernel_height, p.kernel_width, backward);
  l.from = backward ? p.d_out : p.image;
  l.to = backward ? p.d_image : p.out;
  l.from_fit_stride = backward ? p.d_out_fit_stride : p.image_fit_stride;
  l.to_fit_stride = backward ? p.d_image_fit_stride : p.out_fit_stride;
  l.kernel_fit_stride = p.kernel_fit_stride;
  l.kernel = p.kernel;
  l.active = p.active;
  l.sizes = p.sizes;
  l.channels = static_cast<int32_t>(p.channels);
  l.kernel_height = static_cast<int32_t>(p.kernel_height);
  l.kernel_width = static_cast<int32_t>(p.kernel_width);
  l.turned = backward ? 0 : 1;
  DIPENGINE_TRY(check_pixels(l.from, l.layout.data_width, p.channels, op, backward ? "d_out" : "image"));
  DIPENGINE_TRY(check_pixels(l.to, l.layout.width, p.channels, op, backward ? "d_image" : "out"));
  DIPENGINE_REQUIRE(p.fits == 1 || l.to_fit_stride != 0, "%s cannot write several fits into one place; space them.", op);
  const int64_t tiles = (l.layout.width * p.channels + kColumns - 1) / kColumns;
  l.tiles = static_cast<int32_t>(tiles);
  return cuda::launch(blur_kernel, "blur",
                      {tiles * ((l.layout.height + kTileRows - 1) / kTileRows), p.fits, 1, kThreads,
                       (kWeights + kPatchRows * kPitch) * sizeof(float)},
                      l, p.stream);
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_blur_cuda(const dipengine_blur_cuda_params* params) {
  const char* op = "dipengine_blur_cuda";
  DIPENGINE_TRY(dipengine::check(params, op));
  return dipengine::run(*params, false, op);
}

dipengine_status dipengine_blur_cuda_backward(const dipengine_blur_cuda_params* params) {
  const char* op = "dipengine_blur_cuda_backward";
  DIPENGINE_TRY(dipengine::check(params, op));
  return dipengine::run(*params, true, op);
}

}  // extern "C"
