// Operands that are made beforehand, which kernels copy: raw, moments and gradients have the bits that they have where operands are made
// while loading. Pixels outside of what is formed, and fits that take no part, are left as they are.
#include <memory>
#include <vector>

#include "conv_layers.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;
using emulator::layers::Input;
using emulator::layers::kNearest;
using emulator::layers::kZero;
using emulator::layers::Layer;

namespace {

constexpr int64_t kNumbers = 160;  // from one fit's per-channel numbers to the next's

// Everything that a layer reads and writes, of all its fits.
class Operands {
 public:
  explicit Operands(const Layer& layer) : layer_(layer), numbers_(static_cast<uint64_t>(layer.channels + layer.kernel)) {
    const Input& last = layer.inputs.back();
    const int up = last.upsample == kNearest ? 2 : 1;
    height_ = (up * last.height + 2 * layer.pad - layer.kernel) / layer.stride + 1;
    width_ = (up * last.width + 2 * layer.pad - layer.kernel) / layer.stride + 1;
    for (const Input& input : layer.inputs) {
      inputs_ += input.channels;
      x_.push_back(image(input.height * input.width * (input.channels + input.gap)));
      d_x_.push_back(std::make_unique<Array<uint16_t>>(x_.back()->size()));
    }
    parameters_ = int64_t{layer.kernel} * layer.kernel * inputs_ * layer.channels;
    weight_ = floats(parameters_);
    gradient_ = image(height_ * width_ * layer.channels);
    raw_ = image(height_ * width_ * layer.channels);
    for (auto& numbers : folds_) numbers = floats(kNumbers);
  }

  // Sums and images of a pass over each direction, in the order in which they are made.
  bool run(bool beforehand, std::vector<float>* sums, std::vector<uint16_t>* images) {
    std::vector<dipengine_conv_cuda_source> sources = sources_of();
    dipengine_conv_cuda_params p = params_of(sources.data());
    std::vector<std::unique_ptr<Array<uint16_t>>> formed;
    std::vector<dipengine_conv_cuda_source> given = sources;
    for (size_t i = 0; i < sources.size() && beforehand; ++i) {
      const Input& input = layer_.inputs[i];
      if (input.channels % 8 != 0) continue;
      formed.push_back(std::make_unique<Array<uint16_t>>(x_[i]->size()));
      dipengine_conv_cuda_source& s = given[i];
      dipengine_pixels u = s.x;
      u.data = formed.back()->data();
      if (dipengine_conv_cuda_input_operand(&p, static_cast<int32_t>(i), u, s.x_fit_stride) != DIPENGINE_OK) return failed();
      s.x = u;
      s.inner = s.outer = {nullptr, nullptr};
      s.slope = 1;
    }
    Array<uint16_t> raw(raw_->size());
    Array<float> moments(2 * kNumbers * layer_.fits), d_weight(parameters_ * layer_.fits), of_d_x(4 * kNumbers * layer_.fits);
    p.sources = given.data();
    p.raw.data = raw.data();
    p.mean = moments.data();
    p.variance = moments.data() + kNumbers * layer_.fits;
    if (!packed_run(&p, false)) return failed();

    p.raw.data = raw_->data();
    p.mean = p.variance = nullptr;
    Array<uint16_t> d_raw(gradient_->copy());
    if (beforehand) {
      p.gradient.data = d_raw.data();  // in its own place
      if (dipengine_conv_cuda_gradient_operand(&p, p.gradient, p.gradient_fit_stride) != DIPENGINE_OK) return failed();
      p.gradient_scale = p.raw_scale = p.gradient_shift = nullptr;
    }
    p.d_weight = d_weight.data();
    size_t bytes = 0;
    if (dipengine_conv_cuda_weight_gradient_workspace(&p, &bytes) != DIPENGINE_OK) return failed();
    Array<float> workspace(static_cast<int64_t>(bytes / 4 + 1));
    p.workspace = workspace.data();
    p.workspace_bytes = bytes;
    if (dipengine_conv_cuda_weight_gradient(&p) != DIPENGINE_OK) return failed();
    for (size_t i = 0; i < sources.size(); ++i) {
      sources[i].d_x = sources[i].x;
      sources[i].d_x.data = d_x_[i]->data();
      sources[i].d_x_fit_stride = sources[i].x_fit_stride;
      sources[i].sum = of_d_x.data() + static_cast<int64_t>(2 * i) * kNumbers * layer_.fits;
      sources[i].product = sources[i].sum + kNumbers * layer_.fits;
    }
    p.sources = sources.data();
    if (!packed_run(&p, true)) return failed();

    const auto keep = [](auto* to, const auto& from) { to->insert(to->end(), from.begin(), from.end()); };
    for (Array<float>* of : {&moments, &d_weight, &of_d_x}) keep(sums, of->copy());
    keep(images, raw.copy());
    bool intact = raw.intact() && d_raw.intact() && moments.intact() && d_weight.intact() && of_d_x.intact();
    for (const auto& of : d_x_) {
      keep(images, of->copy());
      intact = intact && of->intact();
    }
    for (const auto& of : formed) intact = intact && of->intact() && left_alone(*of);
    return intact || emulator::wrong("something was written outside of a buffer, or of what is formed");
  }

 private:
  static bool failed() { return emulator::wrong("%s", dipengine_last_error()); }

  std::unique_ptr<Array<float>> floats(int64_t each) {
    return std::make_unique<Array<float>>(numbers_.vector<float>(each * layer_.fits, 0.5));
  }
  std::unique_ptr<Array<uint16_t>> image(int64_t each) {
    std::vector<uint16_t> values;
    for (const float value : numbers_.vector<float>(each * layer_.fits)) values.push_back(bf16(value));
    return std::make_unique<Array<uint16_t>>(values);
  }
  static uint16_t bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return static_cast<uint16_t>(bits >> 16);
  }

