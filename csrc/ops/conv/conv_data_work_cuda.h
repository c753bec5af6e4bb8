// What a block of a convolution's data gradient has to do: the entries that apply to its tile, how its blocks of weights are numbered,
// and where each of them lies in the stream.
#pragma once

#include "math/divide.h"
#include "ops/conv/conv_data_gradient_cuda.h"
#include "platform/cuda/copy.h"

namespace dipengine {

// Entry `index` of an axis to its place in the list of those that apply to samples [first, first + samples); the last one tells how
// many there are. Entries without gate come first, and apply.
DIPENGINE_DEVICE void choose_entry(const AxisEntries& axis, int index, int first, int samples, Applying* to) {
  const auto applies = [&](int e) {
    const int gate = axis.entry[e].gate;
    return gate < 0 || (gate >= first && gate < first + samples);
  };
  if (index == 0 && axis.count == 0) to->count = 0;
  if (index >= axis.count) return;
  int place = index < axis.plain ? index : axis.plain;
  for (int e = axis.plain; e < index; ++e) place += applies(e) ? 1 : 0;
  const bool own = applies(index);
  if (own) to->entry[place] = axis.entry[index];
  if (index == axis.count - 1) to->count = place + (own ? 1 : 0);
}

DIPENGINE_DEVICE void make_work(const DataPlan& p, int phase, int depth, Lists* lists) {
  const int vectors_y = p.y[phase / p.phases].vectors, vectors_x = p.x[phase % p.phases].vectors;
  Work w;
  w.phase = phase;
  w.columns = lists->x.count;
  w.entries = lists->y.count * w.columns;
  w.last = p.chunks - 1;
  w.products = chunk_products(p, 0, depth);
  w.last_products = chunk_products(p, w.last, depth);
  const auto rounds = [&](int blocks) { return (blocks + p.round - 1) / p.round * p.round; };
  w.chunk_blocks = rounds(w.entries * w.products);
  w.blocks = w.last * w.chunk_blocks + rounds(w.entries * w.last_products);
  w.chunk_matrices = vectors_y * vectors_x * (p.chunk / depth);
  w.matrices_x = vectors_x;
  w.by_columns = divider(w.columns > 0 ? w.columns : 1);
  w.by_chunk = divider(w.chunk_blocks > 0 ? w.chunk_blocks : 1);
  w.by_products = divider(w.products);
  w.by_last = divider(w.last_products);
  lists->work = w;
}

// Of block `block` of the work, the weights; NULL where it is one too many of a chunk. *left: how many blocks behind them are those of
// the next ones.
template <typename Tile>
DIPENGINE_DEVICE const unsigned char* weights_of(const Lists& lists, const unsigned char* stream, int block, int* left) {
  const Work& w = lists.work;
  const int chunk = w.last == 0 ? 0 : divided(block, w.by_chunk), within = block - chunk * w.chunk_blocks;
  const bool last = chunk == w.last;
  const int products = last ? w.last_products : w.products, entry = divided(within, last ? w.by_last : w.by_products);
  *left = 0;
  if (entry >= w.entries) return nullptr;
  *left = products - 1 - (within - entry * products);
  const int row = divided(entry, w.by_columns);
  const int matrix = lists.y.entry[row].vector * w.matrices_x + lists.x.entry[entry - row * w.columns].vector;
  const int at = chunk * w.chunk_matrices + matrix * products + within - entry * products;
  return stream + static_cast<int64_t>(at) * Tile::kBlockBytes;
}

// Blocks of weights to a stage: number `stage` to `slot` of the ring. Nothing behind the last.
template <typename Tile>
DIPENGINE_DEVICE void begin_stage(const Lists& lists, const unsigned char* stream, unsigned char* stages, int stage, int slot) {
  constexpr int kLanes = Tile::kBlockBytes / 16;  // threads that copy a block in one go
  unsigned char* const to = stages + slot * Tile::kStageBytes;
  const int first = stage * Tile::kStageBlocks;
  if constexpr (kLanes >= Tile::kThreads) {
    const unsigned char* from = nullptr;
    int left = 0;
    DIPENGINE_UNROLL
    for (int i = 0; i < Tile::kStageBlocks; ++i) {
      if (i > 0 && left > 0) {
        from += Tile::kBlockBytes;
        --left;
      } else {
        from = first + i < lists.work.blocks ? weights_of<Tile>(lists, stream, first + i, &left) : nullptr;
      }
      if (from == nullptr) continue;
      DIPENGINE_UNROLL
      for (int k = 0; k < kLanes / Tile::kThreads; ++k) {
        const int at = 16 * (cuda::thread_index() + k * Tile::kThreads);
        cuda::copy_async16(to + i * Tile::kBlockBytes + at, from + at);
      }
    }
  } else {
    constexpr int kAtOnce = Tile::kThreads / kLanes;  // blocks
    static_assert(Tile::kStageBlocks % kAtOnce == 0 || Tile::kStageBlocks < kAtOnce, "all threads copy alike, or the first once");
    const int at = 16 * (cuda::thread_index() % kLanes);
    DIPENGINE_UNROLL
    for (int i = 0; i < (Tile::kStageBlocks + kAtOnce - 1) / kAtOnce; ++i) {
      const int own = i * kAtOnce + cuda::thread_index() / kLanes;
      int left = 0;
      if (Tile::kStageBlocks < kAtOnce && own >= Tile::kStageBlocks) continue;
      const unsigned char* const from =
          first + own < lists.work.blocks ? weights_of<Tile>(lists, stream, first + own, &left) : nullptr;
      if (from != nullptr) cuda::copy_async16(to + own * Tile::kBlockBytes + at, from + at);
    }
  }
  cuda::copy_commit();
}

}  // namespace dipengine
