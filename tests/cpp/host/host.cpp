// The public headers from C++: one Adam step of one parameter, and the version.
#include <dipengine/dipengine.h>
#include <dipengine/ops/adam.h>

#include <cstdio>

int main() {
  float p = 1, m = 0, v = 0;
  const float g = 0.5f;
  int64_t step = 0;
  const double learning_rate = 0.25;
  const dipengine_adam_segment segment{&p, &g, &m, &v, nullptr, 1, 0};
  dipengine_adam_params params{};
  params.struct_size = sizeof(params);
  params.segment_size = sizeof(segment);
  params.fits = 1;
  params.segments_count = 1;
  params.segments = &segment;
  params.steps = &step;
  params.learning_rate = &learning_rate;
  params.beta1 = 0.9;
  params.beta2 = 0.999;
  params.eps = 1e-8;
  if (dipengine_adam(&params) != DIPENGINE_OK) return 1;
  std::printf("%s %.6f %s\n", dipengine_version_string(), p, dipengine_cpu_isa());
  return step == 1 ? 0 : 2;
}
