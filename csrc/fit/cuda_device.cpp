#include "fit/cuda_device.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>

#include "platform/cuda/device.h"
#include "platform/cuda/stream.h"
#include "platform/error.h"

namespace dipengine {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

constexpr double kLongestChunk = 0.05;  // seconds between looks at whether the run is to end

// The fit's device is the thread's current one for as long as this lives.
class Entered {
 public:
  explicit Entered(int device) : status_(cuda::enter_device(device, &before_)) {}
  ~Entered() {
    if (status_ == DIPENGINE_OK) cuda::leave_device(before_);
  }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;
  dipengine_status status() const { return status_; }

 private:
  int before_ = 0;
  dipengine_status status_;
};

}  // namespace

#define DIPENGINE_ENTER()                 \
  const Entered entered(p_.device_index); \
  DIPENGINE_TRY(entered.status())

dipengine_status make_cuda_device(const dipengine_fit_params& params, Graph& graph, const SlotLayout& layout, const LoopRules& rules,
                                  std::unique_ptr<FitDevice>* device) {
  device->reset(new CudaDevice(params, graph, layout, rules));
  return DIPENGINE_OK;
}

CudaDevice::CudaDevice(const dipengine_fit_params& params, Graph& graph, const SlotLayout& layout, const LoopRules& rules)
    : p_(params), graph_(graph), layout_(layout), rules_(rules), plan_(params, graph, layout, rules) {}

CudaDevice::~CudaDevice() {
  if (stream_ == nullptr && arena_ == nullptr) return;
  const Entered entered(p_.device_index);
  if (iteration_ != nullptr) cuda::forget(iteration_);
  for (void* stream : beside_) {
    if (stream != nullptr) cuda::close_stream(stream);
  }
  if (stream_ != nullptr) cuda::close_stream(stream_);
  if (arena_ != nullptr) cuda::release(arena_);
}

dipengine_status CudaDevice::size() {
  DIPENGINE_ENTER();
  return plan_.size();
}

dipengine_status CudaDevice::allocate() {
  DIPENGINE_ENTER();
  const size_t slots = static_cast<size_t>(p_.slots);
  int64_t largest = layout_.trainable();
  for (const ParameterSpec& spec : graph_.specs) largest = std::max(largest, spec.size());
  states_.assign(slots, SlotState{});
  before_.assign(slots, 0);
  wanted_.assign(slots, 0);
  losses_.assign(slots * kHistory, 0);
  variances_.assign(slots * kHistory, 0);
  scratch_.assign(static_cast<size_t>(largest), 0);
  channel_numbers_.assign(static_cast<size_t>(plan_.channel_numbers_count()), 0);
  for (auto* block : {&block_, &spread_}) {
    block->reset(static_cast<char*>(std::aligned_alloc(Arena::kAlign, layout_.bytes())));
    if (*block == nullptr) throw std::bad_alloc();
    std::memset(block->get(), 0, layout_.bytes());
  }
  new (block_.get()) SlotState{};
  DIPENGINE_TRY(cuda::allocate(graph_.arena.bytes(), &arena_));
  DIPENGINE_TRY(cuda::open_stream(&stream_));
  for (void*& stream : beside_) DIPENGINE_TRY(cuda::open_stream(&stream));
  DIPENGINE_TRY(plan_.bind(arena_, stream_));
  DIPENGINE_TRY(record());
  return cuda::wait(stream_);
}

dipengine_status CudaDevice::record() {
  const auto launches = [this]() -> dipengine_status {
    for (int step = 0; step < static_cast<int>(graph_.steps.size()); ++step) DIPENGINE_TRY(plan_.launch(step));
    return DIPENGINE_OK;
  };
  if (plan_.branches()) plan_.branch_to(beside_);
  const dipengine_status recorded = cuda::record(stream_, launches, &iteration_);
  plan_.stay_on(stream_);
  return recorded;
}

dipengine_status CudaDevice::upload(void* to, const void* from, size_t bytes) const {
  return cuda::upload(to, from, bytes, stream_);
}

dipengine_status CudaDevice::download(void* to, const void* from, size_t bytes) const {
  return cuda::download(to, from, bytes, stream_);
}

// ---- slots ----------------------------------------------------------------------------------------------------------

