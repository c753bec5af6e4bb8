// What a kernel's blocks do with parts: the last of each group of blocks merges its group's, and the last of these what the groups
// left. Which block is the last, chance says; what it adds, and in which order, the layer's shape alone. In float64.
//
// Moments are merged as sums of differences from the first part's mean, which is near all others: sums of squares would cancel where
// the mean is large (T. Chan, G. Golub, R. LeVeque, "Algorithms for computing the sample variance", 1983: "shifted data").
#pragma once

#include "ops/norm/parts_cuda.h"
#include "platform/cuda/thread.h"

namespace dipengine {

DIPENGINE_DEVICE void finish_moments(const MomentsLaunch& p, int64_t fit, int channel, const Merged& all) {
  const double count = all.of[0], mean = all.of[1], variance = all.of[2] / count;
  const int64_t at = fit * p.numbers_fit_stride + channel, parameter = fit * p.parameters_fit_stride + channel;
  p.mean[at] = static_cast<float>(mean);
  p.variance[at] = static_cast<float>(variance);
  if (p.scale == nullptr) return;
  const double scale = (p.gamma == nullptr ? 1.0 : static_cast<double>(p.gamma[parameter])) / square_root(variance + p.eps);
  p.scale[at] = static_cast<float>(scale);
  p.shift[at] = static_cast<float>((p.beta == nullptr ? 0.0 : static_cast<double>(p.beta[parameter])) - mean * scale);
}

// A, B and C of a norm's gradient from the sums behind it, and the gradients of its parameters.
DIPENGINE_DEVICE void fold_gradient(const dipengine_norm_cuda_gradient& p, int64_t fit, int channel, float sum_behind,
                                    float product_behind) {
  const int64_t at = fit * p.numbers_fit_stride + channel, parameter = fit * p.parameters_fit_stride + channel;
  const double gamma = p.gamma == nullptr ? 1.0 : static_cast<double>(p.gamma[parameter]), mean = static_cast<double>(p.mean[at]);
  const double s = square_root(static_cast<double>(p.variance[at]) + p.eps), sum = static_cast<double>(sum_behind);
  const double product = static_cast<double>(product_behind) - (p.centred != 0 ? 0.0 : mean * sum);
  const double a = gamma / s, b = -a * product / (s * s * p.count);
  p.a[at] = static_cast<float>(a);
  p.b[at] = static_cast<float>(b);
  p.c[at] = static_cast<float>(-a * sum / p.count - b * mean);
  if (p.d_gamma != nullptr) p.d_gamma[parameter] = static_cast<float>(product / s);
  if (p.d_beta != nullptr) p.d_beta[parameter] = static_cast<float>(sum);
}

DIPENGINE_DEVICE void finish_sums(const SumsLaunch& p, int64_t fit, int channel, const Merged& all) {
  const float sum = static_cast<float>(all.of[0]), product = static_cast<float>(all.of[1]);
  p.sum[fit * p.numbers_fit_stride + channel] = sum;
  if (p.product != nullptr) p.product[fit * p.numbers_fit_stride + channel] = product;
  if (p.folds != 0) fold_gradient(p.fold, fit, channel, sum, product);
}

// Bytes of shared memory that a merge takes: of blocks of so many threads.
DIPENGINE_HD constexpr size_t merge_shared_bytes(int threads) { return static_cast<size_t>(threads) * (sizeof(Merged) + sizeof(int)); }

// Sums over what add(own, i) adds for i = slice, slice + threads / channels, ... below count, of the thread's channel; in the first
// `channels` threads.
template <int threads, int channels, typename Add>
DIPENGINE_DEVICE void sum_slices(int count, Merged* own, const Add& add) {
  constexpr int kSlices = threads / channels;
  const int thread = cuda::thread_index();
  if (threads >= 256) {  // registers are short; in norms several blocks to a multiprocessor are more to them than loads in flight here
    DIPENGINE_NO_UNROLL
    for (int i = thread / channels; i < count; i += kSlices) add(own, i);
    return;
  }
  DIPENGINE_UNROLL_BY_8
  for (int i = thread / channels; i < count; i += kSlices) add(own, i);
}

template <int threads, int channels>
DIPENGINE_DEVICE void merge_slices(Merged* own) {
  if (threads == channels) return;
  Merged* const shared = reinterpret_cast<Merged*>(cuda::shared_memory());
  const int thread = cuda::thread_index();
  shared[thread] = *own;
  cuda::sync_threads();
  for (int at = thread + channels; at < threads && thread < channels; at += channels) {
    for (int i = 0; i < 3; ++i) own->of[i] += shared[at].of[i];
  }
}

// A part of `count` values, of moments of which `origin` has been taken.
DIPENGINE_DEVICE void add_moments(Merged* own, double origin, double count, double mean, double m2) {
  const double difference = mean - origin;
  own->of[0] += count;
  own->of[1] += count * difference;
  own->of[2] += m2 + count * difference * difference;
}

DIPENGINE_DEVICE void end_moments(Merged* own, double origin) {
  const double count = own->of[0], shift = own->of[1] / count, m2 = own->of[2] - own->of[1] * shift;
  own->of[1] = origin + shift;
  own->of[2] = m2 < 0 ? 0 : m2;
}

// What a tree merges: parts first, first + 1, ..., and what groups of them came to, of channel `channel`.
struct MomentsMerge {
  const MomentsLaunch& l;

