// The convolutions backward on a CPU; see conv.h. Compiled once per instruction set.
//
// A task is a chunk of rows: output rows r (and the source rows they start at), or low-resolution rows where a source is
// upsampled. It goes through its chunk in blocks of columns, forms d_raw once per row in a ring, and from there makes both
// the data gradient (rows times transposed weights) and its share of the weight gradient (pixels packed in pairs), the
// latter summed per chunk and merged in a fixed order. Chunks follow from the shape alone; where they are fewer than the
// threads, each gradient is a task of its own.

#include <type_traits>

#include "ops/conv/backward_upsampled_cpu.h"
#include "platform/kernel_table.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {
namespace {

template <typename Stored>
struct Backward : UpsampledBackward<Stored> {
  using Base = UpsampledBackward<Stored>;
  using typename Base::Element, typename Base::Real, typename Base::V, typename Base::Prepared, typename Base::Scratch;
  using Base::p, Base::sources, Base::up, Base::winograd, Base::wide, Base::strided, Base::paired, Base::tiled, Base::tiled_source,
      Base::planes, Base::chunk_top, Base::out_row, Base::transposed, Base::groups, Base::inputs, Base::padded, Base::grid_height,
      Base::grid_width, Base::chunks, Base::columns, Base::batch_rows, Base::taps, Base::tap_order, Base::map, Base::largest,
      Base::bias_sum, Base::zeros, Base::rows_map, Base::columns_map, Base::d_columns, Base::scratch_of, Base::vectors_of,
      Base::pack_narrow, Base::fill_map, Base::run_up, Base::run_paired, Base::run_winograd, Base::run_wide,
      Base::run_strided, Base::run_plain_rows, Base::parts;
  using Base::Base;

  static constexpr ConvKernels kernels() {
    return {[](const dipengine_conv_params& p) {
              dipengine_conv_params sized = p;
              sized.workspace = nullptr;
              return Backward(sized).bytes;
            },
            [](const dipengine_conv_params& p) { Backward(p).run(); }};
  }

  void run() {
    int64_t jobs[DIPENGINE_CONV_MAX_SOURCES] = {}, total = 0;
    for (int i = 0; i < p.sources_count; ++i) {
      Prepared& s = sources[i];
      s.prologue.fill(*s.source, s.padded);
      for (int64_t c = 0; c < s.padded; ++c) {
        s.centre[c] = s.source->centre != nullptr && c < s.source->channels ? static_cast<Real>(s.source->centre[c]) : Real(0);
      }
      jobs[i] = s.wants_data() ? s.blocks : 0;
      total += jobs[i];
    }
    if constexpr (kScaled<Element>) scale_gradient();
    map.fill(p, padded);
    const Real* weight = static_cast<const Real*>(p.weight);
    if (paired) pack_tiled<PairedGradientWeights>(false);
    else if (strided) pack_tiled<StridedGradientWeights>(false);
    else if (wide) pack_tiled<WideWeights>(true);
    else if (winograd) pack_tiled<WinogradWeights>(true);
    memset(zeros, 0, static_cast<size_t>(d_columns() * padded) * sizeof(Element));
    run_tasks(p.pool, total, [&](int64_t task) {
      const int i = task < jobs[0] ? 0 : 1;
      const int block = static_cast<int>(i == 0 ? task : task - jobs[0]);
      const Prepared& s = sources[i];
      if (s.narrow) return pack_narrow(s);
      Element* panel = s.panels + block * s.panel_size;
      const int64_t channels = s.source->channels;
      if (tiled() && &s == &tiled_source()) return;
      int plain[kMaxSegments];
      for (int t = 0; t < kMaxSegments; ++t) plain[t] = t;
      pack_transposed<Element, Real>(p.channels, weight, taps, &s == up ? plain : tap_order, s.first, channels, inputs, block,
                                     vectors_of(s, block), panel);
    });
    if (up != nullptr && !paired) {
      fill_map(rows_map, grid_height);
      fill_map(columns_map, grid_width);
    }
    const int tasks = parts();
    run_tasks_with_scratch(p.pool, chunks * tasks, [&](int64_t task, int slot) {
      Scratch area = scratch_of(slot);
      area.weights = p.d_weight != nullptr && task % tasks == 0;
      area.data = task % tasks == tasks - 1;
      run_chunk(area, task / tasks);
    });
    finish();
  }

