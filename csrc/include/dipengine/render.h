/* Painting finished generators from the ONNX files that `dipengine export` writes, through ONNX Runtime.
 *
 *   dipengine_renderer_params params = {0};
 *   params.struct_size = sizeof(params);
 *   params.runtime = "/opt/onnxruntime/lib/libonnxruntime.so.1";   opened at run time: 1.12 or any later 1.x
 *   params.path = "clean.onnx";
 *   dipengine_renderer_create(&params, &renderer);
 *   dipengine_renderer_get_info(renderer, &info);                  size, type and range of the image
 *   dipengine_renderer_paint(renderer, &paint);                    all of it or a region, into the caller's memory
 *   dipengine_renderer_destroy(renderer);
 *
 * The pixels are those of dipengine.Renderer in Python, to the bit where provider, runtime and threads are the same. A file is
 * checked before the runtime sees it: whatever is no generator, is cut off, keeps weights elsewhere, or asks for more memory than
 * there is, is refused in one sentence, and nothing outside it is read. A process paints with one runtime, the first that it opens;
 * renderers are many, and one may paint in several threads at once. C++ hosts: <dipengine/dipengine.hpp>.
 */
#ifndef DIPENGINE_RENDER_H_
#define DIPENGINE_RENDER_H_

#include "dipengine/dipengine.h"
#include "dipengine/pixels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dipengine_renderer_params {
  size_t struct_size;
  /* The whole path, from the root, of ONNX Runtime's library: libonnxruntime.so.1, or in Python's package
   * onnxruntime/capi/libonnxruntime.so.1.*. Names without a path are refused: no library comes from where nobody said. */
  const char* runtime;
  const char* path;      /* of the ONNX file; or NULL, and */
  const void* model;     /* its bytes, of which there are model_bytes; read by dipengine_renderer_create alone */
  size_t model_bytes;
  const char* provider;  /* "cpu", "cuda", "tensorrt"; NULL or "auto": CUDA where the runtime has it, else the CPU */
  int32_t strict;        /* 0: where the provider cannot run, paint on the next (TensorRT, CUDA, CPU) and say so in `notice`; else fail */
  int32_t threads;       /* of the CPU; 0: as many as this process may use cores */
  /* Options of the CUDA or TensorRT provider that is named above, by the runtime's names ("device_id", "trt_engine_cache_path"). */
  int32_t options_count;
  const char* const* option_names;  /* [options_count] */
  const char* const* option_values; /* [options_count] */
} dipengine_renderer_params;

typedef struct dipengine_renderer dipengine_renderer;

/* INVALID_ARGUMENT: the file or the runtime is not usable; UNSUPPORTED: the provider, or a runtime too old; OUT_OF_RESOURCES. */
DIPENGINE_API dipengine_status dipengine_renderer_create(const dipengine_renderer_params* params, dipengine_renderer** renderer);
DIPENGINE_API void dipengine_renderer_destroy(dipengine_renderer* renderer); /* NULL is allowed */

typedef enum dipengine_curve {
  DIPENGINE_CURVE_NONE = 0,   /* along a straight line */
  DIPENGINE_CURVE_TABLE = 1,  /* along a curve whose inverse the file holds */
  DIPENGINE_CURVE_UNKNOWN = 2 /* along a curve whose inverse an older file lacks: units alone can be painted */
} dipengine_curve;

typedef struct dipengine_renderer_info {
  size_t struct_size;
  int64_t width, height; /* of the image, pixels */
  int32_t channels;
  int32_t dtype;         /* of the restored image: a dipengine_dtype, or -1 for one that has none (int16 ...) */
  double low, high;      /* the data values that 0 and 1 stand for */
  int32_t curve;         /* dipengine_curve: how values lie between them */
  double psnr;           /* dB of what the file paints against the delivered image (peak 1); infinite where they are equal */
  /* As long as the renderer lives: */
  const char *task, *dtype_name, *precision;
  const char* provider;  /* that paints: "cpu", "cuda" or "tensorrt" */
  const char* notice;    /* a sentence where that is another than was asked for, else "" */
  const char* runtime_version;
  const char* metadata;  /* all that the file says of itself, JSON: engine/dipengine/export/onnx_format.py */
} dipengine_renderer_info;

/* Fill `info` (its struct_size set by the caller). */
DIPENGINE_API dipengine_status dipengine_renderer_get_info(const dipengine_renderer* renderer, dipengine_renderer_info* info);

typedef enum dipengine_units {
  DIPENGINE_UNITS_DATA = 0, /* the restored image's own: integers rounded half to even and clipped to their type */
  DIPENGINE_UNITS_UNIT = 1  /* the network's, in [0, 1]; float32 or float64 */
} dipengine_units;

typedef struct dipengine_paint_params {
  size_t struct_size;
  int64_t x, y, width, height; /* of the region; all 0: the whole image */
  int32_t units;               /* dipengine_units */
  int32_t dtype;               /* float32, float64, uint8 or uint16 */
  dipengine_pixels pixels;     /* [height, width, channels] of that dtype */
} dipengine_paint_params;

/* A region is painted from the part of z that it depends on: its pixels are those of the whole to 1e-5 of a unit. */
DIPENGINE_API dipengine_status dipengine_renderer_paint(dipengine_renderer* renderer, const dipengine_paint_params* paint);

#ifdef __cplusplus
}
#endif

#endif