CudaDevice::Rows CudaDevice::rows_of(SlotArrays::Name name, const Extent& extent) const {
  const Extent& largest = layout_.largest();
  const int64_t channels = p_.generator.output_channels, size = layout_.places(extent).sizes[name];
  switch (name) {
    case SlotArrays::target: return {extent.data_height, extent.data_width * channels, largest.data_width * channels};
    case SlotArrays::mask: return {extent.data_height, extent.data_width, largest.data_width};
    case SlotArrays::held:
      if (size > 0) return {extent.data_height, extent.data_width, largest.data_width};
      break;
    case SlotArrays::average:
    case SlotArrays::es_mean:
    case SlotArrays::snapshot_average:
    case SlotArrays::snapshot_es_mean:
    case SlotArrays::best_average:
      if (size > 0) return {extent.height, extent.width * channels, largest.width * channels};
      break;
    default: break;
  }
  return {1, size, size};
}

float* CudaDevice::array(int32_t index, SlotArrays::Name name) const {
  return plan_.block(index) + layout_.places(layout_.largest()).offsets[name] / sizeof(float);
}

// Calls copy(name, own, spread, elements) for every row of the slot's arrays: in its own block, whose places are those of its
// image, and in one as the device has it, whose places and rows are those of the largest.
template <typename Copy>
void CudaDevice::each_row(const Slot& own, const Copy& copy) const {
  const SlotLayout::Places places = layout_.places(layout_.largest());
  for (int i = 0; i < SlotArrays::count; ++i) {
    const auto name = static_cast<SlotArrays::Name>(i);
    const Rows rows = rows_of(name, own.state().extent);
    float* const spread = reinterpret_cast<float*>(spread_.get() + places.offsets[name]);
    for (int64_t y = 0; y < rows.count; ++y) copy(name, own.array(name) + y * rows.length, spread + y * rows.stride, rows.length);
  }
}

// On the device every slot has a mask, so that one kernel serves slots with and without: of ones where it has none.
dipengine_status CudaDevice::fetch(int32_t index) {
  if (state(index).status == DIPENGINE_FIT_IDLE) return DIPENGINE_OK;
  DIPENGINE_ENTER();
  DIPENGINE_TRY(download(spread_.get(), plan_.block(index), layout_.bytes()));
  std::memset(block_.get(), 0, layout_.places(state(index).extent).bytes);  // what lies between arrays, too
  new (block_.get()) SlotState(state(index));
  const bool masked = state(index).has_mask != 0;
  each_row(slot(index), [&](SlotArrays::Name name, float* own, const float* spread, int64_t count) {
    if (name != SlotArrays::mask || masked) std::copy_n(spread, count, own);
  });
  return DIPENGINE_OK;
}

dipengine_status CudaDevice::store(int32_t index) {
  DIPENGINE_ENTER();
  const Slot at = slot(index);
  const bool masked = at.state().has_mask != 0;
  each_row(at, [&](SlotArrays::Name name, const float* own, float* spread, int64_t count) {
    if (name == SlotArrays::mask && !masked) {
      std::fill_n(spread, count, 1.0f);
    } else {
      std::copy_n(own, count, spread);
    }
  });
  DIPENGINE_TRY(upload(plan_.block(index), spread_.get(), layout_.bytes()));
  DIPENGINE_TRY(cuda::wait(stream_));
  state(index) = at.state();
  return DIPENGINE_OK;
}

// ---- arrays of the caller's that are on the device already ----------------------------------------------------------

dipengine_status CudaDevice::holds(const void* array, bool* there) const {
  *there = false;
  if (array == nullptr) return DIPENGINE_OK;
  DIPENGINE_ENTER();
  int device = cuda::kHost;
  DIPENGINE_TRY(cuda::memory_of(array, &device));
  DIPENGINE_REQUIRE(device == cuda::kHost || device == p_.device_index,
                    "An array lies on CUDA device %d and the fit on device %d; bring it there, or to the host's memory.", device,
                    p_.device_index);
  *there = device != cuda::kHost;
  return DIPENGINE_OK;
}

dipengine_status CudaDevice::look(const float* values, int64_t count, Census* found) {
  DIPENGINE_ENTER();
  // Where losses are kept, which nobody reads between two runs.
  static_assert(kCensusBlocks * sizeof(Census) <= kHistory * sizeof(double));
  Census parts[kCensusBlocks];
  auto* const there = reinterpret_cast<Census*>(plan_.numbers().losses);
  DIPENGINE_TRY(launch_census(values, count, there, stream_));
  DIPENGINE_TRY(download(parts, there, sizeof(parts)));
  *found = {};
  for (const Census& part : parts) {
    found->finite += part.finite;
    found->zeros += part.zeros;
    found->ones += part.ones;
  }
  return DIPENGINE_OK;
}

