/* The public headers from C: draws three uniforms on a pool of two threads, fits a picture of one colour for two iterations, and with
 * arguments RUNTIME MODEL OUT paints a generator through ONNX Runtime, float32 units to the file OUT. */
#include <dipengine/dipengine.h>
#include <dipengine/fit.h>
#include <dipengine/ops/adam.h>
#include <dipengine/ops/masked_mse.h>
#include <dipengine/ops/philox.h>
#include <dipengine/render.h>
#include <stdio.h>
#include <stdlib.h>

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

static int paint(const char* runtime, const char* model, const char* out) {
  dipengine_renderer_params params = {0};
  dipengine_renderer_info info = {0};
  dipengine_paint_params painting = {0};
  dipengine_renderer* renderer = NULL;
  float* pixels = NULL;
  size_t count = 0;
  FILE* file;
  int good;
  if (dipengine_renderer_create(&params, &renderer) != DIPENGINE_STRUCT_SIZE || renderer != NULL) return 0;
  params.struct_size = sizeof(params);
  params.runtime = runtime;
  params.path = model;
  params.provider = "cpu";
  params.threads = 1;
  if (dipengine_renderer_create(&params, &renderer) != DIPENGINE_OK) return 0;
  info.struct_size = sizeof(info);
  painting.struct_size = sizeof(painting);
  painting.units = DIPENGINE_UNITS_UNIT;
  painting.dtype = DIPENGINE_FLOAT32;
  good = dipengine_renderer_get_info(renderer, &info) == DIPENGINE_OK;
  if (good) {
    count = (size_t)(info.width * info.height * info.channels);
    pixels = malloc(count * sizeof(float));
    painting.pixels.data = pixels;
    painting.pixels.pixel_stride = info.channels;
    painting.pixels.row_stride = info.width * info.channels;
    good = pixels != NULL && dipengine_renderer_paint(renderer, &painting) == DIPENGINE_OK;
  }
  file = good ? fopen(out, "wb") : NULL;
  good = file != NULL && fwrite(pixels, sizeof(float), count, file) == count;
  if (file != NULL) good = fclose(file) == 0 && good;
  free(pixels);
  dipengine_renderer_destroy(renderer);
  return good;
}

int main(int argc, char** argv) {
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
  if (argc == 4 && !paint(argv[1], argv[2], argv[3])) {
    fprintf(stderr, "%s\n", dipengine_last_error());
    return 5;
  }
  printf("%.9g %.9g %.9g\n", out[0], out[1], out[2]);
  return 0;
}
