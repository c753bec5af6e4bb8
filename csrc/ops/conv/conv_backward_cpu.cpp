// The convolutions backward on a CPU; see conv.h. Compiled once per instruction set.
//
// A task is a chunk of rows: output rows r (and the source rows they start at), or low-resolution rows where a source is
// upsampled. It goes through its chunk in blocks of columns, forms d_raw once per row in a ring, and from there makes both
// the data gradient (rows times transposed weights) and its share of the weight gradient (pixels packed in pairs), the
// latter summed per chunk and merged in a fixed order. Chunks follow from the shape alone.

#include "ops/conv/backward_upsampled_cpu.h"
#include "platform/kernel_table.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {
namespace {

template <typename Stored>
struct Backward : UpsampledBackward<Stored> {
  using Upsampled = UpsampledBackward<Stored>;
  using typename Upsampled::Element, typename Upsampled::Real, typename Upsampled::Prepared, typename Upsampled::Scratch;
  using Upsampled::p, Upsampled::sources, Upsampled::up, Upsampled::winograd, Upsampled::transformed, Upsampled::inputs,
      Upsampled::padded, Upsampled::grid_height, Upsampled::grid_width, Upsampled::chunks, Upsampled::chunk_rows,
      Upsampled::columns, Upsampled::batch_rows, Upsampled::taps, Upsampled::tap_order, Upsampled::map, Upsampled::bias_sum,
      Upsampled::zeros, Upsampled::rows_map, Upsampled::columns_map, Upsampled::d_columns, Upsampled::scratch_of,
      Upsampled::vectors_of, Upsampled::pack_narrow, Upsampled::fill_map, Upsampled::run_up, Upsampled::run_plain_rows;
  using Upsampled::Upsampled;

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
    map.fill(p, padded);
    const Real* weight = static_cast<const Real*>(p.weight);
    if (winograd && sources[0].wants_data()) {
      run_tasks(p.pool, inputs, [&](int64_t c) {
        winograd_weights(static_cast<const Real*>(p.weight), inputs, p.channels, c, true, transformed);
      });
      weight = transformed;
    }
    memset(zeros, 0, static_cast<size_t>(d_columns() * padded) * sizeof(Element));
    run_tasks(p.pool, total, [&](int64_t task) {
      const int i = task < jobs[0] ? 0 : 1;
      const int block = static_cast<int>(i == 0 ? task : task - jobs[0]);
      const Prepared& s = sources[i];
      if (s.narrow) return pack_narrow(s);
      int plain[kMaxSegments];
      for (int t = 0; t < kMaxSegments; ++t) plain[t] = t;
      pack_transposed<Element, Real>(p.channels, weight, winograd ? kWinogradPlanes : taps, &s == up || winograd ? plain : tap_order, s.first,
                                     s.source->channels, inputs, block, vectors_of(s, block), s.panels + block * s.panel_size);
    });
    if (up != nullptr) {
      fill_map(rows_map, grid_height);
      fill_map(columns_map, grid_width);
    }
    run_tasks_with_scratch(p.pool, chunks, [&](int64_t chunk, int slot) { run_chunk(chunk, slot); });
    finish();
  }

  void run_chunk(int64_t chunk, int slot) const {
    Scratch area = scratch_of(slot);
    for (int i = 0; i < p.sources_count; ++i) {
      const Prepared& s = sources[i];
      if (s.d_weight != nullptr) {
        memset(s.d_weight + chunk * taps * s.tap_size, 0, static_cast<size_t>(taps * s.tap_size) * sizeof(Real));
      }
      memset(s.sum + chunk * s.padded, 0, static_cast<size_t>(s.padded) * sizeof(double));
      memset(s.product + chunk * s.padded, 0, static_cast<size_t>(s.padded) * sizeof(double));
    }
    const int64_t top = chunk * chunk_rows, bottom = least(top + chunk_rows, grid_height);
    add_bias(chunk, top, bottom);
    for (int64_t begin = 0; begin < grid_width; begin += columns) {
      const int64_t end = least(begin + columns, grid_width);
      for (int64_t& row : area.d_held) row = -(int64_t{1} << 40);
      for (auto& rows : area.x_held) {
        for (int64_t& row : rows) row = -(int64_t{1} << 40);
      }
      for (int64_t row = top; row < bottom; row += batch_rows) {
        const int64_t rows = least(batch_rows, bottom - row);
        if (up != nullptr) {
          run_up(area, chunk, row, rows, begin, end);
        } else {
          run_plain_rows(area, chunk, row, rows, begin, end);
        }
      }
    }
  }

  void add_bias(int64_t chunk, int64_t top, int64_t bottom) const {
    if (p.d_bias == nullptr) return;
    double* sum = bias_sum + chunk * padded;
    memset(sum, 0, static_cast<size_t>(padded) * sizeof(double));
    const int64_t scale = up != nullptr ? 2 : 1;
    for (int64_t r = scale * top; r < scale * bottom; ++r) {
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
      run_tasks(p.pool, static_cast<int64_t>(p.sources_count) * taps, [&](int64_t task) {
        merge_weights(sources[task / taps], static_cast<int>(task % taps));
      });
    }
    for (int64_t c = 0; p.d_bias != nullptr && c < p.channels; ++c) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += bias_sum[chunk * padded + c];
      static_cast<Real*>(p.d_bias)[c] = static_cast<Real>(sum);
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

  void merge_weights(const Prepared& s, int tap) const {
    for (int64_t c = 0; c < s.source->channels; ++c) {
      Real* to = static_cast<Real*>(p.d_weight) + (tap * inputs + s.first + c) * p.channels;
      const Real* from = s.d_weight + tap * s.tap_size + (s.swapped ? c : c * padded);
      const int64_t step = s.swapped ? s.padded : 1;
      for (int64_t o = 0; o < p.channels; ++o) {
        Real sum = from[o * step];
        for (int64_t chunk = 1; chunk < chunks; ++chunk) sum += from[o * step + chunk * taps * s.tap_size];
        to[o] = sum;
      }
    }
  }
};

}  // namespace

extern const ConvTable conv_backward_kernels;
const ConvTable conv_backward_kernels = kernel_table<ConvTable, Backward>();

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