  // Of the fit in the middle of three, which takes no part.
  bool left_alone(Array<uint16_t>& formed) const {
    const int64_t each = formed.size() / layer_.fits;
    for (int64_t i = each; layer_.fits == 3 && i < 2 * each; ++i) {
      if (formed[i] != 0xffff) return false;
    }
    return true;
  }

  std::vector<dipengine_conv_cuda_source> sources_of() {
    std::vector<dipengine_conv_cuda_source> sources;
    for (size_t i = 0; i < layer_.inputs.size(); ++i) {
      const Input& input = layer_.inputs[i];
      dipengine_conv_cuda_source s{};
      s.height = input.height;
      s.width = input.width;
      s.channels = input.channels;
      s.upsample = input.upsample;
      s.x = {x_[i]->data(), int64_t{input.width} * (input.channels + input.gap), input.channels + input.gap};
      s.x_fit_stride = x_[i]->size() / layer_.fits;
      if (input.inner) s.inner = {folds_[0]->data(), folds_[1]->data()};
      if (input.outer) s.outer = {folds_[2]->data(), folds_[3]->data()};
      s.slope = 0.25f;
      sources.push_back(s);
    }
    return sources;
  }

  dipengine_conv_cuda_params params_of(const dipengine_conv_cuda_source* sources) {
    dipengine_conv_cuda_params p{};
    p.struct_size = sizeof(p);
    p.source_size = sizeof(*sources);
    p.fits = layer_.fits;
    p.active = layer_.fits == 1 ? nullptr : active_.data();
    p.numbers_fit_stride = kNumbers;
    p.sources = sources;
    p.sources_count = static_cast<int32_t>(layer_.inputs.size());
    p.dtype = p.raw_dtype = p.gradient_dtype = DIPENGINE_BFLOAT16;
    p.kernel = layer_.kernel;
    p.stride = layer_.stride;
    p.pad = layer_.pad;
    p.padding = layer_.padding;
    p.height = static_cast<int32_t>(height_);
    p.width = static_cast<int32_t>(width_);
    p.channels = layer_.channels;
    p.weight = weight_->data();
    p.parameters_fit_stride = parameters_;
    p.raw = p.gradient = {nullptr, width_ * layer_.channels, layer_.channels};
    p.raw.data = raw_->data();
    p.gradient.data = gradient_->data();
    p.raw_fit_stride = p.gradient_fit_stride = height_ * width_ * layer_.channels;
    p.gradient_scale = folds_[4]->data();
    p.raw_scale = folds_[5]->data();
    p.gradient_shift = folds_[6]->data();
    return p;
  }

  // Forward pass or data gradient, with its weights packed and its own workspace.
  bool packed_run(dipengine_conv_cuda_params* p, bool data) {
    size_t packed = 0, bytes = 0;
    if (data) {
      if (dipengine_conv_cuda_data_gradient_sizes(p, &packed, &bytes) != DIPENGINE_OK) return false;
    } else if (dipengine_conv_cuda_packed_bytes(p, &packed) != DIPENGINE_OK || dipengine_conv_cuda_workspace(p, &bytes) != DIPENGINE_OK) {
      return false;
    }
    Array<uint16_t> weights(static_cast<int64_t>(packed / 2));
    Array<float> workspace(static_cast<int64_t>(bytes / 4 + 1));
    p->packed = weights.data();
    p->packed_bytes = packed;
    p->workspace = workspace.data();
    p->workspace_bytes = bytes;
    if ((data ? dipengine_conv_cuda_data_pack(p) : dipengine_conv_cuda_pack(p)) != DIPENGINE_OK) return false;
    return (data ? dipengine_conv_cuda_data_gradient(p) : dipengine_conv_cuda_forward(p)) == DIPENGINE_OK && weights.intact() &&
           workspace.intact();
  }

  Layer layer_;
  check::Numbers numbers_;
  int64_t height_, width_, inputs_ = 0, parameters_;
  std::vector<std::unique_ptr<Array<uint16_t>>> x_, d_x_;
  std::unique_ptr<Array<uint16_t>> gradient_, raw_;
  std::unique_ptr<Array<float>> weight_, folds_[7];  // inner scale and shift, outer, A, B, C
  Array<uint8_t> active_{std::vector<uint8_t>{1, 0, 1}};
};

bool same_either_way(const Layer& layer) {
  Operands while_loading(layer), beforehand(layer);
  std::vector<float> sums, other_sums;
  std::vector<uint16_t> images, other_images;
  return while_loading.run(false, &sums, &images) && beforehand.run(true, &other_sums, &other_images) &&
         emulator::same_bits("a sum", other_sums, sums) && emulator::same_bits("an image", other_images, images);
}

}  // namespace

SCENARIO(conv_operands_made_beforehand) {
  return same_either_way({{{18, 10, 4, 0, true, true}, {9, 5, 72, kNearest, true, true, 8}}, 72}) &&
         same_either_way({{{2, 2, 8}, {1, 1, 16, kNearest, false, true}}, 8, 3, 1, 1, kZero});
}
SCENARIO(conv_operands_of_three_fits) {
  Layer layer{{{10, 12, 4, 0, true, true}, {5, 6, 24, kNearest, true, true}}, 96};
  layer.fits = 3;
  return same_either_way(layer);
}
// Kernels of every kind copy what they are given so.
SCENARIO(conv_operands_without_upsampling) {
  return same_either_way({{{17, 9, 24}}, 40, 5, 2, 2}) && same_either_way({{{19, 12, 40, 0, false}}, 16, 1, 1, 0}) &&
         same_either_way({{{20, 9, 128}}, 24, 3, 1, 1, kZero});
}
