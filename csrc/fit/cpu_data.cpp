// The part of an iteration that knows the task: operator, data term, residual; and a look at the image itself.
#include <algorithm>

#include "fit/cpu_plan.h"
#include "ops/masked_mse/masked_mse.h"
#include "platform/error.h"

namespace dipengine {

static dipengine_image rows_of(const void* data, int64_t row_stride) { return {const_cast<void*>(data), 0, 0, row_stride}; }

dipengine_status CpuPlan::measure(int, bool, const float*, float*) { return fail(DIPENGINE_UNSUPPORTED, "This build has no native operators; use the autograd path."); }
dipengine_status CpuPlan::measure_backward(int, bool) { return fail(DIPENGINE_UNSUPPORTED, "This build has no native operators; use the autograd path."); }
dipengine_status CpuPlan::data_term(int, const Slot*, bool) { return DIPENGINE_OK; }
dipengine_status CpuPlan::image_backward() { return fail(DIPENGINE_UNSUPPORTED, "This build has no native operators; use the autograd path."); }
dipengine_status CpuPlan::discrepancy(const Slot&, double* v) { *v = 2; return DIPENGINE_OK; }

dipengine_status CpuPlan::render(const Slot& slot, float* image) {
  DIPENGINE_TRY(perturb(slot, 0));
  int step = 1;
  for (; graph_.steps[static_cast<size_t>(step)].kind == StepKind::forward ||
         graph_.steps[static_cast<size_t>(step)].kind == StepKind::merge;
       ++step) {
    DIPENGINE_TRY(run(step, slot));
  }
  // `step` is now the one that takes the logits: its workspace serves the sigmoid alone, too.
  dipengine_masked_mse_params m{};
  m.struct_size = sizeof(m);
  m.pool = p_.pool;
  m.workspace = workspace(step);
  m.workspace_bytes = workspace_bytes(step);
  m.fits = m.outer = 1;
  m.rows = p_.height;
  m.inner = p_.width * channels_;
  m.dtype = DIPENGINE_FLOAT32;
  m.activation = DIPENGINE_ACTIVATION_SIGMOID;
  m.mask_repeat = 1;
  m.raw = rows_of(at<void>(graph_.logits), graph_.width * channels_);
  m.out = rows_of(image, m.inner);
  return dipengine_masked_mse(&m);
}

}  // namespace dipengine
