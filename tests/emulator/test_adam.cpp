// Adam on the emulated device against the CPU's op: the same bits, for one fit and three, one of them at rest.
#include <memory>

#include "guarded.h"
#include "ops/adam/adam_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;

namespace {

struct Tensors {
  std::vector<float> param, m, v;
  std::vector<uint16_t> shadow;
};

bool adam_case(int64_t fits, bool bfloat16, int64_t offset) {
  const std::vector<int64_t> counts = {1, 4, 2048, 2051, 5, 4100}, strides = {1, 7, 2048, 2060, 8, 4100};
  const std::vector<uint8_t> active = {1, 0, 1};
  std::vector<int64_t> steps = {0, 6, 3711};
  const std::vector<double> rates = {0.01, 0.02, 1e-4};
  check::Numbers numbers(static_cast<uint64_t>(fits));
  std::vector<Tensors> expected, device_copy;
  std::vector<std::vector<float>> gradients;
  std::vector<std::vector<uint16_t>> halves;
  for (int64_t stride : strides) {
    const int64_t size = stride * fits + offset;
    Tensors t{numbers.vector<float>(size), numbers.vector<float>(size, 0.1), numbers.vector<float>(size, 0.1),
              std::vector<uint16_t>(static_cast<size_t>(size), 0xffff)};
    for (float& v : t.v) v = std::fabs(v);
    expected.push_back(t);
    gradients.push_back(numbers.vector<float>(size));
    std::vector<uint16_t> half;
    for (float g : gradients.back()) half.push_back(bf16_from_float(g));
    halves.push_back(half);
  }
  const auto segment = [&](size_t i, float* param, const void* grad, float* m, float* v, uint16_t* shadow) {
    const char* g = static_cast<const char*>(grad) + offset * (bfloat16 ? 2 : 4);
    return dipengine_adam_segment{param + offset, g,         m + offset, v + offset, i % 2 == 0 ? shadow + offset : nullptr,
                                  counts[i],      strides[i]};
  };

  std::vector<std::unique_ptr<Array<float>>> floats;
  std::vector<std::unique_ptr<Array<uint16_t>>> shorts;
  std::vector<dipengine_adam_segment> on_device, on_host;
  for (size_t i = 0; i < counts.size(); ++i) {
    Tensors& t = expected[i];
    for (const auto* values : {&t.param, &t.m, &t.v, &gradients[i]}) floats.push_back(std::make_unique<Array<float>>(*values));
    for (const auto* values : {&t.shadow, &halves[i]}) shorts.push_back(std::make_unique<Array<uint16_t>>(*values));
    const void* grad = bfloat16 ? static_cast<const void*>(shorts[2 * i + 1]->data()) : floats[4 * i + 3]->data();
    on_device.push_back(
        segment(i, floats[4 * i]->data(), grad, floats[4 * i + 1]->data(), floats[4 * i + 2]->data(), shorts[2 * i]->data()));
    grad = bfloat16 ? static_cast<const void*>(halves[i].data()) : gradients[i].data();
    on_host.push_back(segment(i, t.param.data(), grad, t.m.data(), t.v.data(), t.shadow.data()));
  }
  std::vector<int64_t> next;
  for (int64_t step : steps) next.push_back(step + 1);
  Array<int64_t> device_steps(next);
  Array<double> device_rates(rates);
  Array<uint8_t> device_active(active);

  dipengine_adam_params cpu{};
  cpu.struct_size = sizeof(cpu);
  cpu.segment_size = sizeof(dipengine_adam_segment);
  cpu.dtype = DIPENGINE_FLOAT32;
  cpu.grad_dtype = bfloat16 ? DIPENGINE_BFLOAT16 : DIPENGINE_FLOAT32;
  cpu.fits = fits;
  cpu.segments_count = static_cast<int64_t>(counts.size());
  cpu.segments = on_host.data();
  cpu.steps = steps.data();
  cpu.learning_rate = rates.data();
  cpu.active = active.data();
  cpu.beta1 = 0.9;
  cpu.beta2 = 0.999;
  cpu.eps = 1e-8;
  if (dipengine_adam(&cpu) != DIPENGINE_OK) return emulator::wrong("the CPU's Adam: %s", dipengine_last_error());
  dipengine_adam_cuda_params cuda{};
  cuda.struct_size = sizeof(cuda);
  cuda.segment_size = sizeof(dipengine_adam_segment);
  cuda.grad_dtype = cpu.grad_dtype;
  cuda.fits = fits;
  cuda.segments_count = cpu.segments_count;
  cuda.segments = on_device.data();
  cuda.steps = device_steps.data();
  cuda.learning_rate = device_rates.data();
  cuda.active = device_active.data();
  cuda.beta1 = 0.9;
  cuda.beta2 = 0.999;
  cuda.eps = 1e-8;
  if (dipengine_adam_cuda(&cuda) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  for (size_t i = 0; i < counts.size(); ++i) {
    if (!emulator::same_bits("param", floats[4 * i]->copy(), expected[i].param) ||
        !emulator::same_bits("m", floats[4 * i + 1]->copy(), expected[i].m) ||
        !emulator::same_bits("v", floats[4 * i + 2]->copy(), expected[i].v) ||
        !emulator::same_bits("shadow", shorts[2 * i]->copy(), expected[i].shadow)) {
      return emulator::wrong("in segment %zu of %lld fits", i, static_cast<long long>(fits));
    }
    for (size_t k = 0; k < 3; ++k) {
      if (!floats[4 * i + k]->intact()) return emulator::wrong("written outside");
    }
  }
  return true;
}

}  // namespace

SCENARIO(adam_of_one_fit) { return adam_case(1, false, 0) && adam_case(1, true, 0); }
SCENARIO(adam_of_three_fits) { return adam_case(3, false, 0) && adam_case(3, true, 1); }
