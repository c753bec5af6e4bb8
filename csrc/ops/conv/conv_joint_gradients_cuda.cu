// Both gradients of a 1x1 convolution in front of a head, on the tensor cores:
//
//   d_W[c, o] = sum over pixels  u[c] d_raw[o]        d_x[c] = leaky_relu'(inner(x[c])) sum over o  W[c, o] d_raw[o]
//
// with d_raw of a head as in conv_gradient_cuda.h, but that h and g are not rounded here, and the sums of d_x. A block goes over some tiles
// of 8 columns: x and raw of a tile are copied into shared memory, where each thread makes u and d_raw of its own sixteen bytes in their
// place; warps multiply u's transpose by d_raw, whose sums they keep for all tiles, and d_raw by the weights, which are there for all
// tiles. While they store d_x of a tile, the next one is copied. The parts of d_W are added up by the kernel that adds those of other layers.
//
// Rows of shared memory are pixels or input channels.
#include "ops/conv/conv_joint_gradients_cuda.h"

#include "ops/conv/conv_data_gradient_cuda.h"
#include "ops/conv/conv_gradient_cuda.h"
#include "ops/conv/conv_inputs_cuda.h"
#include "ops/conv/conv_tile_cuda.h"
#include "ops/conv/conv_weight_sum_cuda.h"
#include "ops/norm/parts_merge_cuda.h"
#include "platform/cuda/device.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

using Element = cuda::Bfloat16;

constexpr int kThreads = 256, kWarps = kThreads / cuda::kWarp;
constexpr int kWhole = 8;  // values in sixteen bytes: a group
static_assert(kWhole == Element::kEach, "a group");

// What a block keeps of the numbers of a group's channels: of d_raw the head's weights times A, the norm in front of the head, B and C;
// of x its norm, and where its products are counted from.
enum Number { kWeight, kRawScale = kWeight + DIPENGINE_CONV_CUDA_HEAD, kRawShift, kB, kC, kScale, kShift, kCentre, kNumbers };
constexpr int kNumberBytes = 4 * kWhole, kNumberPitch = kNumbers * kNumberBytes + 16;  // 16 more against bank conflicts

// Of blocks for up to so many channels on either side, and so many pixels at a time.
template <int channels, int pixels>
struct Joint {
  static constexpr int kChannels = channels, kGroups = channels / kWhole, kRowBytes = channels * Element::kBytes + kPitchMargin;
  static constexpr int kPixels = pixels, kRows = pixels / kTileColumns;  // of a tile
  static constexpr int kOwnStep = kThreads / kGroups, kOwn = pixels / kOwnStep;  // a thread's groups: of one pixel in so many
  static_assert(kOwnStep % kTileColumns == 0 && kOwn % 2 == 0, "whole rows, in twos");
  // The data gradient: warps of 32 pixels and the rest of the channels.
  static constexpr int kWarpsM = pixels / 32, kWarpsN = kWarps / kWarpsM, kWarpChannels = channels / kWarpsN;
  static constexpr int kProducts = kWarpChannels / 8, kWarpGroups = kWarpChannels / 32;  // of 8 channels; of those of a lane's sixteens
  // The weights': 4 x 2 warps, of so many products of 16 inputs and 8 outputs.
  static constexpr int kInputs = channels / 64, kOutputs = channels / 16;

  static constexpr int kTileBytes = kPixels * kRowBytes, kWeightBytes = channels * kRowBytes;
  static constexpr int kSumsBytes = kThreads * kWarpGroups * kWhole * 4;
  static constexpr int kSharedBytes =
      kWeightBytes + 2 * kTileBytes + kSumsBytes + kGroups * kNumberPitch + kPixels * 4 * DIPENGINE_CONV_CUDA_HEAD;
};

struct JointLaunch {
  JointPlan plan;
  GradientSource d_raw;
  const uint8_t* active;
  const float* weight;
  const void* x;
  int64_t x_fit_stride, x_row_stride, x_pixel_stride;
  void* d_x;
  int64_t d_x_fit_stride, d_x_row_stride, d_x_pixel_stride;
  int32_t accumulate, through_outer;  // neither
  dipengine_affine_cuda inner;
  float slope;
  const float* centre;
  int32_t ahead;  // bytes from where a tile is formed to where it is copied, while the one before is multiplied; 0: in its place
  float* weight_parts;  // [fits, splits, inputs, channels]
  int64_t fit_parts;
  PartSums* parts;
  SumsLaunch add;
  PartTree tree;
};

// What a block has in shared memory. `sums`: each thread's own, of d_x; `gradients`: of the head, by pixel.
struct Kept {
  unsigned char *weights, *inputs, *outputs, *sums, *numbers;
  float* gradients;
};
template <typename Shape>
DIPENGINE_DEVICE Kept places() {
  Kept k;
  k.weights = cuda::shared_memory();
  k.inputs = k.weights + Shape::kWeightBytes;
  k.outputs = k.inputs + Shape::kTileBytes;
  k.sums = k.outputs + Shape::kTileBytes;
  k.numbers = k.sums + Shape::kSumsBytes;
  k.gradients = reinterpret_cast<float*>(k.numbers + Shape::kGroups * kNumberPitch);
  return k;
}

