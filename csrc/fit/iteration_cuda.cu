// The decisions of an iteration for all fits, a thread a fit; copies of a fit's arrays, 16 bytes a thread and round, bound by
// memory and taken in one iteration of twenty; zeros around an image.
#include "fit/iteration_cuda.h"

#include "platform/cuda/copy.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

constexpr int kThreads = 128;
constexpr int kCopyThreads = 256;
constexpr int64_t kMostCopyBlocks = 256;  // of a fit: with several rounds each they fill a device

// Calls then(fit) for the thread's fits. Two neighbours are one thread's: their flags are bytes, and the emulator watches two at a
// time.
template <typename Then>
DIPENGINE_DEVICE void each_fit(int64_t fits, const Then& then) {
  for (int64_t first = 2 * cuda::thread_index(); first < fits; first += 2 * kThreads) {
    then(first);
    if (first + 1 < fits) then(first + 1);
  }
}

DIPENGINE_KERNEL(kThreads, 1) turn_begin_kernel(DIPENGINE_PARAMS(TurnLaunch) l) {
  const FitNumbers& of = l.of;
  cuda::wait_for_launches();
  cuda::let_next_begin();
  const bool more = of.count->turn < of.count->turns;
  each_fit(l.fits, [&](int64_t f) {
    const SlotState& s = of.states[f];
    const bool active = more && of.wanted[f] != 0 && s.status == DIPENGINE_FIT_RUNNING;
    of.active[f] = active;
    of.learns[f] = of.looks[f] = of.shows[f] = 0;
    of.copies[f] = kCopyNothing;
    if (!active) return;
    of.seeds[f] = s.seed;
    of.code_seeds[f] = s.code_seed;
    of.iterations[f] = static_cast<uint32_t>(s.iteration);
    of.frames[f] = s.outputs.frames;
    of.es_variance[f] = s.outputs.es_variance;
    of.known[f] = s.known;
    of.painted[2 * f] = s.extent.height;
    of.painted[2 * f + 1] = s.extent.width * l.channels;
    of.measured[2 * f] = s.extent.data_height;
    of.measured[2 * f + 1] = s.extent.data_width * l.channels;
    of.pixels[f] = static_cast<double>(s.extent.data_height * s.extent.data_width * l.channels);
  });
}

DIPENGINE_KERNEL(kThreads, 1) turn_judge_kernel(DIPENGINE_PARAMS(TurnLaunch) l) {
  const FitNumbers& of = l.of;
  cuda::wait_for_launches();
  cuda::let_next_begin();
  each_fit(l.fits, [&](int64_t f) {
    if (of.active[f] == 0) return;
    SlotState& s = of.states[f];
    s.outputs.es_variance = of.es_variance[f];
    s.outputs.frames = of.frames[f];
    const Turn turn = judge(l.rules, s, of.loss[f]);
    const bool learns = turn == Turn::learn || turn == Turn::keep_and_learn;
    of.learns[f] = learns;
    of.looks[f] = learns && wants_residual(l.rules, s);
    of.copies[f] = turn == Turn::keep_and_learn ? kKeep : turn == Turn::roll_back ? kReturn : kCopyNothing;
    of.updates[f] = s.step + 1;
    of.learning_rate[f] = s.learning_rate;
  });
}

DIPENGINE_KERNEL(kThreads, 1) turn_end_kernel(DIPENGINE_PARAMS(TurnLaunch) l) {
  const FitNumbers& of = l.of;
  cuda::wait_for_launches();
  cuda::let_next_begin();
  const int64_t turn = of.count->turn, total = of.count->total;
  each_fit(l.fits, [&](int64_t f) {
    if (of.active[f] == 0) return;
    SlotState& s = of.states[f];
    Ending ending{false, false, false};
    if (of.learns[f] != 0) {
      ++s.step;
      of.learnt[f] = total + 1;
      const bool measured = of.looks[f] != 0;
      ending = watch(l.rules, s, measured, measured ? of.residual[f] / s.noise_variance : 0.0);
    }
    of.copies[f] = ending.keeps_best ? kKeep : ending.returns_to_best ? kReturn : kCopyNothing;
    of.shows[f] = ending.shows;
    // Nothing ends a fit that has failed, or stopped, a second time.
    end_turn(l.rules, s);
    of.losses[f * kHistory + turn % kHistory] = s.loss;
    of.variances[f * kHistory + turn % kHistory] = s.outputs.es_variance;
  });
  cuda::sync_threads();
  if (cuda::thread_index() == 0) {
    of.count->turn = turn + 1;
    of.count->total = total + 1;
  }
}

