// Rows of downsampling and its transpose on a CPU.
//
// Both axes are one sum of weighted rows. Along a row the samples are first dealt out to `factor` phases, phase p holding
// positions p, p + factor, ...: then tap t = factor * m + p of all outputs is phase p, shifted by m pixels. The transpose
// fills the phases from shifted rows of the gradient and collects them. Products are rounded before they are added: memory
// is what takes the time, and so every instruction set gives the same bits.
#include "ops/resample/resample_kernels.h"
#include "platform/pixels.h"
#include "platform/simd.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {
namespace {

// out[i] = sum over terms of weight(term) * row(term)[i]
template <typename Real, typename Row, typename Weight>
DIPENGINE_INLINE void weighted_sum(int64_t count, int64_t terms, const Row& row, const Weight& weight, Real* out) {
  using V = Vec<Real>;
  constexpr int kVectors = 4;
  int64_t begin = 0;
  for (; begin + kVectors * V::size <= count; begin += kVectors * V::size) {
    typename V::Register sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = V::zero();
    for (int64_t term = 0; term < terms; ++term) {
      const Real* from = row(term) + begin;
      const auto w = V::set(weight(term));
      for (int v = 0; v < kVectors; ++v) sum[v] = V::add(sum[v], V::mul(w, V::load(from + v * V::size)));
    }
    for (int v = 0; v < kVectors; ++v) V::store(out + begin + v * V::size, sum[v]);
  }
  for (; begin < count; begin += V::size) {
    const int n = static_cast<int>(count - begin < V::size ? count - begin : V::size);
    auto sum = V::zero();
    for (int64_t term = 0; term < terms; ++term) {
      sum = V::add(sum, V::mul(V::set(weight(term)), V::load_part(row(term) + begin, n)));
    }
    V::store_part(out + begin, sum, n);
  }
}

// The same down the rows of an image, dense or not.
template <typename Real, typename Index, typename Weight>
DIPENGINE_INLINE void weighted_rows(const dipengine_pixels& from, int64_t width, int64_t channels, int64_t terms,
                                    const Index& index, const Weight& weight, Real* out) {
  const auto row = [&](int64_t term) { return row_of<const Real>(from, index(term)); };
  if (from.pixel_stride == channels) return weighted_sum(width * channels, terms, row, weight, out);
  for (int64_t i = 0; i < width * channels; ++i) out[i] = 0;
  for (int64_t term = 0; term < terms; ++term) {
    const Real* pixel = row(term);
    const Real w = weight(term);
    for (int64_t x = 0; x < width; ++x, pixel += from.pixel_stride) {
      for (int64_t c = 0; c < channels; ++c) out[x * channels + c] += w * pixel[c];
    }
  }
}

template <typename Real>
DIPENGINE_INLINE void copy_pixel(const Real* from, int64_t channels, Real* to) {
  for (int64_t c = 0; c < channels; ++c) to[c] = from[c];
}

template <typename Real>
void forward_rows(const dipengine_downsample_params& p, int64_t first, int64_t last, void* memory) {
  const ResampleAxis vertical = vertical_axis(p), horizontal = horizontal_axis(p);
  const ResampleScratch scratch = resample_scratch(p);
  const int64_t channels = p.channels, width = outputs_of(horizontal), length = width + margin_of(horizontal);
  const int64_t used = p.factor < p.taps_count ? p.factor : p.taps_count;  // phases that some tap reads
  Real* row = static_cast<Real*>(memory);
  Real* phases = row + scratch.row;
  const auto tap = [&](int64_t t) { return static_cast<Real>(p.taps[t]); };
  for (int64_t i = first; i < last; ++i) {
    const auto source = [&](int64_t t) { return sample_at(vertical, i * p.factor + t); };
    weighted_rows(p.image, p.width, channels, p.taps_count, source, tap, row);
    for (int64_t phase = 0; phase < used; ++phase) {
      Real* to = phases + phase * scratch.phase;
      for (int64_t k = 0; k < length; ++k, to += channels) {
        copy_pixel(row + sample_at(horizontal, k * p.factor + phase) * channels, channels, to);
      }
    }
    const auto shifted = [&](int64_t t) { return phases + t % p.factor * scratch.phase + t / p.factor * channels; };
    Real* out = row_of<Real>(p.out, i);
    const bool dense = p.out.pixel_stride == channels;
    weighted_sum(width * channels, p.taps_count, shifted, tap, dense ? out : row);
    if (dense) continue;
    for (int64_t x = 0; x < width; ++x) copy_pixel(row + x * channels, channels, out + x * p.out.pixel_stride);
  }
}

template <typename Real>
void backward_rows(const dipengine_downsample_params& p, int64_t first, int64_t last, void* memory) {
  const ResampleAxis vertical = vertical_axis(p), horizontal = horizontal_axis(p);
  const ResampleScratch scratch = resample_scratch(p);
  const int64_t channels = p.channels, width = outputs_of(horizontal), margin = margin_of(horizontal);
  const int64_t side = margin * channels, count = width * channels;
  Real* row = static_cast<Real*>(memory);  // margin, gradient, margin
  Real* phases = row + scratch.row;
  for (int64_t i = 0; i < side; ++i) row[i] = row[side + count + i] = 0;
  const auto at = [&](int64_t q) { return phases + q % p.factor * scratch.phase + q / p.factor * channels; };
  for (int64_t y = first; y < last; ++y) {
    const Span shown = positions_showing(vertical, y), reading = outputs_reading(vertical, shown);
    weighted_rows(
        p.d_out, width, channels, reading.last - reading.first + 1, [&](int64_t term) { return reading.first + term; },
        [&](int64_t term) { return resample_weight<Real>(vertical, p.taps, reading.first + term, shown); }, row + side);
    for (int64_t phase = 0; phase < p.factor; ++phase) {
      const int64_t terms = phase < p.taps_count ? (p.taps_count - 1 - phase) / p.factor + 1 : 0;
      weighted_sum(
          count + side, terms, [&](int64_t m) { return row + side - m * channels; },
          [&](int64_t m) { return static_cast<Real>(p.taps[phase + m * p.factor]); }, phases + phase * scratch.phase);
    }
    Real* d_pixel = row_of<Real>(p.d_image, y);
    for (int64_t x = 0; x < p.width; ++x, d_pixel += p.d_image.pixel_stride) {
      const Span q = positions_showing(horizontal, x);
      if (q.first == q.last) {
        copy_pixel(at(q.first), channels, d_pixel);
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        for (int64_t position = q.first; position <= q.last; ++position) sum += static_cast<double>(at(position)[c]);
        d_pixel[c] = static_cast<Real>(sum);
      }
    }
  }
}

}  // namespace

extern const ResampleKernels resample_kernels;
#if defined(DIPENGINE_WITH_FLOAT64)
const ResampleKernels resample_kernels = {{forward_rows<float>, backward_rows<float>},
                                          {forward_rows<double>, backward_rows<double>}};
#else
const ResampleKernels resample_kernels = {{forward_rows<float>, backward_rows<float>}, {nullptr, nullptr}};
#endif

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
