// The norm passes on a CPU; see norm.h. Compiled once per instruction set.
//
// Tasks are chunks of rows; sums are taken per row in registers, per chunk in float64, and merged in order.
#include "ops/norm/norm_kernels.h"
#include "ops/conv/conv_math.h"
#include "ops/conv/gradient_rows_cpu.h"
#include "platform/kernel_table.h"
#include "platform/thread_pool.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {
namespace {

using Params = dipengine_norm_params;

constexpr int64_t kChunkPixels = 1024;

// The samples of U^T U, one axis of n samples, bilinear x2.
AxisTerms gram_row(int64_t i, int64_t n) {
  AxisTerms gram{};
  for (int64_t o = 2 * i - 2; o <= 2 * i + 3; ++o) {
    if (o < 0 || o >= 2 * n) continue;
    const AxisTerms seen = up_tap(o, 1, n, DIPENGINE_UPSAMPLE_BILINEAR, DIPENGINE_PADDING_ZERO);
    float own = 0;
    for (int e = 0; e < seen.count; ++e) own += seen.index[e] == i ? seen.weight[e] : 0;
    for (int e = 0; e < seen.count; ++e) {
      if (own != 0) add_term(gram, seen.index[e], own * seen.weight[e]);
    }
  }
  return gram;
}

template <typename Stored>
struct Norm {
  using Real = typename Mac<typename ElementOf<Stored>::type>::Real;
  using V = Vec<Real>;

  const Params& p;
  const dipengine_conv_source& s;
  Prologue<Real> prologue;
  Real *a, *b, *c, *centre;  // [padded]
  int64_t padded, chunk_rows, chunks;
  bool bilinear;
  double *first, *second;  // [chunks][padded]
  AxisTerms *rows_gram, *columns_gram;
  char* scratch;
  size_t scratch_bytes, bytes;

  static constexpr NormKernels kernels() {
    return {[](const Params& params) {
              Params sized = params;
              sized.workspace = nullptr;
              return Norm(sized).bytes;
            },
            [](const Params& params) { Norm(params).statistics(); }, [](const Params& params) { Norm(params).apply(); },
            [](const Params& params) { Norm(params).backward(); }};
  }

  explicit Norm(const Params& params) : p(params), s(*params.source) {
    padded = round_up(s.channels, V::size);
    bilinear = s.upsample == DIPENGINE_UPSAMPLE_BILINEAR;
    chunk_rows = most(1, least(ceil_divide(s.height, 8), ceil_divide(kChunkPixels, s.width)));
    chunks = ceil_divide(s.height, chunk_rows);
    Carver carver(p.workspace);
    prologue.carve(carver, padded);
    for (Real** array : {&a, &b, &c, &centre}) *array = carver.take<Real>(padded);
    first = carver.take<double>(chunks * padded);
    second = carver.take<double>(chunks * padded);
    rows_gram = carver.take<AxisTerms>(bilinear ? s.height : 0);
    columns_gram = carver.take<AxisTerms>(bilinear ? s.width : 0);
    scratch = carver.take<char>(0);
    scratch_bytes = bilinear ? static_cast<size_t>(s.width * V::size) * sizeof(Real) : 0;  // a row of one register's channels
    bytes = carver.used() + scratch_bytes * static_cast<size_t>(dipengine_pool_size(p.pool));
  }

  void fill() {
    prologue.fill(s, padded);
    prologue.has_outer = false;
    for (int64_t i = 0; i < padded; ++i) {
      const bool given = i < s.channels;
      a[i] = given && p.a != nullptr ? static_cast<Real>(p.a[i]) : Real(1);
      b[i] = given && p.b != nullptr ? static_cast<Real>(p.b[i]) : Real(0);
      c[i] = given && p.c != nullptr ? static_cast<Real>(p.c[i]) : Real(0);
      centre[i] = given && s.centre != nullptr ? static_cast<Real>(s.centre[i]) : Real(0);
    }
    for (int64_t i = 0; bilinear && i < s.height; ++i) rows_gram[i] = gram_row(i, s.height);
    for (int64_t i = 0; bilinear && i < s.width; ++i) columns_gram[i] = gram_row(i, s.width);
  }

  static typename V::Register load(const Stored* from, int lanes) {
    return lanes == V::size ? V::load(from) : V::load_part(from, lanes);
  }
  static void store(Stored* to, typename V::Register x, int lanes) {
    if (lanes == V::size) {
      V::store(to, x);
    } else {
      V::store_part(to, x, lanes);
    }
  }
  const Stored* row_of(const dipengine_pixels& pixels, int64_t y) const {
    return static_cast<const Stored*>(pixels.data) + y * pixels.row_stride;
  }
  int lanes_at(int64_t channel) const { return static_cast<int>(least(V::size, s.channels - channel)); }

