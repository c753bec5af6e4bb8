// The moments of a convolution's output from those of its parts, and the fold of the BatchNorm behind it.
//
// T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979. In
// float64 and in a fixed order: 32 threads a channel take every 32nd part, then a tree merges them. Reads 8 bytes a part and channel.
#include "ops/conv/conv_cuda_plan.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

constexpr int kChannels = 8;  // of a block: 64 contiguous bytes of a part
constexpr int kThreads = 256;

struct MomentsLaunch {
  ConvPlan plan;
  const PartMoments* parts;
  const uint8_t* active;
  int64_t numbers_fit_stride;
  float *mean, *variance;
  const float *gamma, *beta;
  double eps;
  float *scale, *shift;
};

struct Moments {
  double count, mean, m2;
};

DIPENGINE_DEVICE Moments merged(const Moments& a, const Moments& b) {
  if (b.count == 0) return a;
  if (a.count == 0) return b;
  const double count = a.count + b.count, difference = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + difference * share, a.m2 + b.m2 + difference * difference * a.count * share};
}

DIPENGINE_KERNEL(kThreads, 2) conv_moments_kernel(DIPENGINE_PARAMS(MomentsLaunch) p) {
  const int64_t fit = cuda::block_y();
  if (p.active != nullptr && p.active[fit] == 0) return;
  Moments* shared = reinterpret_cast<Moments*>(cuda::shared_memory());
  const int thread = cuda::thread_index(), channel = cuda::block_x() * kChannels + thread % kChannels;
  const int64_t parts = conv_parts(p.plan);
  Moments own{};
  if (channel < p.plan.channels) {
    for (int64_t part = thread / kChannels; part < parts; part += kThreads / kChannels) {
      const PartMoments m = p.parts[(fit * parts + part) * p.plan.channels + channel];
      own = merged(own, {static_cast<double>(part_pixels(p.plan, part)), static_cast<double>(m.mean), static_cast<double>(m.m2)});
    }
  }
  shared[thread] = own;
  for (int width = kThreads / 2; width >= kChannels; width /= 2) {
    cuda::sync_threads();
    if (thread < width) shared[thread] = merged(shared[thread], shared[thread + width]);
  }
  if (thread >= kChannels || channel >= p.plan.channels) return;
  const Moments all = shared[thread];
  const double variance = all.m2 / all.count;
  const int64_t at = fit * p.numbers_fit_stride + channel;
  p.mean[at] = static_cast<float>(all.mean);
  p.variance[at] = static_cast<float>(variance);
  if (p.scale == nullptr) return;
  const double scale = (p.gamma == nullptr ? 1.0 : static_cast<double>(p.gamma[at])) / square_root(variance + p.eps);
  p.scale[at] = static_cast<float>(scale);
  p.shift[at] = static_cast<float>((p.beta == nullptr ? 0.0 : static_cast<double>(p.beta[at])) - all.mean * scale);
}

}  // namespace

dipengine_status launch_conv_moments(const dipengine_conv_cuda_params& params, const ConvPlan& plan) {
  const MomentsLaunch launch = {plan, static_cast<const PartMoments*>(params.workspace), params.active,
                                params.fits == 1 ? 0 : params.numbers_fit_stride, params.mean, params.variance, params.gamma, params.beta,
                                params.eps, params.scale, params.shift};
  return cuda::launch(conv_moments_kernel, "conv_moments",
                      {(plan.channels + kChannels - 1) / kChannels, params.fits, 1, kThreads, kThreads * sizeof(Moments)}, launch, params.stream);
}

}  // namespace dipengine
