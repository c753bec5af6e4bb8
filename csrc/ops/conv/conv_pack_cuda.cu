// Packs convolutions' float32 weights into the streams of bfloat16 or tf32 operands that the CUDA kernels consume; a thread makes
// the 16 bytes of one lane.
//
// Forward, in the order of conv_cuda_plan.h: for nearest upsampling, the taps of each phase are sums of the raw ones (design 3.1):
// per axis phase 0 sees w0 at i - 1 and w1 + w2 at i, phase 1 sees w0 + w1 at i and w2 at i + 1. Summed in float32, rounded once.
//
// Of a data gradient, in the order of conv_data_gradient_cuda.h: one matrix for each pair of coefficient vectors of the two axes,
// in float32 sums of the raw taps, rounded once.
#include "ops/conv/conv_pack_cuda.h"

#include "platform/cuda/element.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

constexpr int kThreads = 256;

// Raw taps [first, last] that tap `tap` of a phase sums.
struct TapRange {
  int first, last;
};
DIPENGINE_DEVICE TapRange raw_taps(bool nearest, int phase, int tap) {
  if (!nearest) return {tap, tap};
  if (phase == 0) return tap == 0 ? TapRange{0, 0} : TapRange{1, 2};
  return tap == 0 ? TapRange{0, 1} : TapRange{2, 2};
}

// What a lane's 16 bytes are of: kHalf rows of B (Element::weight_row) of each of two products, whose outputs are to[0] and to[1].
template <typename Element>
struct Lane {
  static constexpr int kDepth = Element::kDepth, kHalf = Element::kEach / 2;
  int member, to[2];
  float sum[2][kHalf];
};
template <typename Element>
DIPENGINE_DEVICE Lane<Element> begin_lane(int lane, int group, int products_n, int first_channel) {
  Lane<Element> l{};
  l.member = lane % 4;
  DIPENGINE_UNROLL
  for (int half = 0; half < 2; ++half)
    l.to[half] = first_channel + tile_channel(products_n, group / products_n, group % products_n * 2 + half, lane / 4);
  return l;
}
template <typename Element>
DIPENGINE_DEVICE void store_lane(const Lane<Element>& l, unsigned char* to) {
  float values[Element::kEach];
  DIPENGINE_UNROLL
  for (int i = 0; i < Element::kEach; ++i) values[i] = l.sum[i / Lane<Element>::kHalf][i % Lane<Element>::kHalf];
  cuda::store16(to, Element::pack_operands(values));
}

template <typename Element>
DIPENGINE_DEVICE void pack_forward(const PackJob& job, int64_t fit, uint32_t index) {
  using Own = Lane<Element>;
  const ConvPlan& p = job.forward;
  const uint32_t groups = static_cast<uint32_t>(p.tile_channels) / 16, phases = static_cast<uint32_t>(p.phases * p.phases);
  const int group = static_cast<int>(index / 32 % groups);
  uint32_t rest = index / 32 / groups;
  const int number = static_cast<int>(rest % static_cast<uint32_t>(p.blocks));
  rest /= static_cast<uint32_t>(p.blocks);
  const int phase = static_cast<int>(rest % phases), channel_tile = static_cast<int>(rest / phases);
  Own l = begin_lane<Element>(static_cast<int>(index % 32), group, p.products_n, channel_tile * p.tile_channels);

  const SourcePlan& s = p.sources[p.sources_count == 2 && number >= p.sources[1].first_block ? 1 : 0];
  const int block = number - s.first_block, chunk = block / s.chunk_blocks, within = block % s.chunk_blocks;
  const float* weight = job.weight + fit * job.weight_fit_stride;
  if (s.gathered != 0) {
    DIPENGINE_UNROLL
    for (int i = 0; i < Own::kHalf; ++i) {
      const int row = within * Own::kDepth + Element::weight_row(l.member, i), tap = row / s.channels;
      if (tap >= s.taps * s.taps) continue;
      const int64_t at = static_cast<int64_t>(tap * p.input_channels + s.first_channel + row % s.channels) * p.channels;
      DIPENGINE_UNROLL
      for (int half = 0; half < 2; ++half) {
        if (l.to[half] < p.channels) l.sum[half][i] = weight[at + l.to[half]];
      }
    }
  } else {
    const int products = chunk_products(s, chunk, Own::kDepth), tap = within / products;
    const int channel = chunk * s.chunk + within % products * Own::kDepth;
    const bool nearest = s.upsample == DIPENGINE_UPSAMPLE_NEAREST;
    if (tap < s.taps * s.taps) {
      const TapRange y = raw_taps(nearest, phase / p.phases, tap / s.taps), x = raw_taps(nearest, phase % p.phases, tap % s.taps);
      for (int ty = y.first; ty <= y.last; ++ty) {
        for (int tx = x.first; tx <= x.last; ++tx) {
          const float* from =
              weight + static_cast<int64_t>((ty * p.kernel + tx) * p.input_channels + s.first_channel + channel) * p.channels;
          DIPENGINE_UNROLL
          for (int i = 0; i < Own::kHalf; ++i) {
            const int row = Element::weight_row(l.member, i);
            DIPENGINE_UNROLL
            for (int half = 0; half < 2; ++half) {
              if (channel + row < s.channels && l.to[half] < p.channels) l.sum[half][i] += from[row * p.channels + l.to[half]];
            }
          }
        }
      }
    }
  }
  store_lane(l, job.packed + (fit * job.lanes + index) * 16);
}

