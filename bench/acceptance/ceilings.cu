// What a GPU reaches, measured: products of mma.sync in bf16 and tf32 with nothing but registers, and bytes of its memory.
//
//   dipengine_ceilings        one line of JSON: operations and bytes per second, the best of several launches
//
// Products: every warp has eight sums of its own under way. Bytes: 1 GiB read and 1 GiB written (copy), 2 GiB read (read), four
// times 16 bytes a thread at once; far more than any cache holds.
#include <algorithm>
#include <cstdio>

#include "platform/cuda/copy.h"
#include "platform/cuda/launch.h"
#include "platform/cuda/tensor_core.h"

using namespace dipengine;

namespace {

constexpr int kThreads = 256, kSums = 8, kRounds = 4096, kLaunches = 7;
constexpr size_t kBytes = size_t{1} << 30;

struct ProductParams {
  float* out;  // written where a sum has become what none is, so that no product can be left out
};

template <bool tf32>
DIPENGINE_KERNEL(kThreads, 2) products_kernel(DIPENGINE_PARAMS(ProductParams) p) {
  const uint32_t lane = static_cast<uint32_t>(cuda::lane_index());
  const uint32_t a[4] = {lane, lane + 1, lane + 2, lane + 3};
  float c[kSums][4] = {};
  for (int round = 0; round < kRounds; ++round) {
    DIPENGINE_UNROLL
    for (int s = 0; s < kSums; ++s) {
      if constexpr (tf32) {
        cuda::mma_tf32(c[s], a, lane, lane + 5);
      } else {
        cuda::mma_bf16(c[s], a, lane, lane + 5);
      }
    }
  }
  float sum = 0;
  DIPENGINE_UNROLL
  for (int s = 0; s < kSums; ++s) sum += c[s][0] + c[s][1] + c[s][2] + c[s][3];
  if (sum == -1.0f) *p.out = sum;
}

struct CopyParams {
  const unsigned char* from;
  unsigned char* to;
  size_t bytes;  // a multiple of what a block takes at a time
  float* out;
};

constexpr int kAtOnce = 4;  // accesses of a thread under way
constexpr size_t kBlockBytes = size_t{kThreads} * 16 * kAtOnce;

template <bool writes>
DIPENGINE_KERNEL(kThreads, 4) bytes_kernel(DIPENGINE_PARAMS(CopyParams) p) {
  const size_t own = static_cast<size_t>(cuda::thread_index()) * 16, step = static_cast<size_t>(cuda::grid_x()) * kBlockBytes;
  uint32_t all = 0;
  for (size_t at = static_cast<size_t>(cuda::block_x()) * kBlockBytes + own; at < p.bytes; at += step) {
    cuda::Bytes16 v[kAtOnce];
    DIPENGINE_UNROLL
    for (int i = 0; i < kAtOnce; ++i) v[i] = cuda::load16_global(p.from + at + static_cast<size_t>(i) * kThreads * 16);
    DIPENGINE_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      if constexpr (writes) cuda::store16(p.to + at + static_cast<size_t>(i) * kThreads * 16, v[i]);
      all |= v[i].word[0] & v[i].word[1] & v[i].word[2] & v[i].word[3];
    }
  }
  if (all == 0x12345678u) *p.out = 1;
}

// Seconds of the fastest launch; negative where one fails.
template <typename Params>
double fastest(void (*kernel)(Params), const char* name, const cuda::Grid& grid, const Params& params) {
  cudaEvent_t before, after;
  if (cudaEventCreate(&before) != cudaSuccess || cudaEventCreate(&after) != cudaSuccess) return -1;
  double best = 1e30;
  for (int i = 0; i <= kLaunches; ++i) {
    (void)cudaEventRecord(before, nullptr);
    if (cuda::launch(kernel, name, grid, params, nullptr) != DIPENGINE_OK) return -1;
    (void)cudaEventRecord(after, nullptr);
    float milliseconds = 0;
    if (cudaEventSynchronize(after) != cudaSuccess || cudaEventElapsedTime(&milliseconds, before, after) != cudaSuccess) return -1;
    if (i > 0) best = std::min(best, 1e-3 * static_cast<double>(milliseconds));  // the first launch loads the code
  }
  return best;
}

}  // namespace

int main() {
  int device = 0, multiprocessors = 0;
  unsigned char *from = nullptr, *to = nullptr;
  float* out = nullptr;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
      cudaMalloc(&from, 2 * kBytes) != cudaSuccess || cudaMalloc(&to, kBytes) != cudaSuccess || cudaMalloc(&out, 4) != cudaSuccess ||
      cudaMemset(from, 1, 2 * kBytes) != cudaSuccess) {
    std::printf("The device cannot be measured: %s\n", cudaGetErrorString(cudaGetLastError()));
    return 1;
  }
  const cuda::Grid products{multiprocessors * 8, 1, 1, kThreads, 0}, bytes{multiprocessors * 16, 1, 1, kThreads, 0};
  const double each = static_cast<double>(products.x) * (kThreads / 32) * kSums * kRounds * 2 * 16 * 8;  // times the depth
  const double bf16 = fastest(products_kernel<false>, "products", products, ProductParams{out});
  const double tf32 = fastest(products_kernel<true>, "products", products, ProductParams{out});
  const double copy = fastest(bytes_kernel<true>, "copy", bytes, CopyParams{from, to, kBytes, out});
  const double read = fastest(bytes_kernel<false>, "read", bytes, CopyParams{from, nullptr, 2 * kBytes, out});
  if (std::min({bf16, tf32, copy, read}) <= 0) {
    std::printf("The device could not be measured: %s\n", dipengine_last_error());
    return 1;
  }
  std::printf("{\"mma_bf16\": %.6g, \"mma_tf32\": %.6g, \"copy\": %.6g, \"read\": %.6g, \"multiprocessors\": %d}\n", each * 16 / bf16,
              each * 8 / tf32, 2.0 * kBytes / copy, 2.0 * kBytes / read, multiprocessors);
  return 0;
}
