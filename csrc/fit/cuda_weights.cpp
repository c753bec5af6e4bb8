// The part of an iteration on a CUDA device that packs weights for both passes.
#include "fit/cuda_plan.h"
#include "platform/cuda/device.h"
#include "platform/error.h"

namespace dipengine {

// Weights change between iterations alone: all are packed at its beginning, by one launch for each pass.
dipengine_status CudaPlan::size_weights() {
  for (bool backward : {false, true}) packing_[backward ? 1 : 0].buffers.assign(graph_.units.size(), -1);
  for (int step = 0; step < static_cast<int>(graph_.steps.size()); ++step) {
    const Step& s = graph_.steps[static_cast<size_t>(step)];
    const bool backward = s.kind == StepKind::backward;
    if (!backward && s.kind != StepKind::forward) continue;
    const Unit& unit = graph_.units[static_cast<size_t>(s.unit)];
    Conv conv;
    begin_conv(unit, backward, &conv);
    size_t bytes = 0, unused = 0, joint = 0;
    if (backward) DIPENGINE_TRY(size_joint(unit, conv.params, &joint));
    if (joint > 0) continue;  // by weights that are not packed
    DIPENGINE_TRY(backward ? dipengine_conv_cuda_data_gradient_sizes(&conv.params, &bytes, &unused)
                           : dipengine_conv_cuda_packed_bytes(&conv.params, &bytes));
    if (unit.mean) graph_.arena.use(unit.wide_weight, 0);
    if (bytes == 0) continue;
    const int buffer = packing_[backward ? 1 : 0].buffers[static_cast<size_t>(s.unit)] = graph_.arena.add_once(bytes);
    live(buffer, 0, step);
  }
  for (bool backward : {false, true}) {
    std::vector<PackJob> jobs;
    DIPENGINE_TRY(pack_jobs(backward, &jobs));
    packing_[backward ? 1 : 0].table_buffer = graph_.arena.add_once(jobs.size() * sizeof(PackJob));
  }
  return DIPENGINE_OK;
}

dipengine_status CudaPlan::pack_jobs(bool backward, std::vector<PackJob>* jobs) const {
  for (const Unit& unit : graph_.units) {
    Conv conv;
    begin_conv(unit, backward, &conv);
    if (conv.params.packed == nullptr) continue;  // of z alone, which has no gradient, or of few channels
    DIPENGINE_TRY(backward ? add_data_packs(conv.params, "A fit", jobs) : add_forward_pack(conv.params, "A fit", jobs));
  }
  return DIPENGINE_OK;
}

dipengine_status CudaPlan::upload_jobs() {
  for (bool backward : {false, true}) {
    Packing& packing = packing_[backward ? 1 : 0];
    std::vector<PackJob> jobs;
    DIPENGINE_TRY(pack_jobs(backward, &jobs));
    const int64_t blocks = share_blocks(&jobs);
    packing.table = {at<PackJob>(packing.table_buffer), static_cast<int32_t>(jobs.size()), blocks, fits_.active};
    if (jobs.empty()) continue;
    DIPENGINE_TRY(cuda::upload(at<void>(packing.table_buffer), jobs.data(), jobs.size() * sizeof(PackJob), stream_));
  }
  return DIPENGINE_OK;
}

dipengine_status CudaPlan::pack(bool backward) const {
  for (const Unit& unit : graph_.units) {
    if (backward || !unit.mean) continue;
    dipengine_conv_mean_cuda_params wider = mean_params(unit, unit.wide_weight, parameter(unit.weight), fits_.active);
    wider.stream = streams_[kWeights];
    DIPENGINE_TRY(dipengine_conv_mean_cuda_widen(&wider));
  }
  const PackTable& table = packing_[backward ? 1 : 0].table;
  return table.count == 0 ? DIPENGINE_OK : launch_packs(table, p_.dtype, p_.slots, streams_[kWeights]);
}

}  // namespace dipengine