template <typename Element>
DIPENGINE_DEVICE void pack_data(const PackJob& job, int64_t fit, uint32_t index) {
  using Own = Lane<Element>;
  const uint32_t tile_lanes = static_cast<uint32_t>(job.tile_lanes), groups = static_cast<uint32_t>(job.tile_channels) / 16;
  const uint32_t channel_tile = index / tile_lanes, within_tile = index - channel_tile * tile_lanes;
  const int group = static_cast<int>(within_tile / 32 % groups), block = static_cast<int>(within_tile / 32 / groups);
  const int chunk_blocks = job.matrices * (job.chunk / Own::kDepth), chunk = block / chunk_blocks, within = block % chunk_blocks;
  const int left = job.out_channels - chunk * job.chunk,
            products = ((left < job.chunk ? left : job.chunk) + Own::kDepth - 1) / Own::kDepth;
  const int matrix = within / products, from = chunk * job.chunk + within % products * Own::kDepth;
  Own l = begin_lane<Element>(static_cast<int>(within_tile % 32), group, job.products_n,
                              static_cast<int>(channel_tile) * job.tile_channels);
  const float* weight = job.weight + fit * job.weight_fit_stride + from;
  const float *shares_y = job.y.of[matrix / job.matrices_x], *shares_x = job.x.of[matrix % job.matrices_x];
  for (int ty = 0; ty < job.kernel; ++ty) {
    const float share_y = shares_y[ty];
    if (share_y == 0) continue;
    for (int tx = 0; tx < job.kernel; ++tx) {
      const float share = share_y * shares_x[tx];
      if (share == 0) continue;
      const int64_t tap = static_cast<int64_t>((ty * job.kernel + tx) * job.input_channels + job.first_channel) * job.out_channels;
      DIPENGINE_UNROLL
      for (int half = 0; half < 2; ++half) {
        DIPENGINE_UNROLL
        for (int i = 0; i < Own::kHalf; ++i) {
          const int row = Element::weight_row(l.member, i);
          if (l.to[half] < job.channels && from + row < job.out_channels)
            l.sum[half][i] = fma(share, weight[tap + static_cast<int64_t>(l.to[half]) * job.out_channels + row], l.sum[half][i]);
        }
      }
    }
  }
  store_lane(l, job.packed + (fit * job.fit_stride + channel_tile * job.tile_stride + within_tile) * 16);
}

template <typename Element>
DIPENGINE_DEVICE void pack(const PackJob& job, const uint8_t* active, int64_t block) {
  const int64_t fit = cuda::block_y(), index = block * kThreads + cuda::thread_index();
  if (index >= job.lanes || (active != nullptr && active[fit] == 0)) return;
  if (job.is_data != 0) {
    pack_data<Element>(job, fit, static_cast<uint32_t>(index));
  } else {
    pack_forward<Element>(job, fit, static_cast<uint32_t>(index));
  }
}

struct PackLaunch {
  PackJob job;
  const uint8_t* active;
};

template <typename Element>
DIPENGINE_KERNEL(kThreads, 2)
conv_pack_kernel(DIPENGINE_PARAMS(PackLaunch) l) {
  cuda::wait_for_launches();
  cuda::let_next_begin();
  pack<Element>(l.job, l.active, cuda::block_x());
}

template <typename Element>
DIPENGINE_KERNEL(kThreads, 2)
conv_pack_all_kernel(DIPENGINE_PARAMS(PackTable) t) {
  cuda::wait_for_launches();
  cuda::let_next_begin();
  int low = 0, high = t.count - 1;  // the last job that does not begin behind the block
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (t.jobs[middle].first_block <= cuda::block_x()) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  pack<Element>(t.jobs[low], t.active, cuda::block_x() - t.jobs[low].first_block);
}

int64_t blocks_of(const PackJob& job) { return (job.lanes + kThreads - 1) / kThreads; }

dipengine_status launch_each(const dipengine_conv_cuda_params& p, const std::vector<PackJob>& jobs) {
  for (const PackJob& job : jobs) {
    DIPENGINE_TRY(cuda::with_element(p.dtype, [&](auto element) {
      return cuda::launch(conv_pack_kernel<decltype(element)>, "conv_pack", {blocks_of(job), p.fits, 1, kThreads, 0},
                          PackLaunch{job, p.active}, p.stream);
    }));
  }
  return DIPENGINE_OK;
}

