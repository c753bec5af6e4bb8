// The part of an iteration that knows the task: operator, data term, residual; and a look at the image itself.
#include <algorithm>

#include "fit/cpu_plan.h"
#include "ops/activation/activation.h"
#include "ops/blur/blur.h"
#include "ops/deviance/deviance.h"
#include "ops/masked_mse/masked_mse.h"
#include "ops/resample/resample.h"
#include "platform/error.h"

namespace dipengine {
namespace {

constexpr double kDevianceFloor = 0.1;  // electrons; as in engine/dipengine/noise/likelihood.py

dipengine_image rows_of(const void* data, int64_t row_stride) { return {const_cast<void*>(data), 0, 0, row_stride}; }

dipengine_pixels dense(const void* data, int64_t width, int64_t channels) {
  return {const_cast<void*>(data), width * channels, channels};
}

}  // namespace

// ---- A --------------------------------------------------------------------------------------------------------------

dipengine_downsample_params CpuPlan::downsample(int step, const Extent& extent) const {
  dipengine_downsample_params d{};
  d.struct_size = sizeof(d);
  d.pool = p_.pool;
  d.workspace = workspace(step);
  d.workspace_bytes = workspace_bytes(step);
  d.height = extent.height;
  d.width = extent.width;
  d.channels = channels_;
  d.factor = p_.factor;
  d.before = p_.before;
  d.taps_count = p_.taps_count;
  d.taps = p_.taps;
  d.dtype = DIPENGINE_FLOAT32;
  return d;
}

dipengine_blur_params CpuPlan::blur(int step, const Extent& extent) const {
  dipengine_blur_params b{};
  b.struct_size = sizeof(b);
  b.pool = p_.pool;
  b.workspace = workspace(step);
  b.workspace_bytes = workspace_bytes(step);
  b.height = extent.data_height;
  b.width = extent.data_width;
  b.channels = channels_;
  b.kernel_height = p_.kernel_height;
  b.kernel_width = p_.kernel_width;
  b.kernel = p_.kernel;
  b.dtype = DIPENGINE_FLOAT32;
  return b;
}

dipengine_status CpuPlan::size_operator(int step) {
  size_t bytes = 0;
  if (p_.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE) {
    const dipengine_downsample_params d = downsample(step, layout_.largest());
    DIPENGINE_TRY(dipengine_downsample_workspace(&d, &bytes));
  } else {
    const dipengine_blur_params b = blur(step, layout_.largest());
    DIPENGINE_TRY(dipengine_blur_workspace(&b, &bytes));
  }
  need(step, bytes);
  return DIPENGINE_OK;
}

dipengine_status CpuPlan::measure(int step, const Extent& extent, const float* image, float* measured) {
  const dipengine_pixels in = dense(image, extent.width, channels_), out = dense(measured, extent.data_width, channels_);
  if (p_.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE) {
    dipengine_downsample_params d = downsample(step, extent);
    d.image = in;
    d.out = out;
    return dipengine_downsample(&d);
  }
  dipengine_blur_params b = blur(step, extent);
  b.image = in;
  b.out = out;
  return dipengine_blur(&b);
}

dipengine_status CpuPlan::measure_backward(int step, const Extent& extent) {
  const dipengine_pixels in = dense(at<float>(graph_.d_measured), extent.data_width, channels_);
  const dipengine_pixels out = dense(at<float>(graph_.d_image), extent.width, channels_);
  if (p_.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE) {
    dipengine_downsample_params d = downsample(step, extent);
    d.d_out = in;
    d.d_image = out;
    return dipengine_downsample_backward(&d);
  }
  dipengine_blur_params b = blur(step, extent);
  b.d_out = in;
  b.d_image = out;
  return dipengine_blur_backward(&b);
}

// ---- the data term --------------------------------------------------------------------------------------------------

dipengine_masked_mse_params CpuPlan::squared(int step, int64_t rows, int64_t width) const {
  dipengine_masked_mse_params m{};
  m.struct_size = sizeof(m);
  m.pool = p_.pool;
  m.workspace = workspace(step);
  m.workspace_bytes = workspace_bytes(step);
  m.fits = m.outer = 1;
  m.rows = rows;
  m.inner = width * channels_;
  m.dtype = DIPENGINE_FLOAT32;
  m.activation = DIPENGINE_ACTIVATION_NONE;
  m.mask_repeat = 1;
  m.grad_scale = 1;
  m.es_alpha = 1;
  return m;
}

dipengine_deviance_params CpuPlan::deviance(int step, const Extent& extent) const {
  dipengine_deviance_params d{};
  d.struct_size = sizeof(d);
  d.pool = p_.pool;
  d.workspace = workspace(step);
  d.workspace_bytes = workspace_bytes(step);
  d.height = extent.data_height;
  d.width = extent.data_width;
  d.channels = channels_;
  d.dtype = DIPENGINE_FLOAT32;
  d.scale = p_.electrons_scale;
  d.shift = p_.electrons_shift;
  d.read_variance = p_.read_variance;
  d.floor = kDevianceFloor;
  d.grad_scale = 1;
  return d;
}

dipengine_status CpuPlan::size_data_term(int step) {
  size_t bytes = 0;
  const Extent& extent = layout_.largest();
  if (p_.data_term == DIPENGINE_DATA_SENSOR) {
    const dipengine_deviance_params d = deviance(step, extent);
    DIPENGINE_TRY(dipengine_deviance_workspace(&d, &bytes));
  } else {
    const dipengine_masked_mse_params m = squared(step, extent.data_height, extent.data_width);
    DIPENGINE_TRY(dipengine_masked_mse_workspace(&m, &bytes));
  }
  need(step, bytes);
  return DIPENGINE_OK;
}

// Of x0, what the fit sees; NULL: all.
static const float* mask_of(const Slot& slot) { return slot.state().has_mask ? slot.array(SlotArrays::mask) : nullptr; }

// The loss of `data` against x0 where `mask` is 1 and, where `d_data` is given, its gradient; for a sensor the discrepancy on demand.
// Squares are divided by `normaliser`, deviances always by what is known.
dipengine_status CpuPlan::compare(int step, const Slot& slot, const float* mask, const float* data, float* d_data,
                                  double normaliser, double* loss, double* discrepancy) {
  const Extent& extent = slot.state().extent;
  const float* target = slot.array(SlotArrays::target);
  if (p_.data_term == DIPENGINE_DATA_SENSOR) {
    dipengine_deviance_params d = deviance(step, extent);
    d.image = dense(data, extent.data_width, channels_);
    d.target = dense(target, extent.data_width, channels_);
    if (mask != nullptr) d.mask = dense(mask, extent.data_width, 1);
    if (d_data != nullptr) d.d_image = dense(d_data, extent.data_width, channels_);
    d.normaliser = slot.state().known;
    d.loss = loss;
    d.discrepancy = discrepancy;
    return dipengine_deviance(&d);
  }
  dipengine_masked_mse_params m = squared(step, extent.data_height, extent.data_width);
  m.raw = rows_of(data, m.inner);
  m.target = rows_of(target, m.inner);
  if (mask != nullptr) {
    m.mask = rows_of(mask, extent.data_width);
    m.mask_repeat = channels_;
  }
  if (d_data != nullptr) m.d_raw = rows_of(d_data, m.inner);
  m.normaliser = &normaliser;
  m.loss = loss;
  return dipengine_masked_mse(&m);
}

dipengine_status CpuPlan::data_term(int step, const Slot& slot) {
  const bool identity = p_.operator_kind == DIPENGINE_OPERATOR_IDENTITY;
  const Extent& extent = slot.state().extent;
  const double all = static_cast<double>(extent.data_height * extent.data_width * channels_);
  return compare(step, slot, mask_of(slot), at<float>(identity ? graph_.image : graph_.measured),
                 at<float>(identity ? graph_.d_image : graph_.d_measured), all, &loss_, nullptr);
}

dipengine_status CpuPlan::image_backward(const Extent& extent) {
  dipengine_sigmoid_backward_params s{};
  s.struct_size = sizeof(s);
  s.pool = p_.pool;
  s.height = extent.height;
  s.width = extent.width;
  s.channels = channels_;
  s.dtype = DIPENGINE_FLOAT32;
  s.x = dense(at<float>(graph_.image), extent.width, channels_);
  s.d_x = dense(at<float>(graph_.d_image), extent.width, channels_);
  s.d_raw = dense(at<float>(graph_.d_logits), graph_.width, channels_);
  clear_margin(extent);
  return dipengine_sigmoid_backward(&s);
}

dipengine_status CpuPlan::discrepancy(const Slot& slot, double* value) {
  const int step = static_cast<int>(graph_.steps.size()) - 1;
  const float* data = slot.array(SlotArrays::average);
  if (p_.operator_kind != DIPENGINE_OPERATOR_IDENTITY) {
    DIPENGINE_TRY(measure(step, slot.state().extent, data, at<float>(graph_.inspected)));
    data = at<float>(graph_.inspected);
  }
  double loss = 0;
  const float* mask = slot.state().held_out > 0 ? slot.array(SlotArrays::held) : mask_of(slot);
  if (p_.data_term == DIPENGINE_DATA_SENSOR) return compare(step, slot, mask, data, nullptr, 1, &loss, value);
  DIPENGINE_TRY(compare(step, slot, mask, data, nullptr, slot.state().known, &loss, nullptr));
  *value = loss / slot.state().noise_variance;
  return DIPENGINE_OK;
}

dipengine_status CpuPlan::render(const Slot& slot, float* image) {
  int step;
  DIPENGINE_TRY(forward(slot, &step));
  // That step's workspace serves the sigmoid alone, too.
  dipengine_masked_mse_params m = squared(step, slot.state().extent.height, slot.state().extent.width);
  m.activation = DIPENGINE_ACTIVATION_SIGMOID;
  m.raw = rows_of(at<void>(graph_.logits), graph_.width * channels_);
  m.out = rows_of(image, m.inner);
  return dipengine_masked_mse(&m);
}

}  // namespace dipengine