  typename V::Register activation(typename V::Register x, int64_t channel) const {
    return prologue.has_inner ? normalise<Real, true, false>(prologue, x, channel) : x;
  }

  // Calls body(slot, chunk, y) for every row, and clears the chunk's sums first.
  template <typename Body>
  void each_row(const Body& body) const {
    run_tasks_with_scratch(p.pool, chunks, [&](int64_t chunk, int slot) {
      memset(first + chunk * padded, 0, static_cast<size_t>(padded) * sizeof(double));
      memset(second + chunk * padded, 0, static_cast<size_t>(padded) * sizeof(double));
      for (int64_t y = chunk * chunk_rows; y < least((chunk + 1) * chunk_rows, s.height); ++y) body(slot, chunk, y);
    });
  }

  // (U^T U (t - mean)) along the columns is left to the caller: `to` holds the vertical part, [width][one register].
  void gram_rows(int64_t y, int64_t channel, int lanes, typename V::Register mean, Real* to) const {
    const AxisTerms& terms = rows_gram[y];
    for (int64_t x = 0; x < s.width; ++x) {
      typename V::Register sum = V::zero();
      for (int e = 0; e < terms.count; ++e) {
        const Stored* at = row_of(s.x, terms.index[e]) + x * s.x.pixel_stride + channel;
        const typename V::Register t = V::sub(activation(load(at, lanes), channel), mean);
        sum = V::fma(V::set(static_cast<Real>(terms.weight[e])), t, sum);
      }
      V::store(to + x * V::size, sum);
    }
  }

  typename V::Register gram_at(const Real* vertical, int64_t x) const {
    const AxisTerms& terms = columns_gram[x];
    typename V::Register sum = V::zero();
    for (int e = 0; e < terms.count; ++e) {
      sum = V::fma(V::set(static_cast<Real>(terms.weight[e])), V::load(vertical + terms.index[e] * V::size), sum);
    }
    return sum;
  }

  Real* vertical_of(int slot) const { return reinterpret_cast<Real*>(scratch + scratch_bytes * static_cast<size_t>(slot)); }

  void statistics() {
    fill();
    each_row([&](int, int64_t chunk, int64_t y) {
      const double before = static_cast<double>((y - chunk * chunk_rows) * s.width), n = static_cast<double>(s.width);
      for (int64_t channel = 0; channel < s.channels; channel += V::size) {
        const int lanes = lanes_at(channel);
        const Stored* from = row_of(s.x, y) + channel;
        double *mean = first + chunk * padded + channel, *m2 = second + chunk * padded + channel;
        Real near[V::size];
        V::store(near, activation(load(from, lanes), channel));
        if (before > 0) {
          for (int i = 0; i < lanes; ++i) near[i] = static_cast<Real>(mean[i]);
        }
        const typename V::Register middle = V::load(near);
        typename V::Register sum = V::zero(), square = V::zero();
        for (int64_t x = 0; x < s.width; ++x) {
          const typename V::Register t = V::sub(activation(load(from + x * s.x.pixel_stride, lanes), channel), middle);
          sum = V::add(sum, t);
          square = V::fma(t, t, square);
        }
        Real sums[V::size], squares[V::size];
        V::store(sums, sum);
        V::store(squares, square);
        for (int i = 0; i < lanes; ++i) {
          const double offset = static_cast<double>(sums[i]) / n, row = static_cast<double>(squares[i]) - offset * offset * n;
          merge_moments(before, mean + i, m2 + i, n, static_cast<double>(near[i]) + offset, row > 0 ? row : 0);
        }
      }
    });
    for (int64_t channel = 0; channel < s.channels; ++channel) {
      double mean = 0, m2 = 0, count = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const double pixels = static_cast<double>(least(chunk_rows, s.height - chunk * chunk_rows) * s.width);
        merge_moments(count, &mean, &m2, pixels, first[chunk * padded + channel], second[chunk * padded + channel]);
        count += pixels;
      }
      p.mean[channel] = mean;
      p.variance[channel] = m2 / count;
    }
    if (bilinear) bilinear_variance();
  }

