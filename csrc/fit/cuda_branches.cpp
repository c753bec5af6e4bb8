// The branches of an iteration on a CUDA device: what runs beside what, which buffers that keeps apart, and the tickets of launches that
// may run at the same time.
#include <algorithm>

#include "fit/cuda_plan.h"
#include "platform/cuda/device.h"
#include "platform/error.h"

namespace dipengine {

// Two as one, so that the difference of their memory is that of a slot.
constexpr int32_t kMostBranchedSlots = 2;
int64_t most_branched_pixels = int64_t{512} * 512;

bool CudaPlan::has_branches() const {
  // On another branch somebody may still read the raw that an operand, or a gradient, takes the place of.
  for (const Unit& unit : graph_.units) {
    if (unit.operand_again != unit.operand) return false;
  }
  return !graph_.over_raw && p_.slots <= kMostBranchedSlots && graph_.height * graph_.width <= most_branched_pixels;
}

// Work on a branch may begin as soon as it was put behind another, and end as late as it is waited for: until then what it uses is
// nobody else's. Forward that is the loss; in the backward pass the update.
void CudaPlan::live_on_branches() {
  const int end = static_cast<int>(graph_.steps.size()), first = graph_.judged;
  for (int& buffer : weights_buffers_) {
    buffer = graph_.arena.add_once(most_products_);
    live(buffer, first, end);
  }
  graph_.arena.use(graph_.nodes[0].raw, graph_.judged);
  graph_.arena.use(graph_.d_logits, end);
  for (const Node& node : graph_.nodes) {
    live(node.raw_again, first, end);
    if (node.gradient >= 0) live(node.gradient, first, end);
  }
  for (const Unit& unit : graph_.units) {
    if (unit.operand_again >= 0) graph_.arena.use(unit.operand_again, end);
    if (unit.mean) {
      graph_.arena.use(unit.wide_weight, end);
      live(unit.wide_gradient, first, end);
    }
    const size_t index = static_cast<size_t>(&unit - graph_.units.data());
    if (packing_[0].buffers[index] >= 0) live(packing_[0].buffers[index], 0, first);
    if (packing_[1].buffers[index] >= 0) live(packing_[1].buffers[index], 0, end);
  }
}

void CudaPlan::live(int buffer, int from, int to) {
  graph_.arena.use(buffer, from);
  graph_.arena.use(buffer, to);
}

void CudaPlan::stay_on(void* stream) {
  stream_ = stream;
  for (void*& branch : streams_) branch = stream;
}

void CudaPlan::branch_to(const std::array<void*, kBeside>& streams) {
  std::copy(streams.begin(), streams.end(), streams_ + kSkips);
}

dipengine_status CudaPlan::put_behind(Branch branch, Branch before) const {
  return streams_[branch] == streams_[before] ? DIPENGINE_OK : cuda::wait_for(streams_[branch], streams_[before]);
}

bool CudaPlan::is_skip(const Part& part) const {
  return graph_.nodes[static_cast<size_t>(part.node)].skip;
}

CudaPlan::Branch CudaPlan::home_of(const Unit& unit) const {
  return unit.node >= 0 && graph_.nodes[static_cast<size_t>(unit.node)].skip ? kSkips : kMain;
}

void CudaPlan::take_tickets(int step, int64_t count) {
  std::array<int64_t, 2>& first = first_ticket_[static_cast<size_t>(step)];
  for (int64_t& at : first) {
    at = tickets_count_;
    tickets_count_ += count;
  }
}

uint32_t* CudaPlan::tickets(int step, Branch branch) const {
  return at<uint32_t>(tickets_buffer_) + first_ticket_[static_cast<size_t>(step)][branch == kMain ? 0 : 1];
}

}  // namespace dipengine
