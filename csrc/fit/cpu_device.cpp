#include "fit/cpu_device.h"

#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <new>

#include "platform/error.h"

namespace dipengine {
namespace {

// Memory for an arena, in huge pages where the system gives them when asked: an iteration walks through all of it, through more small
// pages than a core keeps the addresses of.
char* allocate_block(size_t bytes) {
  constexpr size_t kHugePage = size_t{1} << 21;
  if (bytes < kHugePage) return static_cast<char*>(std::aligned_alloc(Arena::kAlign, bytes));
  const size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* block = std::aligned_alloc(kHugePage, whole);
#if defined(MADV_HUGEPAGE)
  if (block != nullptr) madvise(block, whole, MADV_HUGEPAGE);
#endif
  return static_cast<char*>(block);
}

}  // namespace

CpuDevice::CpuDevice(const dipengine_fit_params& params, Graph& graph, const SlotLayout& layout, const LoopRules& rules)
    : p_(params), graph_(graph), layout_(layout), rules_(rules), plan_(params, graph, layout) {}

CpuDevice::~CpuDevice() { std::free(arena_); }

dipengine_status CpuDevice::size() {
  slots_buffer_ = graph_.arena.add_permanent(layout_.bytes() * static_cast<size_t>(p_.slots));
  return plan_.size();
}

dipengine_status CpuDevice::allocate() {
  arena_ = allocate_block(graph_.arena.bytes());
  if (arena_ == nullptr) {
    return fail(DIPENGINE_OUT_OF_RESOURCES,
                "The fit needs %zu bytes, which could not be had; use a smaller image or fewer channels.", graph_.arena.bytes());
  }
  plan_.bind(arena_);
  slots_ = arena_ + graph_.arena.offset(slots_buffer_);
  // A slot is seen through its state, which therefore has to be there first.
  for (int32_t i = 0; i < p_.slots; ++i) new (slots_ + layout_.bytes() * static_cast<size_t>(i)) SlotState{};
  return DIPENGINE_OK;
}

float* CpuDevice::scratch() {
  has_gradients_ = false;  // their memory
  return plan_.scratch();
}

dipengine_status CpuDevice::gradients(const float** flat) {
  *flat = has_gradients_ ? plan_.gradients() : nullptr;
  return DIPENGINE_OK;
}

// ---- the loop -------------------------------------------------------------------------------------------------------

static bool asked_to_stop(const dipengine_fit_run_params& run) { return run.poll != nullptr && run.poll(run.user) != 0; }

dipengine_status CpuDevice::steps(int first, int last, const Slot& slot, const dipengine_fit_run_params& run, bool may_stop,
                                  bool* stopped) {
  using Clock = std::chrono::steady_clock;
  for (int step = first; step < last; ++step) {
    if (may_stop && asked_to_stop(run)) {
      *stopped = true;
      return DIPENGINE_OK;
    }
    const Clock::time_point begin = run.step_seconds != nullptr ? Clock::now() : Clock::time_point();
    DIPENGINE_TRY(plan_.run(step, slot));
    if (run.step_seconds != nullptr) {
      run.step_seconds[step] += std::chrono::duration<double>(Clock::now() - begin).count();
    }
  }
  return DIPENGINE_OK;
}

dipengine_status CpuDevice::iterate(const Slot& slot, const dipengine_fit_run_params& run, bool* stopped) {
  SlotState& state = slot.state();
  // Nothing of the slot has changed until the output's averages do, so up to there an iteration can be given up.
  DIPENGINE_TRY(steps(0, graph_.painted, slot, run, true, stopped));
  if (*stopped) return DIPENGINE_OK;
  DIPENGINE_TRY(steps(graph_.painted, graph_.judged, slot, run, false, stopped));
  const Turn turn = judge(rules_, state, plan_.loss());
  if (turn == Turn::give_up) return DIPENGINE_OK;
  if (turn == Turn::keep_and_learn) slot.snapshot();
  if (turn == Turn::roll_back) {
    slot.restore();
  } else {
    const int end = static_cast<int>(graph_.steps.size()) - 1;  // the last is the inspection
    DIPENGINE_TRY(steps(graph_.judged, end, slot, run, false, stopped));
    has_gradients_ = true;
    DIPENGINE_TRY(watch_slot(slot));
  }
  end_turn(rules_, state);
  return DIPENGINE_OK;
}

dipengine_status CpuDevice::watch_slot(const Slot& slot) {
  const bool measured = wants_residual(rules_, slot.state());
  double discrepancy = 0;
  if (measured) DIPENGINE_TRY(plan_.discrepancy(slot, &discrepancy));
  const Ending ending = watch(rules_, slot.state(), measured, discrepancy);
  if (ending.keeps_best) slot.keep_best();
  if (ending.returns_to_best) slot.return_to_best();
  if (ending.shows) slot.show_held();
  return DIPENGINE_OK;
}

dipengine_status CpuDevice::run(dipengine_fit_run_params& r) {
  for (int64_t turn = 0; turn < r.iterations; ++turn) {
    bool running = false;
    for (int32_t index = 0; index < p_.slots; ++index) {
      const Slot at = slot(index);
      SlotState& state = at.state();
      if (state.status != DIPENGINE_FIT_RUNNING || (r.active != nullptr && r.active[index] == 0)) continue;
      running = true;
      bool stopped = false;
      DIPENGINE_TRY(iterate(at, r, &stopped));
      if (!stopped) {
        const int64_t place = index * r.iterations + turn;
        if (r.losses != nullptr) r.losses[place] = state.loss;
        if (r.variances != nullptr) r.variances[place] = state.outputs.es_variance;
        if (r.report != nullptr) {
          dipengine_fit_progress report = progress_of(rules_, index, state);
          stopped = r.report(r.user, &report) != 0;
        }
      }
      if (stopped) {
        r.stopped = 1;
        return DIPENGINE_OK;
      }
    }
    if (!running) break;
  }
  return DIPENGINE_OK;
}

}  // namespace dipengine
