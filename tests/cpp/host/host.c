/* The public headers from C: draws three uniforms on a pool of two threads, and fits a picture of one colour for two iterations. */
#include <dipengine/dipengine.h>
#include <dipengine/fit.h>
#include <dipengine/ops/adam.h>
#include <dipengine/ops/masked_mse.h>
#include <dipengine/ops/philox.h>
#include <stdio.h>

static int fit_two_iterations(dipengine_pool* pool) {
  enum { HEIGHT = 9, WIDTH = 10, CHANNELS = 3 };
  float target[HEIGHT * WIDTH * CHANNELS], image[HEIGHT * WIDTH * CHANNELS];
  dipengine_fit_params params;
  dipengine_fit_start_params start = {0};
  dipengine_fit_run_params run = {0};
  dipengine_fit* fit = NULL;
  int i, inside;
  int64_t iteration = 0;
  for (i = 0; i < HEIGHT * WIDTH * CHANNELS; ++i) target[i] = 0.25f;
  dipengine_fit_default_params(&params);
  params.pool = pool;
  params.height = HEIGHT;
  params.width = WIDTH;
  params.generator.levels = 2;
  if (dipengine_fit_create(&params, &fit) != DIPENGINE_OK) return 0;
  start.struct_size = sizeof(start);
  start.target = target;
  run.struct_size = sizeof(run);
  run.iterations = 2;
  inside = dipengine_fit_start(fit, 0, &start) == DIPENGINE_OK && dipengine_fit_run(fit, &run) == DIPENGINE_OK &&
           dipengine_fit_deliver(fit, 0, image, NULL, &iteration) == DIPENGINE_OK && iteration == 2;
  for (i = 0; inside && i < HEIGHT * WIDTH * CHANNELS; ++i) inside = image[i] > 0 && image[i] < 1;
  dipengine_fit_destroy(fit);
  return inside;
}

int main(void) {
  float out[3];
  dipengine_pool* pool = NULL;
  dipengine_philox_params params = {0};
  if (dipengine_abi_version() != DIPENGINE_ABI_VERSION) return 1;
  if (dipengine_pool_create(2, &pool) != DIPENGINE_OK) return 2;
  params.struct_size = sizeof(params);
  params.pool = pool;
  params.seed = 42;
  params.count = 3;
  params.out = out;
  if (dipengine_philox_uniform(&params) != DIPENGINE_OK) {
    fprintf(stderr, "%s\n", dipengine_last_error());
    return 3;
  }
  if (!fit_two_iterations(pool)) {
    fprintf(stderr, "%s\n", dipengine_last_error());
    return 4;
  }
  dipengine_pool_destroy(pool);
  printf("%.9g %.9g %.9g\n", out[0], out[1], out[2]);
  return 0;
}