// Eight values, in two sixteens so many bytes apart.
template <int apart>
DIPENGINE_DEVICE void keep_eight(const float (&from)[kWhole], unsigned char* to) {
  DIPENGINE_UNROLL
  for (int e = 0; e < kWhole; e += 4, to += apart) {
    cuda::store16(to, {{float_bits(from[e]), float_bits(from[e + 1]), float_bits(from[e + 2]), float_bits(from[e + 3])}});
  }
}
template <int apart>
DIPENGINE_DEVICE void kept_eight(const unsigned char* from, float (&to)[kWhole]) {
  DIPENGINE_UNROLL
  for (int e = 0; e < kWhole; e += 4, from += apart) {
    const cuda::Bytes16 four = cuda::load16(from);
    DIPENGINE_UNROLL
    for (int i = 0; i < 4; ++i) to[e + i] = float_from_bits(four.word[i]);
  }
}

// Bytes to the sixteen of group `group` of a row.
template <typename Shape>
DIPENGINE_DEVICE int place(int row, int group) {
  return row * Shape::kRowBytes + 16 * group;
}

// Number `which` of a group, of its channel e. Zeros behind the last channel.
DIPENGINE_DEVICE float number_of(const JointLaunch& l, int64_t fit, int which, int channel) {
  const int64_t at = fit * l.d_raw.numbers_fit_stride + channel;
  if (which >= kScale) {
    if (channel >= l.plan.inputs) return 0;
    if (which == kCentre) return l.centre == nullptr ? 0 : l.centre[at];
    if (l.inner.scale == nullptr) return which == kScale ? 1 : 0;
    return which == kScale ? l.inner.scale[at] : l.inner.shift[at];
  }
  if (channel >= l.plan.channels) return 0;
  if (which == kRawScale) return l.d_raw.head.inner.scale[at];
  if (which == kRawShift) return l.d_raw.head.inner.shift[at];
  if (which == kB) return l.d_raw.b[at];
  if (which == kC) return l.d_raw.c[at];
  const int heads = l.d_raw.head.channels;
  if (which >= heads) return 0;
  const float weight = l.d_raw.head.weight[fit * l.d_raw.parameters_fit_stride + static_cast<int64_t>(channel) * heads + which];
  return Element::widen(Element::operand(weight)) * l.d_raw.a[at];
}
template <typename Shape>
DIPENGINE_DEVICE void keep_numbers(const JointLaunch& l, int64_t fit, const Kept& k) {
  DIPENGINE_NO_UNROLL
  for (int at = cuda::thread_index(); at < kNumbers * Shape::kChannels; at += kThreads) {
    const int which = at / Shape::kChannels, channel = at % Shape::kChannels;
    reinterpret_cast<float*>(k.numbers + channel / kWhole * kNumberPitch + kNumberBytes * which)[channel % kWhole] =
        number_of(l, fit, which, channel);
  }
}

// Rows of weights are input channels, in the order in which a lane's columns of four products are neighbours in memory.
template <typename Shape>
DIPENGINE_DEVICE void keep_weights(const JointLaunch& l, int64_t fit, const Kept& k) {
  const float* const weight = l.weight + fit * l.d_raw.parameters_fit_stride;
  DIPENGINE_NO_UNROLL
  for (int at = cuda::thread_index(); at < Shape::kChannels * Shape::kGroups; at += kThreads) {
    const int input = at / Shape::kGroups, group = at % Shape::kGroups;
    const int row = input / 32 * 32 + input % 8 / 2 * 8 + input % 32 / 8 * 2 + input % 2;
    const float* const from = weight + static_cast<int64_t>(input) * l.plan.channels + kWhole * group;
    const bool there = input < l.plan.inputs && kWhole * group < l.plan.channels;
    float value[kWhole];
    DIPENGINE_UNROLL
    for (int e = 0; e < kWhole; ++e) value[e] = there ? from[e] : 0.0f;
    cuda::store16(k.weights + place<Shape>(row, group), Element::pack_operands(value));
  }
}

struct Tile {
  int row, column;
};
template <typename Shape>
DIPENGINE_DEVICE Tile tile_at(const JointPlan& p, int tile) {
  return {tile / p.tiles_x * Shape::kRows, tile % p.tiles_x * kTileColumns};
}
template <typename Shape>
DIPENGINE_DEVICE Tile tile_behind(const JointPlan& p, const Tile& t) {
  const bool last = t.column + kTileColumns >= p.width;
  return {last ? t.row + Shape::kRows : t.row, last ? 0 : t.column + kTileColumns};
}