DIPENGINE_KERNEL(kCopyThreads, 4) turn_copy_kernel(DIPENGINE_PARAMS(CopyLaunch) l) {
  const int64_t fit = cuda::block_y();
  cuda::wait_for_launches();
  cuda::let_next_begin();
  const int32_t copies = l.copies[fit];
  float* const block = l.blocks + fit * l.fit_stride;
  if (l.shows != nullptr && l.shows[fit] != 0) {
    float* const mask = block + l.shown.live;
    const float* held = block + l.shown.kept;
    const int64_t step = static_cast<int64_t>(cuda::grid_x()) * kCopyThreads;
    for (int64_t e = static_cast<int64_t>(cuda::block_x()) * kCopyThreads + cuda::thread_index(); e < l.shown.count; e += step) {
      mask[e] += held[e];
    }
  }
  if (copies == kCopyNothing) return;
  for (int i = 0; i < l.pairs_count; ++i) {
    const ArrayPair& pair = l.pairs[i];
    const float* from = block + (copies == kKeep ? pair.live : pair.kept);
    float* to = block + (copies == kKeep ? pair.kept : pair.live);
    const int64_t step = static_cast<int64_t>(cuda::grid_x()) * kCopyThreads * 4;
    for (int64_t e = (static_cast<int64_t>(cuda::block_x()) * kCopyThreads + cuda::thread_index()) * 4; e < pair.count; e += step) {
      if (e + 4 <= pair.count) {
        cuda::store16(to + e, cuda::load16(from + e));
        continue;
      }
      for (int64_t j = e; j < pair.count; ++j) to[j] = from[j];  // behind the trainable parameters the dead ones follow at once
    }
  }
}

DIPENGINE_KERNEL(kCopyThreads, 4) turn_margin_kernel(DIPENGINE_PARAMS(MarginLaunch) l) {
  const int64_t fit = cuda::block_y();
  cuda::wait_for_launches();
  cuda::let_next_begin();
  if (l.active[fit] == 0) return;
  const int64_t index = static_cast<int64_t>(cuda::block_x()) * kCopyThreads + cuda::thread_index(), y = index / l.row;
  if (y >= l.rows) return;
  if (y >= l.sizes[2 * fit] || index % l.row >= l.sizes[2 * fit + 1]) l.image[fit * l.fit_stride + index] = 0;
}

template <typename T>
void place(T** array, unsigned char** at, int64_t count) {
  *array = reinterpret_cast<T*>(*at);
  *at += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
}

unsigned char* place_all(FitNumbers* n, unsigned char* base, int64_t fits) {
  unsigned char* at = base;
  place(&n->states, &at, fits);
  place(&n->count, &at, 1);
  for (uint64_t** a : {&n->seeds, &n->code_seeds}) place(a, &at, fits);
  for (int64_t** a : {&n->updates, &n->frames, &n->learnt, &n->unread}) place(a, &at, fits);
  for (double** a : {&n->learning_rate, &n->es_variance, &n->loss, &n->pixels, &n->known, &n->residual, &n->scale, &n->shift,
                     &n->read_variance}) {
    place(a, &at, fits);
  }
  for (double** a : {&n->losses, &n->variances}) place(a, &at, fits * kHistory);
  for (int64_t** a : {&n->painted, &n->measured}) place(a, &at, fits * 2);
  place(&n->iterations, &at, fits);
  place(&n->copies, &at, fits);
  for (uint8_t** a : {&n->wanted, &n->active, &n->learns, &n->looks, &n->shows}) place(a, &at, fits);
  return at;
}

}  // namespace

FitNumbers fit_numbers_at(void* base, int64_t fits) {
  FitNumbers n{};
  place_all(&n, static_cast<unsigned char*>(base), fits);
  return n;
}

size_t fit_numbers_bytes(int64_t fits) {
  FitNumbers n{};
  unsigned char* const base = reinterpret_cast<unsigned char*>(uintptr_t{64});  // never followed
  return static_cast<size_t>(place_all(&n, base, fits) - base);
}

dipengine_status launch_begin(const TurnLaunch& launch, void* stream) {
  return cuda::launch(turn_begin_kernel, "turn_begin", {1, 1, 1, kThreads, 0}, launch, stream);
}

dipengine_status launch_judge(const TurnLaunch& launch, void* stream) {
  return cuda::launch(turn_judge_kernel, "turn_judge", {1, 1, 1, kThreads, 0}, launch, stream);
}

dipengine_status launch_end(const TurnLaunch& launch, void* stream) {
  return cuda::launch(turn_end_kernel, "turn_end", {1, 1, 1, kThreads, 0}, launch, stream);
}

dipengine_status launch_copies(const CopyLaunch& launch, int64_t fits, void* stream) {
  int64_t most = 1;
  for (int i = 0; i < launch.pairs_count; ++i) most = launch.pairs[i].count > most ? launch.pairs[i].count : most;
  const int64_t blocks = (most + 4 * kCopyThreads - 1) / (4 * kCopyThreads);
  return cuda::launch(turn_copy_kernel, "turn_copy", {blocks < kMostCopyBlocks ? blocks : kMostCopyBlocks, fits, 1, kCopyThreads, 0},
                      launch, stream);
}

dipengine_status launch_margin(const MarginLaunch& launch, int64_t fits, void* stream) {
  return cuda::launch(turn_margin_kernel, "turn_margin",
                      {(launch.rows * launch.row + kCopyThreads - 1) / kCopyThreads, fits, 1, kCopyThreads, 0}, launch, stream);
}

}  // namespace dipengine