dipengine_status CudaDevice::bring(int32_t index, SlotArrays::Name name, const float* values) {
  DIPENGINE_ENTER();
  const Rows rows = rows_of(name, state(index).extent);
  DIPENGINE_TRY(cuda::copy_rows({array(index, name), rows.stride}, {values, rows.length}, rows.count, rows.length, stream_));
  return cuda::wait(stream_);
}

dipengine_status CudaDevice::give(int32_t index, SlotArrays::Name name, float* values) {
  DIPENGINE_ENTER();
  const Rows rows = rows_of(name, state(index).extent);
  DIPENGINE_TRY(cuda::copy_rows({values, rows.length}, {array(index, name), rows.stride}, rows.count, rows.length, stream_));
  return cuda::wait(stream_);
}

float* CudaDevice::scratch() {
  total_at_start_ = total_;
  return scratch_.data();
}

// ---- the loop -------------------------------------------------------------------------------------------------------

dipengine_status CudaDevice::turns(int64_t count, double* step_seconds) {
  for (int64_t turn = 0; turn < count; ++turn) {
    if (step_seconds == nullptr) {
      DIPENGINE_TRY(cuda::replay(iteration_, stream_));
      continue;
    }
    // Step by step, with a wait behind each: slower as a whole, and each with the time of a launch.
    for (int step = 0; step < static_cast<int>(graph_.steps.size()); ++step) {
      const Clock::time_point begin = Clock::now();
      DIPENGINE_TRY(plan_.launch(step));
      DIPENGINE_TRY(cuda::wait(stream_));
      step_seconds[step] += seconds_since(begin);
    }
  }
  return DIPENGINE_OK;
}

// Some turns, and what the host is told of them.
dipengine_status CudaDevice::advance(const Chunk& chunk, dipengine_fit_run_params& r) {
  const FitNumbers& of = plan_.numbers();
  const size_t slots = states_.size();
  const TurnCount count{0, chunk.turns, total_};
  DIPENGINE_TRY(upload(of.count, &count, sizeof(count)));
  DIPENGINE_TRY(turns(chunk.turns, r.step_seconds));
  total_ += chunk.turns;
  DIPENGINE_TRY(download(states_.data(), of.states, slots * sizeof(SlotState)));
  const auto history = [&](double* to, std::vector<double>& own, const double* from) -> dipengine_status {
    if (to == nullptr) return DIPENGINE_OK;
    DIPENGINE_TRY(download(own.data(), from, own.size() * sizeof(double)));
    for (size_t i = 0; i < slots; ++i) {
      const double* first = own.data() + i * kHistory;
      std::copy_n(first, states_[i].iteration - before_[i], to + static_cast<int64_t>(i) * r.iterations + chunk.done);
    }
    return DIPENGINE_OK;
  };
  DIPENGINE_TRY(history(r.losses, losses_, of.losses));
  DIPENGINE_TRY(history(r.variances, variances_, of.variances));
  for (size_t i = 0; i < slots; ++i) {
    if (states_[i].iteration == before_[i]) continue;
    before_[i] = states_[i].iteration;
    if (r.report == nullptr) continue;
    const dipengine_fit_progress progress = progress_of(rules_, static_cast<int32_t>(i), states_[i]);
    if (r.report(r.user, &progress) != 0) r.stopped = 1;
  }
  return DIPENGINE_OK;
}

dipengine_status CudaDevice::run(dipengine_fit_run_params& r) {
  DIPENGINE_ENTER();
  const FitNumbers& of = plan_.numbers();
  const size_t slots = states_.size();
  for (size_t i = 0; i < slots; ++i) {
    wanted_[i] = r.active == nullptr || r.active[i] != 0;
    before_[i] = states_[i].iteration;
  }
  DIPENGINE_TRY(upload(of.states, states_.data(), slots * sizeof(SlotState)));
  DIPENGINE_TRY(upload(of.wanted, wanted_.data(), slots));
  const auto runs = [&](size_t i) { return wanted_[i] != 0 && states_[i].status == DIPENGINE_FIT_RUNNING; };
  Chunk chunk{0, 1};  // a report is of one iteration; else as many turns as take less than a moment
  while (chunk.done < r.iterations && r.stopped == 0) {
    bool running = false;
    for (size_t i = 0; i < slots; ++i) running = running || runs(i);
    if (!running) break;
    if (r.poll != nullptr && r.poll(r.user) != 0) {
      r.stopped = 1;
      break;
    }
    chunk.turns = std::min(chunk.turns, r.iterations - chunk.done);
    const Clock::time_point begin = Clock::now();
    DIPENGINE_TRY(advance(chunk, r));
    chunk.done += chunk.turns;
    if (r.report == nullptr && seconds_since(begin) < kLongestChunk / 2) chunk.turns = std::min(2 * chunk.turns, kHistory);
  }
  return DIPENGINE_OK;
}