// The groups that are the thread's to copy and to form: all of one group, number i of a pixel kOwnStep behind that of the one before.
template <typename Shape>
DIPENGINE_DEVICE int own_group() {
  return cuda::thread_index() % Shape::kGroups;
}
template <typename Shape>
DIPENGINE_DEVICE int own_pixel(int i) {
  return cuda::thread_index() / Shape::kGroups + i * Shape::kOwnStep;
}
template <typename Shape>
DIPENGINE_DEVICE int own_place(int i) {
  return place<Shape>(own_pixel<Shape>(0), own_group<Shape>()) + i * Shape::kOwnStep * Shape::kRowBytes;
}
template <typename Shape>
DIPENGINE_DEVICE bool own_is_there(const JointPlan& p, const Tile& t, int i) {
  const int first = own_pixel<Shape>(0);
  return t.row + first / kTileColumns + i * (Shape::kOwnStep / kTileColumns) < p.height && t.column + first % kTileColumns < p.width;
}

// Elements from a tile's first pixel to pixel (row, column) of it: strides are such that these are 31 bits.
DIPENGINE_DEVICE int within_tile(int row, int64_t row_stride, int column, int64_t pixel_stride) {
  return row * static_cast<int32_t>(row_stride) + column * static_cast<int32_t>(pixel_stride);
}

// Begins to copy the thread's groups of an image; zeros outside of it, and behind the last channel.
template <typename Shape>
DIPENGINE_DEVICE void begin_image(const JointPlan& p, const Tile& t, const void* image, int64_t fit_at, int64_t row_stride,
                                  int64_t pixel_stride, int channels, unsigned char* to) {
  const int channel = kWhole * own_group<Shape>(), first = own_pixel<Shape>(0);
  const auto* const tile = static_cast<const Element::Stored*>(image) + fit_at + pixel_at(t.row, row_stride, t.column, pixel_stride);
  const auto* from = tile + within_tile(first / kTileColumns, row_stride, first % kTileColumns, pixel_stride) + channel;
  DIPENGINE_UNROLL
  for (int i = 0; i < Shape::kOwn; ++i, from += Shape::kOwnStep / kTileColumns * row_stride) {
    cuda::copy_async16(to + own_place<Shape>(i), from, own_is_there<Shape>(p, t, i) && channel < channels);
  }
}
template <typename Shape>
DIPENGINE_DEVICE void begin_tile(const JointLaunch& l, int64_t fit, const Tile& t, const Kept& k) {
  begin_image<Shape>(l.plan, t, l.x, fit * l.x_fit_stride, l.x_row_stride, l.x_pixel_stride, l.plan.inputs, k.inputs + l.ahead);
  begin_image<Shape>(l.plan, t, l.d_raw.raw, fit * l.d_raw.raw_fit_stride, l.d_raw.raw_row_stride, l.d_raw.raw_pixel_stride,
                     l.plan.channels, k.outputs + l.ahead);
  cuda::copy_commit();
}

// The thread's values of the head's gradient, of a tile: each of a pixel, and one of its channels.
template <typename Shape>
struct OwnGradients {
  static constexpr int kCount = Shape::kPixels * DIPENGINE_CONV_CUDA_HEAD / kThreads;
  static_assert(kCount * kThreads == Shape::kPixels * DIPENGINE_CONV_CUDA_HEAD, "all pixels");
  float of[kCount];
};
template <typename Shape>
DIPENGINE_DEVICE OwnGradients<Shape> own_gradients(const JointLaunch& l, int64_t fit, const Tile& t) {
  OwnGradients<Shape> own;
  const int first = cuda::thread_index() / DIPENGINE_CONV_CUDA_HEAD, channel = cuda::thread_index() % DIPENGINE_CONV_CUDA_HEAD;
  const auto* const from = static_cast<const float*>(l.d_raw.gradient) + fit * l.d_raw.gradient_fit_stride + channel;
  DIPENGINE_UNROLL
  for (int i = 0; i < OwnGradients<Shape>::kCount; ++i) {
    const int pixel = first + i * (kThreads / DIPENGINE_CONV_CUDA_HEAD);
    const int y = t.row + pixel / kTileColumns, x = t.column + pixel % kTileColumns;
    const bool there = channel < l.d_raw.head.channels && y < l.plan.height && x < l.plan.width;
    own.of[i] = there ? from[pixel_at(y, l.d_raw.gradient_row_stride, x, l.d_raw.gradient_pixel_stride)] : 0.0f;
  }
  return own;
}
template <typename Shape>
DIPENGINE_DEVICE void keep_gradients(const OwnGradients<Shape>& own, const Kept& k) {
  DIPENGINE_UNROLL
  for (int i = 0; i < OwnGradients<Shape>::kCount; ++i) k.gradients[cuda::thread_index() + i * kThreads] = own.of[i];
}

