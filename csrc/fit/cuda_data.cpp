// The part of an iteration on a CUDA device that knows the task: the output, operator, data term, residual. Images of a fit lie in
// rows of the largest one's; how much of them there is every kernel reads from device memory.
#include "fit/cuda_plan.h"
#include "ops/activation/activation_cuda.h"
#include "platform/cuda/device.h"
#include "platform/error.h"

namespace dipengine {
namespace {

constexpr double kDevianceFloor = 0.1;  // electrons; as in engine/dipengine/noise/likelihood.py

dipengine_pixels dense(const void* data, int64_t width, int64_t channels) {
  return {const_cast<void*>(data), width * channels, channels};
}

}  // namespace

int64_t CudaPlan::operator_weights() const {
  if (p_.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE) return p_.taps_count;
  return p_.operator_kind == DIPENGINE_OPERATOR_BLUR ? int64_t{p_.kernel_height} * p_.kernel_width : 0;
}

dipengine_status CudaPlan::upload_constants() const {
  const size_t fits = static_cast<size_t>(p_.slots);
  const double* exact = p_.operator_kind == DIPENGINE_OPERATOR_BLUR ? p_.kernel : p_.taps;
  const std::vector<float> weights(exact, exact + operator_weights());
  const std::vector<double> scale(fits, p_.electrons_scale), shift(fits, p_.electrons_shift), variance(fits, p_.read_variance);
  // Numbers are fetched with those beside them, which no turn may have written yet.
  const std::vector<char> zeros(fit_numbers_bytes(p_.slots), 0);
  const auto upload = [this](void* to, const auto& values) {
    return cuda::upload(to, values.data(), values.size() * sizeof(values[0]), stream_);
  };
  DIPENGINE_TRY(upload(at<void>(fits_buffer_), zeros));
  if (!weights.empty()) DIPENGINE_TRY(upload(at<float>(operator_buffer_), weights));
  DIPENGINE_TRY(upload(fits_.scale, scale));
  DIPENGINE_TRY(upload(fits_.shift, shift));
  return upload(fits_.read_variance, variance);
}

// ---- the output -----------------------------------------------------------------------------------------------------

// One pass over what lies in the image.
dipengine_masked_mse_cuda_params CudaPlan::image_params(int step) const {
  dipengine_masked_mse_cuda_params m{};
  m.struct_size = sizeof(m);
  m.stream = stream_;
  m.workspace = workspace(step);
  m.workspace_bytes = workspace_bytes(step);
  m.fits = p_.slots;
  m.rows = p_.height;
  m.inner = p_.width * channels_;
  m.active = fits_.active;
  m.dtype = DIPENGINE_FLOAT32;
  m.activation = DIPENGINE_ACTIVATION_SIGMOID;
  m.raw = {at<void>(graph_.logits), float_stride(graph_.logits), 0, graph_.width * channels_};
  m.mask_repeat = 1;
  m.grad_scale = 1;
  m.es_alpha = p_.es_alpha;
  m.frames = fits_.unread;
  m.sizes = fits_.painted;
  m.tickets = tickets(step, kMain);
  return m;
}

// The same over what was measured, against x0.
dipengine_masked_mse_cuda_params CudaPlan::data_params(int step) const {
  dipengine_masked_mse_cuda_params m = image_params(step);
  const Extent& largest = layout_.largest();
  m.rows = largest.data_height;
  m.inner = largest.data_width * channels_;
  m.activation = DIPENGINE_ACTIVATION_NONE;
  m.target = {array(SlotArrays::target), stride_, 0, m.inner};
  m.mask = {array(SlotArrays::mask), stride_, 0, largest.data_width};
  m.mask_repeat = channels_;
  m.sizes = fits_.measured;
  return m;
}

// Of d_logits, what lies outside the image: the loss does not see it, so it is cleared beside it.
dipengine_status CudaPlan::clear_margin() {
  DIPENGINE_TRY(put_behind(kSkips, kMain));
  return launch_margin({at<float>(graph_.d_logits), float_stride(graph_.d_logits), graph_.height, graph_.width * channels_,
                        fits_.painted, fits_.active},
                       p_.slots, streams_[kSkips]);
}

// x = sigmoid(logits) over the image: average, statistic, and either x itself or at once the squared error's gradient.
dipengine_status CudaPlan::output(int step, bool sizing, bool with_loss) {
  dipengine_masked_mse_cuda_params m = image_params(step);
  if (sizing) {
    size_t bytes = 0;
    DIPENGINE_TRY(dipengine_masked_mse_cuda_workspace(&m, &bytes));
    need(step, bytes);
    take_tickets(step, p_.slots);
    return DIPENGINE_OK;
  }
  const int64_t row = m.inner;
  if (with_loss) {
    DIPENGINE_TRY(clear_margin());
    const dipengine_masked_mse_cuda_params d = data_params(step);
    m.target = d.target;
    m.mask = d.mask;
    m.mask_repeat = d.mask_repeat;
    m.d_raw = {at<void>(graph_.d_logits), float_stride(graph_.d_logits), 0, graph_.width * channels_};
    m.normaliser = fits_.pixels;
    m.loss = fits_.loss;
  } else {
    m.out = {at<void>(graph_.image), image_stride(), 0, row};
  }
  m.average = {array(SlotArrays::average), stride_, 0, row};
  m.es_mean = {array(SlotArrays::es_mean), stride_, 0, row};
  m.average_decay = p_.average_decay;
  m.warm_up = p_.average_warm_up;
  m.frames = fits_.frames;
  m.es_variance = fits_.es_variance;
  return dipengine_masked_mse_cuda(&m);
}

// In the place of the logits' gradient.
dipengine_status CudaPlan::launch_image() {
  dipengine_masked_mse_cuda_params m = image_params(graph_.painted);
  m.out = {at<void>(graph_.d_logits), float_stride(graph_.d_logits), 0, m.inner};
  return dipengine_masked_mse_cuda(&m);
}

const float* CudaPlan::image(int32_t fit) const { return at<float>(graph_.d_logits) + fit * float_stride(graph_.d_logits); }

dipengine_status CudaPlan::image_backward() {
  DIPENGINE_TRY(clear_margin());
  dipengine_sigmoid_backward_cuda_params s{};
  s.struct_size = sizeof(s);
  s.stream = stream_;
  s.fits = p_.slots;
  s.active = fits_.learns;
  s.height = p_.height;
  s.width = p_.width;
  s.channels = channels_;
  s.sizes = fits_.painted;
  s.x = dense(at<float>(graph_.image), p_.width, channels_);
  s.d_x = dense(at<float>(graph_.d_image), p_.width, channels_);
  s.d_raw = dense(at<float>(graph_.d_logits), graph_.width, channels_);
  s.x_fit_stride = image_stride();
  s.d_x_fit_stride = float_stride(graph_.d_image);
  s.d_raw_fit_stride = float_stride(graph_.d_logits);
  DIPENGINE_TRY(dipengine_sigmoid_backward_cuda(&s));
  return put_behind(kMain, kSkips);
}

// ---- A --------------------------------------------------------------------------------------------------------------

dipengine_downsample_cuda_params CudaPlan::downsample_params(int step, const uint8_t* active) const {
  dipengine_downsample_cuda_params d{};
  d.struct_size = sizeof(d);
  d.stream = stream_;
  d.workspace = workspace(step);
  d.workspace_bytes = workspace_bytes(step);
  d.fits = p_.slots;
  d.active = active;
  d.height = p_.height;
  d.width = p_.width;
  d.channels = channels_;
  d.factor = p_.factor;
  d.before = p_.before;
  d.taps_count = p_.taps_count;
  d.taps = at<float>(operator_buffer_);
  d.sizes = fits_.painted;
  return d;
}

dipengine_blur_cuda_params CudaPlan::blur_params(const uint8_t* active) const {
  dipengine_blur_cuda_params b{};
  b.struct_size = sizeof(b);
  b.stream = stream_;
  b.fits = p_.slots;
  b.active = active;
  b.height = p_.data_height;
  b.width = p_.data_width;
  b.channels = channels_;
  b.kernel_height = p_.kernel_height;
  b.kernel_width = p_.kernel_width;
  b.kernel = at<float>(operator_buffer_);
  b.sizes = fits_.measured;
  return b;
}

// Of images `fit_stride` apart, into buffer `to`.
dipengine_status CudaPlan::measure(int step, bool sizing, const uint8_t* active, const float* image, int64_t fit_stride, int to) {
  const bool downsamples = p_.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE;
  dipengine_downsample_cuda_params d = downsample_params(step, active);
  if (sizing) {
    size_t bytes = 0;
    if (downsamples) DIPENGINE_TRY(dipengine_downsample_cuda_workspace(&d, &bytes));
    need(step, bytes);
    return DIPENGINE_OK;
  }
  const dipengine_pixels in = dense(image, p_.width, channels_), out = dense(at<float>(to), p_.data_width, channels_);
  if (downsamples) {
    d.image = in;
    d.image_fit_stride = fit_stride;
    d.out = out;
    d.out_fit_stride = float_stride(to);
    return dipengine_downsample_cuda(&d);
  }
  dipengine_blur_cuda_params b = blur_params(active);
  b.image = in;
  b.image_fit_stride = fit_stride;
  b.out = out;
  b.out_fit_stride = float_stride(to);
  return dipengine_blur_cuda(&b);
}

dipengine_status CudaPlan::measure_backward(int step, bool sizing) {
  if (sizing) return measure(step, true, nullptr, nullptr, 0, -1);
  const dipengine_pixels in = dense(at<float>(graph_.d_measured), p_.data_width, channels_);
  const dipengine_pixels out = dense(at<float>(graph_.d_image), p_.width, channels_);
  if (p_.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE) {
    dipengine_downsample_cuda_params d = downsample_params(step, fits_.learns);
    d.d_out = in;
    d.d_out_fit_stride = float_stride(graph_.d_measured);
    d.d_image = out;
    d.d_image_fit_stride = float_stride(graph_.d_image);
    return dipengine_downsample_cuda_backward(&d);
  }
  dipengine_blur_cuda_params b = blur_params(fits_.learns);
  b.d_out = in;
  b.d_out_fit_stride = float_stride(graph_.d_measured);
  b.d_image = out;
  b.d_image_fit_stride = float_stride(graph_.d_image);
  return dipengine_blur_cuda_backward(&b);
}

// ---- the data term --------------------------------------------------------------------------------------------------

dipengine_deviance_cuda_params CudaPlan::deviance_params(int step) const {
  const Extent& largest = layout_.largest();
  dipengine_deviance_cuda_params d{};
  d.struct_size = sizeof(d);
  d.stream = stream_;
  d.workspace = workspace(step);
  d.workspace_bytes = workspace_bytes(step);
  d.fits = p_.slots;
  d.height = largest.data_height;
  d.width = largest.data_width;
  d.channels = channels_;
  d.target = dense(array(SlotArrays::target), largest.data_width, channels_);
  d.mask = dense(array(SlotArrays::mask), largest.data_width, 1);
  d.target_fit_stride = d.mask_fit_stride = stride_;
  d.scale = fits_.scale;
  d.shift = fits_.shift;
  d.read_variance = fits_.read_variance;
  d.normaliser = fits_.known;
  d.floor = kDevianceFloor;
  d.grad_scale = 1;
  d.sizes = fits_.measured;
  return d;
}

// `data` against x0: the loss with its gradient into buffer `gradient`; or, inspecting, the residual alone of those fits that look
// at theirs, over the pixels held out where there are any. Squares are divided by all elements, residuals and deviances by those that
// are known, or held out.
dipengine_status CudaPlan::compare(int step, bool sizing, const float* data, int64_t data_fit_stride, int gradient,
                                   bool inspecting) {
  size_t bytes = 0;
  const uint8_t* active = inspecting ? fits_.looks : fits_.active;
  if (sensor()) {
    dipengine_deviance_cuda_params d = deviance_params(step);
    if (sizing) {
      DIPENGINE_TRY(dipengine_deviance_cuda_workspace(&d, &bytes));
      need(step, bytes);
      return DIPENGINE_OK;
    }
    d.active = active;
    d.image = dense(data, layout_.largest().data_width, channels_);
    d.image_fit_stride = data_fit_stride;
    d.loss = fits_.loss;  // judged by now, where it is the residual's
    if (inspecting) {
      d.discrepancy = fits_.residual;
    } else {
      d.d_image = dense(at<float>(gradient), layout_.largest().data_width, channels_);
      d.d_image_fit_stride = float_stride(gradient);
    }
    return dipengine_deviance_cuda(&d);
  }
  dipengine_masked_mse_cuda_params m = data_params(step);
  if (sizing) {
    DIPENGINE_TRY(dipengine_masked_mse_cuda_workspace(&m, &bytes));
    need(step, bytes);
    take_tickets(step, p_.slots);
    return DIPENGINE_OK;
  }
  m.active = active;
  m.raw = {const_cast<float*>(data), data_fit_stride, 0, m.inner};
  if (inspecting && rules_.holds_out != 0) m.mask.data = array(SlotArrays::held);
  m.normaliser = inspecting ? fits_.known : fits_.pixels;
  m.loss = inspecting ? fits_.residual : fits_.loss;
  if (!inspecting) m.d_raw = {at<void>(gradient), float_stride(gradient), 0, m.inner};
  return dipengine_masked_mse_cuda(&m);
}

dipengine_status CudaPlan::data_term(int step, bool sizing) {
  const bool identity = p_.operator_kind == DIPENGINE_OPERATOR_IDENTITY;
  const int data = identity ? graph_.image : graph_.measured, gradient = identity ? graph_.d_image : graph_.d_measured;
  return compare(step, sizing, at<float>(data), float_stride(data), gradient, false);
}

// Of the average, for fits that know their noise or hold pixels out, every few iterations.
dipengine_status CudaPlan::residual(int step, bool sizing) {
  if (rules_.watches == 0 || (rules_.knows_noise == 0 && rules_.holds_out == 0)) return DIPENGINE_OK;
  const float* data = array(SlotArrays::average);
  int64_t fit_stride = stride_;
  if (p_.operator_kind != DIPENGINE_OPERATOR_IDENTITY) {
    DIPENGINE_TRY(measure(step, sizing, fits_.looks, data, fit_stride, graph_.inspected));
    data = at<float>(graph_.inspected);
    fit_stride = float_stride(graph_.inspected);
  }
  return compare(step, sizing, data, fit_stride, -1, true);
}

}  // namespace dipengine