// ---- what comes of it -----------------------------------------------------------------------------------------------

dipengine_status CudaDevice::forward(int32_t index) {
  const FitNumbers& of = plan_.numbers();
  const SlotState& s = state(index);
  std::vector<uint8_t> active(states_.size(), 0);
  active[static_cast<size_t>(index)] = 1;
  const uint32_t iteration = 0;  // of a perturbation that is none
  const int64_t size[] = {s.extent.height, s.extent.width * p_.generator.output_channels};
  DIPENGINE_TRY(upload(of.active, active.data(), active.size()));
  DIPENGINE_TRY(upload(of.seeds + index, &s.seed, sizeof(s.seed)));
  DIPENGINE_TRY(upload(of.code_seeds + index, &s.code_seed, sizeof(s.code_seed)));
  DIPENGINE_TRY(upload(of.iterations + index, &iteration, sizeof(iteration)));
  DIPENGINE_TRY(upload(of.painted + 2 * index, size, sizeof(size)));
  return plan_.launch_forward();
}

dipengine_status CudaDevice::render(int32_t index, float* image) {
  DIPENGINE_ENTER();
  DIPENGINE_TRY(forward(index));
  DIPENGINE_TRY(plan_.launch_image());
  const Extent& extent = state(index).extent;
  const int64_t row = extent.width * p_.generator.output_channels, stride = p_.width * p_.generator.output_channels;
  bool there = false;
  DIPENGINE_TRY(holds(image, &there));
  if (there) {
    DIPENGINE_TRY(cuda::copy_rows({image, row}, {plan_.image(index), stride}, extent.height, row, stream_));
    return cuda::wait(stream_);
  }
  const float* painted = reinterpret_cast<const float*>(spread_.get());
  DIPENGINE_TRY(download(spread_.get(), plan_.image(index), static_cast<size_t>(extent.height * stride) * sizeof(float)));
  for (int64_t y = 0; y < extent.height; ++y) std::copy_n(painted + y * stride, row, image + y * row);
  return DIPENGINE_OK;
}

dipengine_status CudaDevice::statistics(int32_t index, float* flat) {
  DIPENGINE_ENTER();
  DIPENGINE_TRY(forward(index));
  DIPENGINE_TRY(download(channel_numbers_.data(), plan_.channel_numbers(index), channel_numbers_.size() * sizeof(float)));
  std::vector<float*> places;
  for (const ParameterSpec& spec : graph_.specs) {
    places.push_back(flat);
    flat = std::fill_n(flat, spec.size(), 0.0f);
  }
  // Mean and variance are the first of every six (graph.h).
  const auto put = [&](int gamma, int beta, int64_t first, int64_t channels, int64_t numbers) {
    std::copy_n(channel_numbers_.data() + numbers, channels, places[static_cast<size_t>(gamma)] + first);
    std::copy_n(channel_numbers_.data() + numbers + channels, channels, places[static_cast<size_t>(beta)] + first);
  };
  for (const Node& node : graph_.nodes) {
    if (node.gamma >= 0) put(node.gamma, node.beta, 0, node.channels, node.numbers);
  }
  for (const Unit& unit : graph_.units) {
    for (const Part& part : unit.parts) {
      if (part.merged_first < 0) continue;
      put(unit.merge_gamma, unit.merge_beta, part.merged_first, graph_.nodes[static_cast<size_t>(part.node)].channels, part.numbers);
    }
  }
  return DIPENGINE_OK;
}

dipengine_status CudaDevice::gradients(const float** flat) {
  *flat = nullptr;
  DIPENGINE_ENTER();
  std::vector<int64_t> learnt(states_.size());
  DIPENGINE_TRY(download(learnt.data(), plan_.numbers().learnt, learnt.size() * sizeof(int64_t)));
  // The last of those that learnt in the last turn, as slots in turn would have it.
  size_t last = 0;
  for (size_t i = 1; i < learnt.size(); ++i) last = learnt[i] >= learnt[last] ? i : last;
  if (learnt[last] <= total_at_start_) return DIPENGINE_OK;
  DIPENGINE_TRY(download(scratch_.data(), plan_.gradients(static_cast<int32_t>(last)),
                         static_cast<size_t>(layout_.trainable()) * sizeof(float)));
  *flat = scratch_.data();
  return DIPENGINE_OK;
}

}  // namespace dipengine