// u of the thread's groups, of x as it was copied; zeros outside of the image.
template <typename Shape>
DIPENGINE_DEVICE void form_inputs(const JointLaunch& l, const Tile& t, const Kept& k) {
  const unsigned char* const numbers = k.numbers + own_group<Shape>() * kNumberPitch;
  float scale[kWhole], shift[kWhole];
  kept_eight<16>(numbers + kNumberBytes * kScale, scale);
  kept_eight<16>(numbers + kNumberBytes * kShift, shift);
  DIPENGINE_NO_UNROLL
  for (int first = 0; first < Shape::kOwn; first += 2) {
    DIPENGINE_UNROLL
    for (int i = first; i < first + 2; ++i) {
      unsigned char* const own = k.inputs + own_place<Shape>(i);
      const cuda::Bytes16 x = cuda::load16(own + l.ahead);
      float value[kWhole];
      DIPENGINE_UNROLL
      for (int e = 0; e < kWhole; ++e) {
        const float inner = fma(Element::widen(Element::get(x, e)), scale[e], shift[e]);
        value[e] = greater_of(inner, inner * l.slope);  // slopes are 1 at most
      }
      const cuda::Bytes16 u = Element::pack_operands(value);
      cuda::store16(own, own_is_there<Shape>(l.plan, t, i) ? u : cuda::Bytes16{});
    }
  }
}

// The same of d_raw.
template <typename Shape>
DIPENGINE_DEVICE void form_outputs(const JointLaunch& l, const Tile& t, const Kept& k) {
  const unsigned char* const numbers = k.numbers + own_group<Shape>() * kNumberPitch;
  float weight[DIPENGINE_CONV_CUDA_HEAD][kWhole], scale[kWhole], shift[kWhole], b[kWhole], c[kWhole];
  DIPENGINE_UNROLL
  for (int h = 0; h < DIPENGINE_CONV_CUDA_HEAD; ++h) kept_eight<16>(numbers + kNumberBytes * (kWeight + h), weight[h]);
  kept_eight<16>(numbers + kNumberBytes * kRawScale, scale);
  kept_eight<16>(numbers + kNumberBytes * kRawShift, shift);
  kept_eight<16>(numbers + kNumberBytes * kB, b);
  kept_eight<16>(numbers + kNumberBytes * kC, c);
  const bool four = l.d_raw.head.channels == DIPENGINE_CONV_CUDA_HEAD;  // else the last of the head's weights are zeros
  DIPENGINE_NO_UNROLL
  for (int first = 0; first < Shape::kOwn; first += 2) {
    DIPENGINE_UNROLL
    for (int i = first; i < first + 2; ++i) {
      unsigned char* const own = k.outputs + own_place<Shape>(i);
      const cuda::Bytes16 bytes = cuda::load16(own + l.ahead);
      const cuda::Bytes16 of_head = cuda::load16(k.gradients + own_pixel<Shape>(i) * DIPENGINE_CONV_CUDA_HEAD);
      float value[kWhole];  // A times the gradient behind the leaky ReLU in front of the head
      DIPENGINE_UNROLL
      for (int e = 0; e < kWhole; ++e) value[e] = weight[0][e] * float_from_bits(of_head.word[0]);
      DIPENGINE_UNROLL
      for (int h = 1; h < DIPENGINE_CONV_CUDA_HEAD; ++h) {
        if (h == 3 && !four) continue;
        DIPENGINE_UNROLL
        for (int e = 0; e < kWhole; ++e) value[e] = fma(weight[h][e], float_from_bits(of_head.word[h]), value[e]);
      }
      DIPENGINE_UNROLL
      for (int e = 0; e < kWhole; ++e) {
        const float raw = Element::widen(Element::get(bytes, e));
        const float slope = fma(raw, scale[e], shift[e]) > 0 ? 1.0f : l.d_raw.head.slope;
        value[e] = fma(value[e], slope, fma(b[e], raw, c[e]));
      }
      const cuda::Bytes16 d_raw = Element::pack_operands(value);
      cuda::store16(own, own_is_there<Shape>(l.plan, t, i) ? d_raw : cuda::Bytes16{});
    }
  }
}

template <typename Shape>
struct WeightSums {
  float of[Shape::kInputs][Shape::kOutputs][4];
};

