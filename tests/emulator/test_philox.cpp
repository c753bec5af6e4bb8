// The perturbed code on the emulated device against the CPU's op: the same bits.
#include "guarded.h"
#include "ops/philox/philox_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;

namespace {

enum class Code { floats, bytes, made };

bool perturb_case(int64_t fits, int64_t count, Code code, int32_t out_dtype) {
  const std::vector<uint64_t> seeds = {7, 1ull << 40, 99};
  const std::vector<uint32_t> steps = {0, 17, 4000000000u};
  const std::vector<uint8_t> active = {1, 0, 1};
  check::Numbers numbers(static_cast<uint64_t>(count));
  const std::vector<float> floats = numbers.vector<float>(fits * (count + 3));
  std::vector<uint8_t> bytes;
  for (float f : floats) bytes.push_back(static_cast<uint8_t>((f + 1) * 127));
  const size_t element = out_dtype == DIPENGINE_FLOAT32 ? 4 : 2;
  std::vector<uint8_t> expected(static_cast<size_t>(fits * (count + 5)) * element, 0xff);

  dipengine_perturb_params cpu{};
  cpu.struct_size = sizeof(cpu);
  cpu.fits = fits;
  cpu.count = count;
  cpu.seeds = seeds.data();
  cpu.steps = steps.data();
  cpu.active = active.data();
  cpu.stream = 3;
  cpu.z_dtype = code == Code::floats ? DIPENGINE_FLOAT32 : DIPENGINE_UINT8;
  cpu.z = code == Code::floats ? static_cast<const void*>(floats.data()) : code == Code::bytes ? bytes.data() : nullptr;
  cpu.z_fit_stride = count + 3;
  cpu.z_scale = 0.1f / 255;
  cpu.std = 0.03f;
  cpu.out_dtype = out_dtype;
  cpu.out = expected.data();
  cpu.out_fit_stride = count + 5;
  cpu.code_seeds = seeds.data();
  cpu.code_stream = 5;
  if (dipengine_perturb(&cpu) != DIPENGINE_OK) return emulator::wrong("the CPU's perturb: %s", dipengine_last_error());

  Array<uint64_t> device_seeds(seeds);
  Array<uint32_t> device_steps(steps);
  Array<uint8_t> device_active(active), device_bytes(bytes), out(static_cast<int64_t>(expected.size()));
  Array<float> device_floats(floats);
  dipengine_perturb_cuda_params cuda{};
  cuda.struct_size = sizeof(cuda);
  cuda.fits = fits;
  cuda.count = count;
  cuda.seeds = device_seeds.data();
  cuda.steps = device_steps.data();
  cuda.active = device_active.data();
  cuda.noise_stream = cpu.stream;
  cuda.z_dtype = cpu.z_dtype;
  cuda.z = code == Code::floats  ? static_cast<const void*>(device_floats.data())
           : code == Code::bytes ? device_bytes.data()
                                 : nullptr;
  cuda.z_fit_stride = cpu.z_fit_stride;
  cuda.z_scale = cpu.z_scale;
  cuda.std = cpu.std;
  cuda.out_dtype = out_dtype;
  cuda.out = out.data();
  cuda.out_fit_stride = cpu.out_fit_stride;
  cuda.code_seeds = device_seeds.data();
  cuda.code_stream = cpu.code_stream;
  if (dipengine_perturb_cuda(&cuda) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  return emulator::same_bits("out", out.copy(), expected) && (out.intact() || emulator::wrong("written outside"));
}

bool perturb_cases(int64_t fits) {
  for (int64_t count : {1, 15, 16, 2048, 2049, 4211}) {
    for (Code code : {Code::floats, Code::bytes, Code::made}) {
      for (int32_t out : {DIPENGINE_FLOAT32, DIPENGINE_BFLOAT16}) {
        if (!perturb_case(fits, count, code, out)) return emulator::wrong("of %lld elements", static_cast<long long>(count));
      }
    }
  }
  return true;
}

}  // namespace

SCENARIO(perturb_of_one_fit) { return perturb_cases(1); }
SCENARIO(perturb_of_three_fits) { return perturb_cases(3); }
