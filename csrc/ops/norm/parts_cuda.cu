// The merge of parts of a channel. Moments by T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for
// computing sample variances", 1979: sums of squares would cancel where the mean is large.
//
// In float64 and in a fixed order: 32 threads a channel take every 32nd part, then a tree merges them. Reads 8 bytes a part
// and channel.
#include "ops/norm/parts_cuda.h"

#include "ops/norm/parts_merge_cuda.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

constexpr int kChannels = 8;  // of a block: 64 contiguous bytes of a part
constexpr int kThreads = 256;

struct Moments {
  double count, mean, m2;
};

DIPENGINE_DEVICE Moments merged(const Moments& a, const Moments& b) {
  if (b.count == 0) return a;
  if (a.count == 0) return b;
  const double count = a.count + b.count, difference = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + difference * share, a.m2 + b.m2 + difference * difference * a.count * share};
}

struct Sums {
  double sum, product;
};

DIPENGINE_DEVICE Sums merged(const Sums& a, const Sums& b) { return {a.sum + b.sum, a.product + b.product}; }

// The merge of all threads' `own` of a channel, in the first kChannels threads.
template <typename T>
DIPENGINE_DEVICE T merge_block(const T& own) {
  T* shared = reinterpret_cast<T*>(cuda::shared_memory());
  const int thread = cuda::thread_index();
  shared[thread] = own;
  for (int width = kThreads / 2; width >= kChannels; width /= 2) {
    cuda::sync_threads();
    if (thread < width) shared[thread] = merged(shared[thread], shared[thread + width]);
  }
  return shared[thread];
}

DIPENGINE_KERNEL(kThreads, 2) moments_kernel(DIPENGINE_PARAMS(MomentsLaunch) p) {
  const int64_t fit = cuda::block_y();
  cuda::wait_for_launches();
  cuda::let_next_begin();
  if (p.active != nullptr && p.active[fit] == 0) return;
  const int thread = cuda::thread_index(), channel = cuda::block_x() * kChannels + thread % kChannels;
  Moments own{};
  if (channel < p.channels) {
    for (int64_t part = thread / kChannels; part < p.count; part += kThreads / kChannels) {
      const PartMoments m = p.parts[(fit * p.count + part) * p.channels + channel];
      own =
          merged(own, {static_cast<double>(part_pixels(p.pixels, part)), static_cast<double>(m.mean), static_cast<double>(m.m2)});
    }
  }
  const Moments all = merge_block(own);
  if (thread >= kChannels || channel >= p.channels) return;
  finish_moments(p, fit, channel, {{all.count, all.mean, all.m2}});
}

DIPENGINE_KERNEL(kThreads, 2) sums_kernel(DIPENGINE_PARAMS(SumsLaunch) p) {
  const int64_t fit = cuda::block_y();
  cuda::wait_for_launches();
  cuda::let_next_begin();
  if (p.active != nullptr && p.active[fit] == 0) return;
  const int thread = cuda::thread_index(), channel = cuda::block_x() * kChannels + thread % kChannels;
  Sums own{};
  if (channel < p.channels) {
    for (int64_t part = thread / kChannels; part < p.count; part += kThreads / kChannels) {
      const PartSums s = p.parts[(fit * p.count + part) * p.channels + channel];
      own = merged(own, Sums{static_cast<double>(s.sum), static_cast<double>(s.product)});
    }
  }
  const Sums all = merge_block(own);
  if (thread >= kChannels || channel >= p.channels) return;
  finish_sums(p, fit, channel, {{all.sum, all.product, 0}});
}

}  // namespace

dipengine_status launch_moments(const MomentsLaunch& launch, int64_t fits, void* stream) {
  return cuda::launch(moments_kernel, "moments",
                      {(launch.channels + kChannels - 1) / kChannels, fits, 1, kThreads, kThreads * sizeof(Moments)}, launch,
                      stream);
}

dipengine_status set_fold(const dipengine_norm_cuda_gradient* fold, const char* op, SumsLaunch* launch) {
  if (fold == nullptr) return DIPENGINE_OK;
  DIPENGINE_TRY(check_struct(fold, op));
  DIPENGINE_REQUIRE(fold->count > 0 && fold->mean != nullptr && fold->variance != nullptr && fold->a != nullptr &&
                        fold->b != nullptr && fold->c != nullptr && launch->sum != nullptr && launch->product != nullptr,
                    "%s needs sum and product of what it folds, with mean, variance, a, b and c; one of them is NULL.", op);
  launch->folds = 1;
  launch->fold = *fold;
  return DIPENGINE_OK;
}

dipengine_status launch_sums(const SumsLaunch& launch, int64_t fits, void* stream) {
  return cuda::launch(sums_kernel, "sums",
                      {(launch.channels + kChannels - 1) / kChannels, fits, 1, kThreads, kThreads * sizeof(Sums)}, launch,
                      stream);
}

}  // namespace dipengine