PackJob begin_job(const dipengine_conv_cuda_params& p, size_t packed_at) {
  PackJob job{};
  job.weight = p.weight;
  job.weight_fit_stride = p.fits == 1 ? 0 : p.parameters_fit_stride;
  job.packed = static_cast<unsigned char*>(p.packed) + packed_at;
  return job;
}

dipengine_status check_space(const dipengine_conv_cuda_params& p, size_t needed, const char* op) {
  DIPENGINE_REQUIRE(needed == 0 || (p.weight != nullptr && p.packed != nullptr && reinterpret_cast<uintptr_t>(p.packed) % 16 == 0 &&
                                    p.packed_bytes >= needed),
                    "%s needs weight, and %zu bytes for packed, 16-byte aligned.", op, needed);
  return DIPENGINE_OK;
}

// Lanes are counted in 32 bits.
dipengine_status check_lanes(const PackJob& job, const char* op) {
  DIPENGINE_REQUIRE(job.lanes <= INT32_MAX, "%s packs up to 32 GB of weights of a layer.", op);
  return DIPENGINE_OK;
}

}  // namespace

dipengine_status add_forward_pack(const dipengine_conv_cuda_params& p, const char* op, std::vector<PackJob>* jobs) {
  PackJob job = begin_job(p, 0);
  DIPENGINE_TRY(make_conv_plan(&p, op, &job.forward));
  DIPENGINE_TRY(check_space(p, static_cast<size_t>(p.fits * packed_bytes(job.forward)), op));
  job.lanes = packed_bytes(job.forward) / 16;
  DIPENGINE_TRY(check_lanes(job, op));
  jobs->push_back(job);
  return DIPENGINE_OK;
}

dipengine_status add_data_packs(const dipengine_conv_cuda_params& p, const char* op, std::vector<PackJob>* jobs) {
  size_t packed = 0, workspace = 0;
  DIPENGINE_TRY(dipengine_conv_cuda_data_gradient_sizes(&p, &packed, &workspace));
  DIPENGINE_TRY(check_space(p, packed, op));
  return for_data_sources(&p, op, [&](const DataSource& source) {
    if (source.few) return DIPENGINE_OK;
    const DataPlan& plan = source.plan;
    const int phases = plan.phases * plan.phases;
    const int64_t block_lanes = plan.tile_channels / 16 * 32;
    for (int phase = 0; phase < phases; ++phase) {
      PackJob job = begin_job(p, source.packed_at);
      job.is_data = 1;
      job.tile_channels = plan.tile_channels;
      job.products_n = plan.products_n;
      job.chunk = plan.chunk;
      job.matrices_x = plan.x[phase % plan.phases].vectors;
      job.matrices = plan.y[phase / plan.phases].vectors * job.matrices_x;
      job.channels = plan.channels;
      job.first_channel = plan.first_channel;
      job.input_channels = plan.input_channels;
      job.out_channels = plan.out_channels;
      job.kernel = plan.kernel;
      job.tile_lanes = (plan.phase_blocks[phase + 1] - plan.phase_blocks[phase]) * block_lanes;
      job.tile_stride = plan.phase_blocks[phases] * block_lanes;
      job.fit_stride = plan.channel_tiles * job.tile_stride;
      job.packed += plan.phase_blocks[phase] * block_lanes * 16;
      job.lanes = plan.channel_tiles * job.tile_lanes;
      job.y = source.y[phase / plan.phases];
      job.x = source.x[phase % plan.phases];
      DIPENGINE_TRY(check_lanes(job, op));
      if (job.lanes > 0) jobs->push_back(job);
    }
    return DIPENGINE_OK;
  });
}

int64_t share_blocks(std::vector<PackJob>* jobs) {
  int64_t blocks = 0;
  for (PackJob& job : *jobs) {
    job.first_block = blocks;
    blocks += blocks_of(job);
  }
  return blocks;
}

dipengine_status launch_packs(const PackTable& table, int32_t dtype, int64_t fits, void* stream) {
  return cuda::with_element(dtype, [&](auto element) {
    return cuda::launch(conv_pack_all_kernel<decltype(element)>, "conv_pack_all", {table.blocks, fits, 1, kThreads, 0}, table, stream);
  });
}

}  // namespace dipengine

extern "C" {

dipengine_status dipengine_conv_cuda_pack(const dipengine_conv_cuda_params* params) {
  using namespace dipengine;
  DIPENGINE_TRY(check_struct(params, "dipengine_conv_cuda_pack"));
  std::vector<PackJob> jobs;
  DIPENGINE_TRY(add_forward_pack(*params, "dipengine_conv_cuda_pack", &jobs));
  return launch_each(*params, jobs);
}

dipengine_status dipengine_conv_cuda_data_pack(const dipengine_conv_cuda_params* params) {
  using namespace dipengine;
  DIPENGINE_TRY(check_struct(params, "dipengine_conv_cuda_data_pack"));
  std::vector<PackJob> jobs;
  DIPENGINE_TRY(add_data_packs(*params, "dipengine_conv_cuda_data_pack", &jobs));
  return launch_each(*params, jobs);
}

}  // extern "C"