  template <int threads, int channels>
  DIPENGINE_DEVICE Merged parts(const MomentsMerge& m, int64_t fit, int channel, int64_t first, int count) {
    const int64_t step = m.l.channels;
    const PartMoments* const at = m.l.parts + (fit * m.l.count + first) * step + channel;
    const double origin = static_cast<double>(at[0].mean);
    // Counted by all threads once, as integer divisions are slow.
    int* const pixels = reinterpret_cast<int*>(cuda::shared_memory() + threads * sizeof(Merged));
    const int thread = cuda::thread_index();
    Merged own{};
    for (int begin = 0; begin < count; begin += threads) {
      const int here = count - begin < threads ? count - begin : threads;
      if (begin > 0) cuda::sync_threads();  // all have read those before
      if (thread < here) pixels[thread] = part_pixels(m.l.pixels, first + begin + thread);
      cuda::sync_threads();
      sum_slices<threads, channels>(here, &own, [&](Merged* to, int i) {
        const PartMoments part = at[(begin + i) * step];
        add_moments(to, origin, pixels[i], static_cast<double>(part.mean), static_cast<double>(part.m2));
      });
    }
    merge_slices<threads, channels>(&own);
    end_moments(&own, origin);
    return own;
  }

  template <int threads, int channels>
  DIPENGINE_DEVICE Merged groups(const MomentsMerge& m, const Merged* from, int count) {
    const int64_t step = m.l.channels;
    const double origin = from[0].of[1];
    Merged own{};
    sum_slices<threads, channels>(count, &own, [&](Merged* to, int i) {
      const Merged& group = from[i * step];
      add_moments(to, origin, group.of[0], group.of[1], group.of[2]);
    });
    merge_slices<threads, channels>(&own);
    end_moments(&own, origin);
    return own;
  }

  DIPENGINE_DEVICE void finish(const MomentsMerge& m, int64_t fit, int channel, const Merged& all) {
    finish_moments(m.l, fit, channel, all);
  }
};

struct SumsMerge {
  const SumsLaunch& l;

  template <int threads, int channels>
  DIPENGINE_DEVICE Merged parts(const SumsMerge& m, int64_t fit, int channel, int64_t first, int count) {
    const int64_t step = m.l.channels;
    const PartSums* const at = m.l.parts + (fit * m.l.count + first) * step + channel;
    Merged own{};
    sum_slices<threads, channels>(count, &own, [&](Merged* to, int i) {
      const PartSums part = at[i * step];
      to->of[0] += static_cast<double>(part.sum);
      to->of[1] += static_cast<double>(part.product);
    });
    merge_slices<threads, channels>(&own);
    return own;
  }

  template <int threads, int channels>
  DIPENGINE_DEVICE Merged groups(const SumsMerge& m, const Merged* from, int count) {
    const int64_t step = m.l.channels;
    Merged own{};
    sum_slices<threads, channels>(count, &own, [&](Merged* to, int i) {
      to->of[0] += from[i * step].of[0];
      to->of[1] += from[i * step].of[1];
    });
    merge_slices<threads, channels>(&own);
    return own;
  }

  DIPENGINE_DEVICE void finish(const SumsMerge& m, int64_t fit, int channel, const Merged& all) {
    finish_sums(m.l, fit, channel, all);
  }
};

// By all threads of block `block`, of channel tile `tile`, that has left its parts. The block's shared memory is taken for it.
template <int threads, int channels, typename Merge>
DIPENGINE_DEVICE void merge_by_blocks(const PartTree& t, const Merge& merge, int64_t fit, int tile, int block) {
  uint32_t* const tickets = t.tickets + (fit * t.channel_tiles + tile) * (t.groups + 1);
  const int group = block / t.each, first = group * t.each, here = t.blocks - first < t.each ? t.blocks - first : t.each;
  if (!cuda::last_block(tickets + group, here)) return;
  // Threads behind the last channel do as one of the tile's: other tiles' parts may not be there yet.
  const int place = tile * channels + cuda::thread_index() % channels, channel = place < merge.l.channels ? place : tile * channels;
  const bool own = cuda::thread_index() < channels && place == channel;
  Merged all = Merge::template parts<threads, channels>(merge, fit, channel, static_cast<int64_t>(first) * t.parts, here * t.parts);
  if (t.groups > 1) {
    Merged* const merged = t.merged + fit * t.groups * merge.l.channels + channel;
    if (own) merged[static_cast<int64_t>(group) * merge.l.channels] = all;
    if (!cuda::last_block(tickets + t.groups, t.groups)) return;
    all = Merge::template groups<threads, channels>(merge, merged, t.groups);
  }
  if (own) Merge::finish(merge, fit, channel, all);
}

}  // namespace dipengine