// u's transpose by d_raw, 16 pixels at a time; ldmatrix transposes both.
template <typename Shape>
DIPENGINE_DEVICE void multiply_weights(const Kept& k, WeightSums<Shape>* sums) {
  const int lane = cuda::lane_index(), warp_m = cuda::warp_index() % 4, warp_n = cuda::warp_index() / 4;
  const int a_row = lane / 16 * 8 + lane % 8, a_group = 2 * Shape::kInputs * warp_m + lane / 8 % 2;
  const int b_row = lane % 16, b_group = Shape::kOutputs * warp_n + lane / 16;
  DIPENGINE_UNROLL
  for (int step = 0; step < Shape::kPixels / 16; ++step) {
    uint32_t a[Shape::kInputs][4];
    DIPENGINE_UNROLL
    for (int m = 0; m < Shape::kInputs; ++m) {
      cuda::load_matrices_transposed(a[m], k.inputs + place<Shape>(16 * step + a_row, a_group + 2 * m));
    }
    DIPENGINE_UNROLL
    for (int n = 0; n < Shape::kOutputs; n += 2) {
      uint32_t b[4];  // of two products
      cuda::load_matrices_transposed(b, k.outputs + place<Shape>(16 * step + b_row, b_group + n));
      DIPENGINE_UNROLL
      for (int m = 0; m < Shape::kInputs; ++m) {
        Element::multiply(sums->of[m][n], a[m], b[0], b[1]);
        Element::multiply(sums->of[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// d_raw of the warp's 32 pixels by the weights of its channels.
template <typename Shape>
struct DataSums {
  float of[2][Shape::kProducts][4];
};
template <typename Shape>
DIPENGINE_DEVICE void multiply_data(const Kept& k, int warp_m, int warp_n, DataSums<Shape>* du) {
  const int lane = cuda::lane_index();
  const int a_row = 32 * warp_m + lane % 16, b_row = Shape::kWarpChannels * warp_n + lane / 16 * 8 + lane % 8;
  DIPENGINE_UNROLL
  for (int step = 0; step < Shape::kChannels / Element::kDepth; ++step) {
    uint32_t a[2][4];
    DIPENGINE_UNROLL
    for (int m = 0; m < 2; ++m) cuda::load_matrices(a[m], k.outputs + place<Shape>(a_row + 16 * m, 2 * step + lane / 16));
    DIPENGINE_UNROLL
    for (int n = 0; n < Shape::kProducts; n += 2) {
      uint32_t b[4];  // of two products
      cuda::load_matrices(b, k.weights + place<Shape>(b_row + 8 * n, 2 * step + lane / 8 % 2));
      DIPENGINE_UNROLL
      for (int m = 0; m < 2; ++m) {
        Element::multiply(du->of[m][n], a[m], b[0], b[1]);
        Element::multiply(du->of[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// Where a lane's d_x lies: four rows of a tile, a column, eight channels of each 32 of the warp's.
constexpr int kOwnRows = 4;
struct OwnPixels {
  int row, column, channel;  // within the tile
  bool there[kOwnRows];      // the pixel
};
struct OwnX {
  cuda::Bytes16 of[kOwnRows];
};

DIPENGINE_DEVICE OwnX load_x(const JointLaunch& l, int64_t fit, const Tile& t, const OwnPixels& own, int channel) {
  const auto* const tile =
      static_cast<const Element::Stored*>(l.x) + fit * l.x_fit_stride + pixel_at(t.row, l.x_row_stride, t.column, l.x_pixel_stride);
  const auto* from = tile + within_tile(own.row, l.x_row_stride, own.column, l.x_pixel_stride) + channel;
  OwnX x;
  DIPENGINE_UNROLL
  for (int i = 0; i < kOwnRows; ++i, from += l.x_row_stride) {
    x.of[i] = own.there[i] && channel < l.plan.inputs ? cuda::load16_global(from) : cuda::Bytes16{};
  }
  return x;
}

// d_x of eight channels, of sums du[rows][4 products][4]; and to the thread's sums of the tiles before, which are of d_x in the lower half
// of a warp and of products in the upper one.
template <typename Sums>
DIPENGINE_DEVICE void store_d_x(const JointLaunch& l, int64_t fit, const Tile& t, const OwnPixels& own, int channel,
                                const unsigned char* numbers, const OwnX& x, const Sums& du, unsigned char* sums) {
  auto* const tile =
      static_cast<Element::Stored*>(l.d_x) + fit * l.d_x_fit_stride + pixel_at(t.row, l.d_x_row_stride, t.column, l.d_x_pixel_stride);
  auto* to = tile + within_tile(own.row, l.d_x_row_stride, own.column, l.d_x_pixel_stride) + channel;
  float scale[kWhole], shift[kWhole], centre[kWhole], sum[kWhole], product[kWhole];
  kept_eight<16>(numbers + kNumberBytes * kScale, scale);
  kept_eight<16>(numbers + kNumberBytes * kShift, shift);
  kept_eight<16>(numbers + kNumberBytes * kCentre, centre);
  DIPENGINE_UNROLL
  for (int i = 0; i < kOwnRows; ++i, to += l.d_x_row_stride) {
    float value[kWhole];
    DIPENGINE_UNROLL
    for (int e = 0; e < kWhole; ++e) {
      const float inner = fma(Element::widen(Element::get(x.of[i], e)), scale[e], shift[e]);
      value[e] = du(i, e) * (inner > 0 ? 1.0f : l.slope);  // zero outside of the image
    }
    const cuda::Bytes16 stored = Element::pack(value);
    if (own.there[i] && channel < l.plan.inputs) cuda::store16(to, stored);
    DIPENGINE_UNROLL
    for (int e = 0; e < kWhole; ++e) {
      const float d_x = Element::widen(Element::get(stored, e));
      const float apart = Element::widen(Element::get(x.of[i], e)) - centre[e];
      sum[e] = i == 0 ? d_x : sum[e] + d_x;
      product[e] = i == 0 ? d_x * apart : fma(d_x, apart, product[e]);
    }
  }
  const bool upper = cuda::lane_index() >= 16;
  float own_sums[kWhole];
  kept_eight<16 * kThreads>(sums, own_sums);
  DIPENGINE_UNROLL
  for (int e = 0; e < kWhole; ++e) {
    const float other = cuda::shuffle_xor(upper ? sum[e] : product[e], 16);
    own_sums[e] += (upper ? product[e] : sum[e]) + other;
  }
  keep_eight<16 * kThreads>(own_sums, sums);
}

// The block's part of the sums, of what its threads have: of those of 4 members, 4 rows each, 2 sums.
DIPENGINE_DEVICE void leave_sums(const unsigned char* sums, bool some, PartSums* part) {
  float own[kWhole];
  kept_eight<16 * kThreads>(sums, own);
  const int lane = cuda::lane_index();
  DIPENGINE_UNROLL
  for (int e = 0; e < kWhole; ++e) {
    own[e] += cuda::shuffle_xor(own[e], 4);
    own[e] += cuda::shuffle_xor(own[e], 8);
    if (lane % 16 < 4 && some) (lane < 16 ? part[e].sum : part[e].product) = own[e];
  }
}

template <typename Shape>
DIPENGINE_DEVICE void leave_weights(const JointLaunch& l, int64_t fit, const WeightSums<Shape>& sums) {
  const JointPlan& p = l.plan;
  const int lane = cuda::lane_index(), member = lane % 4, group = lane / 4;
  const int warp_m = cuda::warp_index() % 4, warp_n = cuda::warp_index() / 4;
  float* const part = l.weight_parts + fit * l.fit_parts + static_cast<int64_t>(cuda::block_x()) * p.inputs * p.channels;
  DIPENGINE_UNROLL
  for (int m = 0; m < Shape::kInputs; ++m) {
    DIPENGINE_UNROLL
    for (int n = 0; n < Shape::kOutputs; ++n) {
      DIPENGINE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int input = 16 * (Shape::kInputs * warp_m + m) + group + 8 * (i / 2);
        const int channel = 8 * (Shape::kOutputs * warp_n + n) + 2 * member + i % 2;
        if (input < p.inputs && channel < p.channels) part[input * p.channels + channel] = sums.of[m][n][i];
      }
    }
  }
}

template <int channels, int pixels>
DIPENGINE_KERNEL(kThreads, 1)
conv_joint_gradients_kernel(DIPENGINE_PARAMS(JointLaunch) l) {
  using Shape = Joint<channels, pixels>;
  const JointPlan& p = l.plan;
  const int64_t fit = cuda::block_y();
  const int lane = cuda::lane_index(), warp_m = cuda::warp_index() % Shape::kWarpsM, warp_n = cuda::warp_index() / Shape::kWarpsM;
  const int tiles = p.tiles_y * p.tiles_x, begin = cuda::block_x() * p.each, end = begin + p.each < tiles ? begin + p.each : tiles;
  constexpr int kGroupSums = 32 * kThreads;  // bytes of the threads' sums of one of their groups
  const Kept k = places<Shape>();
  unsigned char* const sums = k.sums + 16 * cuda::thread_index();
  OwnPixels own;
  own.row = kOwnRows * warp_m;
  own.column = lane / 4;
  own.channel = Shape::kWarpChannels * warp_n + kWhole * (lane % 4);
  DIPENGINE_UNROLL
  for (int g = 0; g < Shape::kWarpGroups; ++g) keep_eight<16 * kThreads>({}, sums + g * kGroupSums);
  cuda::wait_for_launches();
  if (l.active != nullptr && l.active[fit] == 0) return;
  Tile next = tile_at<Shape>(p, begin);
  begin_tile<Shape>(l, fit, next, k);
  keep_gradients<Shape>(own_gradients<Shape>(l, fit, next), k);
  keep_numbers<Shape>(l, fit, k);
  keep_weights<Shape>(l, fit, k);
  cuda::sync_threads();  // what does not change is there, and the head's gradient
  WeightSums<Shape> weight_sums{};
  DIPENGINE_NO_UNROLL
  for (int tile = begin; tile < end; ++tile) {
    const Tile t = next;
    cuda::copy_wait<0>();  // the thread's own groups
    form_inputs<Shape>(l, t, k);
    form_outputs<Shape>(l, t, k);
    cuda::sync_threads();  // all groups are formed
    const bool more = tile + 1 < end;
    next = tile_behind<Shape>(p, t);
    if (more && l.ahead != 0) begin_tile<Shape>(l, fit, next, k);
    OwnGradients<Shape> of_head{};
    if (more) of_head = own_gradients<Shape>(l, fit, next);
    DIPENGINE_UNROLL
    for (int i = 0; i < kOwnRows; ++i) own.there[i] = t.row + own.row + i < p.height && t.column + own.column < p.width;
    multiply_weights<Shape>(k, &weight_sums);
    OwnX x[Shape::kWarpGroups];
    DIPENGINE_UNROLL
    for (int g = 0; g < Shape::kWarpGroups; ++g) x[g] = load_x(l, fit, t, own, own.channel + 32 * g);
    DataSums<Shape> du{};
    multiply_data<Shape>(k, warp_m, warp_n, &du);
    keep_gradients<Shape>(of_head, k);
    cuda::sync_threads();  // all have read the operands; the head's next gradient is there
    if (more && l.ahead == 0) begin_tile<Shape>(l, fit, next, k);
    DIPENGINE_UNROLL
    for (int g = 0; g < Shape::kWarpGroups; ++g) {
      const int channel = own.channel + 32 * g;
      store_d_x(
          l, fit, t, own, channel, k.numbers + channel / kWhole * kNumberPitch, x[g],
          [&](int row, int e) { return du.of[row / 2][4 * g + e / 2][row % 2 * 2 + e % 2]; }, sums + g * kGroupSums);
    }
  }
  cuda::let_next_begin();
  leave_weights<Shape>(l, fit, weight_sums);
  PartSums* const part = l.parts + ((fit * p.splits + cuda::block_x()) * Shape::kWarpsM + warp_m) * p.inputs;
  DIPENGINE_UNROLL
  for (int g = 0; g < Shape::kWarpGroups; ++g) {
    const int channel = own.channel + 32 * g;
    leave_sums(sums + g * kGroupSums, channel < p.inputs, part + channel);
  }
  if (l.tree.tickets == nullptr) return;
  merge_by_blocks<kThreads, channels>(l.tree, SumsMerge{l.add}, fit, 0, cuda::block_x());
}

using Params = dipengine_conv_cuda_params;

template <typename Shape>
void cut(JointPlan* plan) {
  // A multiprocessor holds one block: about one each of a large device's 132, of two tiles at least.
  constexpr int kMost = 132;
  plan->tiles_y = (plan->height + Shape::kRows - 1) / Shape::kRows;
  plan->tiles_x = (plan->width + kTileColumns - 1) / kTileColumns;
  const int tiles = plan->tiles_y * plan->tiles_x;
  plan->each = (tiles + kMost - 1) / kMost;
  if (plan->each < 2) plan->each = 2;
  plan->splits = (tiles + plan->each - 1) / plan->each;
  plan->warps_m = Shape::kWarpsM;
  plan->tile_channels = Shape::kChannels;
  plan->tile_pixels = Shape::kPixels;
  plan->tile_bytes = 2 * Shape::kTileBytes;
  plan->ahead = Shape::kSharedBytes - Shape::kWeightBytes;
  plan->shared_bytes = Shape::kSharedBytes;
  static_assert(Shape::kSharedBytes >= static_cast<int>(merge_shared_bytes(kThreads)), "parts are merged there");
}

size_t sums_bytes(const JointPlan& plan, int64_t fits) { return (merge_bytes(part_tree_of(plan), fits, plan.inputs) + 15) / 16 * 16; }

// The workspace: what is left of the sums, and behind it the parts of the weights' gradient.
int64_t fit_parts(const JointPlan& plan) { return static_cast<int64_t>(plan.splits) * plan.inputs * plan.channels; }
size_t workspace_bytes(const JointPlan& plan, int64_t fits) {
  return sums_bytes(plan, fits) + static_cast<size_t>(fits * fit_parts(plan)) * sizeof(float);
}

dipengine_status plan_of(const Params* params, const char* op, ConvPlan* weights, JointPlan* plan, bool* is) {
  DIPENGINE_TRY(make_weight_gradient_plan(params, op, weights));  // for its checks, too
  DIPENGINE_TRY(for_data_sources(params, op, [](const DataSource&) { return DIPENGINE_OK; }));
  DIPENGINE_TRY(check_gradient(*params, op));
  size_t limit = 0;
  DIPENGINE_TRY(cuda::shared_memory_limit(&limit));
  *is = make_joint_plan(*params, limit, plan);
  return DIPENGINE_OK;
}

dipengine_status checked(const Params* params, const char* op, ConvPlan* weights, JointPlan* plan) {
  bool is = false;
  DIPENGINE_TRY(plan_of(params, op, weights, plan, &is));
  DIPENGINE_REQUIRE(is, "%s takes layers alone for which its workspace is not 0; the others have two gradients.", op);
  const size_t needed = workspace_bytes(*plan, params->fits);
  DIPENGINE_REQUIRE(params->workspace != nullptr && reinterpret_cast<uintptr_t>(params->workspace) % 16 == 0 &&
                        params->workspace_bytes >= needed,
                    "%s needs %zu bytes of workspace, 16-byte aligned.", op, needed);
  return DIPENGINE_OK;
}

float* weight_parts(const Params& p, const JointPlan& plan) {
  return reinterpret_cast<float*>(static_cast<char*>(p.workspace) + sums_bytes(plan, p.fits));
}

}  // namespace

bool make_joint_plan(const Params& p, size_t shared_limit, JointPlan* plan) {
  const dipengine_conv_cuda_source& s = p.sources[0];
  const auto whole = [](int32_t channels) { return channels % kWhole == 0 && channels <= DIPENGINE_CONV_CUDA_OVER_RAW; };
  *plan = JointPlan{};
  if (p.dtype != DIPENGINE_BFLOAT16 || p.sources_count != 1 || p.head.weight == nullptr || s.upsample != DIPENGINE_UPSAMPLE_NONE ||
      s.outer.scale != nullptr || s.accumulate != 0 || s.d_x.data == nullptr || s.sum == nullptr || s.product == nullptr ||
      p.weight == nullptr || p.d_weight == nullptr || !whole(s.channels) || !whole(p.channels))
    return false;
  const bool single = p.fits == 1;
  if (!in_sixteens(p.dtype, single ? 0 : s.x_fit_stride, s.x) || !in_sixteens(p.dtype, single ? 0 : s.d_x_fit_stride, s.d_x) ||
      !in_sixteens(p.dtype, single ? 0 : p.raw_fit_stride, p.raw) || p.gradient.row_stride > INT32_MAX ||
      p.gradient.pixel_stride > INT32_MAX)
    return false;
  constexpr int64_t kMostStride = INT32_MAX / 64;  // within a tile offsets have 31 bits
  if (s.x.row_stride > kMostStride || s.d_x.row_stride > kMostStride || p.raw.row_stride > kMostStride) return false;
  plan->height = p.height;
  plan->width = p.width;
  plan->inputs = s.channels;
  plan->channels = p.channels;
  if (s.channels <= 64 && p.channels <= 64) {
    cut<Joint<64, 128>>(plan);
  } else if (Joint<128, 128>::kSharedBytes <= shared_limit) {
    cut<Joint<128, 128>>(plan);
  } else {
    cut<Joint<128, 64>>(plan);
  }
  return plan->shared_bytes <= shared_limit;
}

}  // namespace dipengine

extern "C" {

dipengine_status dipengine_conv_cuda_joint_gradients_workspace(const dipengine_conv_cuda_params* params, size_t* bytes) {
  using namespace dipengine;
  const char* const op = "dipengine_conv_cuda_joint_gradients_workspace";
  ConvPlan weights;
  JointPlan plan;
  bool is = false;
  DIPENGINE_TRY(plan_of(params, op, &weights, &plan, &is));
  DIPENGINE_REQUIRE(bytes != nullptr, "%s was given no place for its answer.", op);
  *bytes = is ? workspace_bytes(plan, params->fits) : 0;
  return DIPENGINE_OK;
}

dipengine_status dipengine_conv_cuda_joint_gradients(const dipengine_conv_cuda_params* params) {
  using namespace dipengine;
  const char* const op = "dipengine_conv_cuda_joint_gradients";
  ConvPlan weights;
  JointLaunch l{};
  DIPENGINE_TRY(checked(params, op, &weights, &l.plan));
  const dipengine_conv_cuda_params& p = *params;
  const dipengine_conv_cuda_source& s = p.sources[0];
  const bool single = p.fits == 1, merges = p.tickets != nullptr;
  l.d_raw = gradient_source(p);
  l.active = p.active;
  l.weight = p.weight;
  set_source(p, s, &l);
  l.weight_parts = weight_parts(p, l.plan);
  l.fit_parts = fit_parts(l.plan);
  l.parts = static_cast<PartSums*>(p.workspace);
  const PartTree tree = part_tree_of(l.plan);
  l.tree = place_part_tree(tree, p.fits, l.plan.inputs, p.workspace, p.tickets);
  l.add = {static_cast<int64_t>(tree.blocks) * tree.parts, l.plan.inputs, l.parts, p.active, single ? 0 : p.numbers_fit_stride, s.sum,
           s.product, 0, {}};
  DIPENGINE_TRY(set_fold(s.fold, op, &l.add));
  size_t limit = 0, shared = l.plan.shared_bytes;
  DIPENGINE_TRY(cuda::shared_memory_limit(&limit));
  if (shared + l.plan.tile_bytes <= limit) {
    l.ahead = l.plan.ahead;
    shared += l.plan.tile_bytes;
  }
  const cuda::Grid grid = {l.plan.splits, p.fits, 1, kThreads, shared};
  if (l.plan.tile_channels == 64) {
    DIPENGINE_TRY(cuda::launch(conv_joint_gradients_kernel<64, 128>, "conv_joint_gradients", grid, l, p.stream));
  } else if (l.plan.tile_pixels == 128) {
    DIPENGINE_TRY(cuda::launch(conv_joint_gradients_kernel<128, 128>, "conv_joint_gradients", grid, l, p.stream));
  } else {
    DIPENGINE_TRY(cuda::launch(conv_joint_gradients_kernel<128, 64>, "conv_joint_gradients", grid, l, p.stream));
  }
  return merges ? DIPENGINE_OK : launch_sums(l.add, p.fits, p.stream);
}

dipengine_status dipengine_conv_cuda_joint_weight_sum(const dipengine_conv_cuda_params* params) {
  using namespace dipengine;
  ConvPlan weights;
  JointPlan plan;
  DIPENGINE_TRY(checked(params, "dipengine_conv_cuda_joint_weight_sum", &weights, &plan));
  return launch_weight_sum(*params, weights, 0, plan.splits, weight_parts(*params, plan), fit_parts(plan));
}

}  // extern "C"