  // Puts the largest of A g near 1/4: then d_raw stays below 2^14 and the differences of transforms within a float16's range, as the
  // other terms of d_raw are at most as many times its size as a channel has pixels, to the root.
  void scale_gradient() {
    run_tasks(p.pool, p.height, [&](int64_t y) {
      const int64_t bytes = y * p.gradient.row_stride;
      largest[y] = p.gradient_dtype == p.dtype ? largest_of(static_cast<const Stored*>(p.gradient.data) + bytes)
                                               : largest_of(static_cast<const Real*>(p.gradient.data) + bytes);
    });
    Real widest = 0, factor = p.raw_scale == nullptr ? Real(1) : Real(0);
    for (int64_t y = 0; y < p.height; ++y) widest = largest[y] > widest ? largest[y] : widest;
    for (int64_t c = 0; c < p.channels && p.raw_scale != nullptr; ++c) {
      const Real size = static_cast<Real>(__builtin_fabs(p.gradient_scale[c]));
      factor = size > factor ? size : factor;
    }
    const Real size = widest * factor;
    if (!(size > 0) || !__builtin_isfinite(size)) return;
    const int exponent = static_cast<int>(least(100, most(-100, -2 - __builtin_ilogbf(size))));
    map.unit = static_cast<Real>(__builtin_ldexp(1.0, exponent));
    map.inverse = static_cast<Real>(__builtin_ldexp(1.0, -exponent));
  }

  // The largest size in a row of g, from the bits.
  template <typename Gradient>
  Real largest_of(const Gradient* row) const {
    using Bits = typename std::conditional<sizeof(Gradient) == 2, uint16_t, uint32_t>::type;
    constexpr Bits sign = static_cast<Bits>(Bits(1) << (8 * sizeof(Bits) - 1));
    Bits greatest = 0;
    for (int64_t x = 0; x < p.width; ++x, row += p.gradient.pixel_stride) {
      for (int64_t c = 0; c < p.channels; ++c) {
        Bits bits;
        memcpy(&bits, row + c, sizeof(bits));
        bits = static_cast<Bits>(bits & ~sign);
        greatest = bits > greatest ? bits : greatest;
      }
    }
    const uint32_t word = static_cast<uint32_t>(greatest) << (32 - 8 * sizeof(Bits));
    float value;
    memcpy(&value, &word, sizeof(value));
    return static_cast<Real>(value);
  }

  // The weights of the tiles' data gradients.
  template <template <typename> class Transform>
  void pack_tiled(bool turned) const {
    const Prepared& s = tiled_source();
    if (!s.wants_data()) return;
    const int64_t steps = ceil_divide(s.source->channels, 16);
    run_tasks(p.pool, 9 * steps, [&](int64_t task) {
      transpose_tap(static_cast<const Real*>(p.weight), inputs, s.first, s.source->channels, p.channels, task / steps,
                    task % steps * 16, s.padded, transposed);
    });
    const WeightView<Real> weights{transposed, p.channels * s.padded, s.padded, p.channels, s.source->channels, turned};
    int places[kWidePlanes];
    for (int k = 0; k < planes(); ++k) places[k] = k;
    if (paired) paired_gradient_places(places);
    run_tasks(p.pool, s.blocks * ceil_divide(groups, kPackedGroups), [&](int64_t task) {
      const int block = static_cast<int>(task % s.blocks);
      pack_tiles<Transform, Element, Real>(weights, block, vectors_of(s, block), task / s.blocks * kPackedGroups, places,
                                           s.panels + block * s.panel_size);
    });
  }

  void run_chunk(Scratch& area, int64_t chunk) const {
    for (int i = 0; i < p.sources_count && area.data; ++i) {
      const Prepared& s = sources[i];
      memset(s.sum + chunk * s.padded, 0, static_cast<size_t>(s.padded) * sizeof(double));
      memset(s.product + chunk * s.padded, 0, static_cast<size_t>(s.padded) * sizeof(double));
    }
    area.added = false;
    const int64_t top = chunk_top(chunk), bottom = chunk_top(chunk + 1);
    if (area.data) add_bias(chunk, out_row(top), out_row(bottom));
    for (int64_t begin = 0; begin < grid_width; begin += columns) {
      const int64_t end = least(begin + columns, grid_width);
      for (int64_t& row : area.d_held) row = -(int64_t{1} << 40);
      for (auto& rows : area.x_held) {
        for (int64_t& row : rows) row = -(int64_t{1} << 40);
      }
      // Batches of nearly equal height: in a last one of a few rows the weights would be read for little.
      for (int64_t row = top, batches = ceil_divide(bottom - top, batch_rows), rows; batches > 0; --batches, row += rows) {
        rows = ceil_divide(bottom - row, batches);
        if (paired) {
          run_paired(area, chunk, row, rows, begin, end);
        } else if (strided) {
          run_strided(area, chunk, row, rows, begin, end);
        } else if (wide) {
          run_wide(area, chunk, row, rows, begin, end);
        } else if (winograd) {
          run_winograd(area, chunk, row, rows, begin, end);
        } else if (up != nullptr) {
          run_up(area, chunk, row, rows, begin, end);
        } else {
          run_plain_rows(area, chunk, row, rows, begin, end);
        }
        area.added = true;
      }
    }
    if (tiled() && area.weights) fold_weights(area, chunk);
  }