  void bilinear_variance() {
    for (int64_t i = 0; i < s.channels; ++i) centre[i] = static_cast<Real>(p.mean[i]);
    each_row([&](int slot, int64_t chunk, int64_t y) {
      Real* vertical = vertical_of(slot);
      for (int64_t channel = 0; channel < s.channels; channel += V::size) {
        const int lanes = lanes_at(channel);
        const typename V::Register mean = V::load(centre + channel);
        gram_rows(y, channel, lanes, mean, vertical);
        typename V::Register sum = V::zero();
        for (int64_t x = 0; x < s.width; ++x) {
          const typename V::Register t = activation(load(row_of(s.x, y) + x * s.x.pixel_stride + channel, lanes), channel);
          sum = V::fma(V::sub(t, mean), gram_at(vertical, x), sum);
        }
        Real sums[V::size];
        V::store(sums, sum);
        for (int i = 0; i < lanes; ++i) first[chunk * padded + channel + i] += static_cast<double>(sums[i]);
      }
    });
    const double count = 4.0 * static_cast<double>(s.height * s.width);
    for (int64_t channel = 0; channel < s.channels; ++channel) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += first[chunk * padded + channel];
      p.variance[channel] = sum > 0 ? sum / count : 0;
    }
  }

  void apply() {
    fill();
    each_row([&](int, int64_t, int64_t y) {
      const Stored* from = row_of(s.x, y);
      Stored* to = const_cast<Stored*>(row_of(p.y, y));
      for (int64_t x = 0; x < s.width; ++x, from += s.x.pixel_stride, to += p.y.pixel_stride) {
        for (int64_t channel = 0; channel < s.channels; channel += V::size) {
          const int lanes = lanes_at(channel);
          store(to + channel, activation(load(from + channel, lanes), channel), lanes);
        }
      }
    });
  }

  void backward() {
    fill();
    const Real repeat = s.upsample == DIPENGINE_UPSAMPLE_NONE ? Real(1) : Real(4);
    each_row([&](int slot, int64_t chunk, int64_t y) {
      for (int64_t channel = 0; channel < s.channels; channel += V::size) backward_row(slot, chunk, y, channel, repeat);
    });
    for (int64_t channel = 0; s.sum != nullptr && channel < s.channels; ++channel) {
      double sum = 0, product = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        sum += first[chunk * padded + channel];
        product += second[chunk * padded + channel];
      }
      s.sum[channel] = sum;
      s.product[channel] = product;
    }
  }

  void backward_row(int slot, int64_t chunk, int64_t y, int64_t channel, Real repeat) const {
    const int lanes = lanes_at(channel);
    Real* vertical = vertical_of(slot);
    const bool folded = p.a != nullptr, gram = folded && bilinear;
    if (gram) gram_rows(y, channel, lanes, V::zero(), vertical);
    const typename V::Register scale = V::load(a + channel), middle = V::load(centre + channel);
    const typename V::Register of_t = V::mul(V::load(b + channel), gram ? V::set(Real(1)) : V::set(repeat));
    const typename V::Register shift = V::mul(V::load(c + channel), V::set(repeat));
    const typename V::Register inner_scale = V::load(prologue.inner_scale + channel), inner_shift = V::load(prologue.inner_shift + channel);
    const typename V::Register slope = V::set(prologue.slope), one = V::set(Real(1));
    const Stored *from = row_of(s.x, y) + channel, *gradient = row_of(p.g, y) + channel;
    Stored* to = const_cast<Stored*>(row_of(s.d_x, y)) + channel;
    typename V::Register sum = V::zero(), product = V::zero();
    for (int64_t x = 0; x < s.width; ++x) {
      const typename V::Register value = load(from + x * s.x.pixel_stride, lanes);
      const typename V::Register inner = V::fma(value, inner_scale, inner_shift);
      typename V::Register g = load(gradient + x * p.g.pixel_stride, lanes);
      if (folded) {
        const typename V::Register t = gram ? gram_at(vertical, x) : V::where_positive(inner, inner, V::mul(inner, slope));
        g = V::fma(scale, g, V::fma(of_t, t, shift));
      }
      g = V::mul(g, V::where_positive(inner, one, slope));
      store(to + x * s.d_x.pixel_stride, g, lanes);
      sum = V::add(sum, g);
      product = V::fma(g, V::sub(value, middle), product);
    }
    if (s.sum == nullptr) return;
    Real sums[V::size], products[V::size];
    V::store(sums, sum);
    V::store(products, product);
    for (int i = 0; i < lanes; ++i) {
      first[chunk * padded + channel + i] += static_cast<double>(sums[i]);
      second[chunk * padded + channel + i] += static_cast<double>(products[i]);
    }
  }
};

}  // namespace

extern const NormTable norm_kernels;
const NormTable norm_kernels = kernel_table<NormTable, Norm>();

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