  void fold_weights(const Scratch& area, int64_t chunk) const {
    if (paired) {
      this->template fold_plane_weights<5>(area, *up, chunk, false,
                                           [](const auto* u, auto* w) { paired_weight_axis<V>(u, w); });
    } else if (strided) {
      this->template fold_plane_weights<5>(area, sources[0], chunk, false,
                                           [](const auto* u, auto* w) { strided_weight_axis<V>(u, w); });
    } else if (wide) {
      this->template fold_plane_weights<6>(area, sources[0], chunk, true,
                                           [](const auto* u, auto* w) { wide_weight_axis<Real>(u, w); });
    } else {
      this->template fold_plane_weights<4>(area, sources[0], chunk, true,
                                           [](const auto* u, auto* w) { winograd_weight_axis<V>(u, w); });
    }
  }

  // Rows [top, bottom) of d_raw.
  void add_bias(int64_t chunk, int64_t top, int64_t bottom) const {
    if (p.d_bias == nullptr) return;
    double* sum = bias_sum + chunk * padded;
    memset(sum, 0, static_cast<size_t>(padded) * sizeof(double));
    for (int64_t r = top; r < bottom; ++r) {
      if (p.gradient_dtype == p.dtype) {
        add_gradient_row<Real, Stored, Stored>(p, map, r, sum);
      } else {
        add_gradient_row<Real, Real, Stored>(p, map, r, sum);
      }
    }
  }

  // ---- the chunks' sums ---------------------------------------------------------------------------------------------

  void finish() const {
    if (p.d_weight != nullptr) {
      for (int i = 0; i < p.sources_count; ++i) {
        const Prepared& s = sources[i];
        if (s.direct) continue;
        run_tasks(p.pool, taps * ceil_divide(s.source->channels, kMergedChannels), [&](int64_t task) {
          const int64_t first = task / taps * kMergedChannels;
          merge_weights(s, static_cast<int>(task % taps), first, least(first + kMergedChannels, s.source->channels));
        });
      }
    }
    for (int64_t c = 0; p.d_bias != nullptr && c < p.channels; ++c) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += bias_sum[chunk * padded + c];
      static_cast<Real*>(p.d_bias)[c] = static_cast<Real>(sum) * map.inverse;
    }
    for (int i = 0; i < p.sources_count; ++i) {
      const Prepared& s = sources[i];
      if (s.source->sum == nullptr || !s.wants_data()) continue;
      for (int64_t c = 0; c < s.source->channels; ++c) {
        double sum = 0, product = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          sum += s.sum[chunk * s.padded + c];
          product += s.product[chunk * s.padded + c];
        }
        s.source->sum[c] = sum;
        s.source->product[c] = product;
      }
    }
  }

  // Channels in [first, last) of one tap.
  void merge_weights(const Prepared& s, int tap, int64_t first, int64_t last) const {
    const int64_t chunk_size = taps * s.tap_size;
    const Real inverse = this->tiled(s) ? Real(1) : map.inverse;  // fold_plane_weights() has seen to it
    for (int64_t c = first; c < last; ++c) {
      Real* to = static_cast<Real*>(p.d_weight) + (tap * inputs + s.first + c) * p.channels;
      const Real* from = s.d_weight + tap * s.tap_size + (s.swapped ? c : c * padded);
      for (int64_t o = 0; o < p.channels && s.swapped; ++o) {
        to[o] = from[o * s.padded];
        for (int64_t chunk = 1; chunk < chunks; ++chunk) to[o] += from[o * s.padded + chunk * chunk_size];
        to[o] *= inverse;
      }
      for (int64_t o = 0; o < p.channels && !s.swapped; o += V::size) {
        typename V::Register sum = V::load(from + o);
        for (int64_t chunk = 1; chunk < chunks; ++chunk) sum = V::add(sum, V::load(from + o + chunk * chunk_size));
        V::store_part(to + o, V::mul(sum, V::set(inverse)), static_cast<int>(least(V::size, p.channels - o)));
      }
    }
  }
};

}  // namespace

extern const ConvTable conv_backward_kernels;
const ConvTable conv_backward_kernels = kernel_table<ConvTable, Backward>();

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
