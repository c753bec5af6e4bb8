/* Fits of a deep image prior, whole iterations at a time: theta* = argmin E(A(f_theta(z)); x0).
 *
 *   dipengine_fit_params params;
 *   dipengine_fit_default_params(&params);            the paper's denoising network and recipe
 *   params.height = h; params.width = w;
 *   dipengine_fit_create(&params, &fit);              all memory is taken here, none later
 *   dipengine_fit_start(fit, 0, &start);              target and seed of slot 0
 *   dipengine_fit_run(fit, &run);                     until it stops by itself, or a number of iterations
 *   dipengine_fit_deliver(fit, 0, image, NULL, NULL); the restored image, [height, width, channels] in [0, 1]
 *   dipengine_fit_destroy(fit);
 *
 * One iteration: perturb z, generator forward, operator A, data term, output average and stopping statistic, backward,
 * Adam. A fit has slots: independent fits on one canvas, each with its own image size, seed, step, target, stop, best state and
 * roll-back; a slot, done or not, can be started again on another image, for which nothing is allocated. The same seed gives the
 * same bits, with any number of threads, alone or among other slots, in a fit as large as the image or a larger one. Of one fit
 * one function runs at a time; several fits run in several threads.
 *
 * On a CUDA device (params.device) all slots run side by side, an iteration of all of them recorded once and replayed; the arena lies
 * in the device's memory, the host keeps room for two slots. There the bits are those of the device's architecture; a slot's state is
 * of the same form, and goes on on either. A report is then of all slots behind each iteration, and costs a wait for the device;
 * without one the device runs on for a twentieth of a second at a time, between which `poll` is called. float32 images are multiplied
 * with 10 mantissa bits (tf32).
 *
 * NULL is refused wherever something is needed (functions that return no status give 0 or ""), and so is a slot that was never
 * started by whatever shows or saves it. A refused call leaves the fit as it was.
 *
 * Of a fit on a CUDA device target and mask, and images that are written, may lie in that device's memory as well as in the host's:
 * they stay there. What writes and reads them otherwise has to be done by the time of the call, which is done with them when it returns.
 *
 * All images are [height, width, channels], channels contiguous, float32 in [0, 1]. D. Ulyanov, A. Vedaldi, V. Lempitsky,
 * "Deep Image Prior", CVPR 2018.
 */
#ifndef DIPENGINE_FIT_H_
#define DIPENGINE_FIT_H_

#include "dipengine/dipengine.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DIPENGINE_MAX_LEVELS = 12 };

typedef enum dipengine_downsample_mode {
  DIPENGINE_DOWNSAMPLE_STRIDE = 0, /* a convolution of stride 2 */
  DIPENGINE_DOWNSAMPLE_AVERAGE = 1 /* a convolution of stride 1, then a 2x2 mean */
} dipengine_downsample_mode;

/* The hourglass: levels outermost first. See engine/dipengine/generators/architecture.py for the formula. */
typedef struct dipengine_generator {
  int32_t levels;                                              /* 1 to 12 */
  int32_t input_depth, output_channels;                        /* channels of z and of the image */
  int32_t channels_down[DIPENGINE_MAX_LEVELS];
  int32_t channels_up[DIPENGINE_MAX_LEVELS];
  int32_t channels_skip[DIPENGINE_MAX_LEVELS];                 /* 0: no skip */
  int32_t kernel_down[DIPENGINE_MAX_LEVELS];                   /* 1, 3, 5 or 7 */
  int32_t upsample[DIPENGINE_MAX_LEVELS];                      /* 1 nearest, 2 bilinear (ops/conv.h); the kernel behind is 3 */
  int32_t downsample;                                          /* dipengine_downsample_mode */
  int32_t one_by_one_up;                                       /* a 1x1 convolution behind every "up" one */
  int32_t padding;                                             /* 0 reflection, 1 zero (ops/conv.h) */
  double negative_slope;                                       /* of the leaky ReLU */
} dipengine_generator;

/* The side of the grid that an image of `side` pixels is fitted on: a multiple of 2^levels. 0 for an unusable generator. */
DIPENGINE_API int64_t dipengine_generator_canvas(const dipengine_generator* generator, int64_t side);

/* Number of parameters, dead ones included: they come level by level from the outermost, within a level skip, down1,
 * down2, merge, up, point, and last the head; of each convolution weight [out, in, k, k], bias, gamma, beta (merge: gamma,
 * beta; head: weight, bias). 0 for a generator that is unusable or larger than any memory. */
DIPENGINE_API int64_t dipengine_generator_parameters(const dipengine_generator* generator);

typedef enum dipengine_operator {
  DIPENGINE_OPERATOR_IDENTITY = 0,
  DIPENGINE_OPERATOR_DOWNSAMPLE = 1, /* ops/resample.h */
  DIPENGINE_OPERATOR_BLUR = 2        /* ops/blur.h */
} dipengine_operator;

typedef enum dipengine_data_term {
  DIPENGINE_DATA_SQUARED = 0, /* sum of mask * squares over data_height * data_width * channels, as the authors have it */
  DIPENGINE_DATA_SENSOR = 1   /* ops/deviance.h: Poisson and Poisson-Gaussian noise */
} dipengine_data_term;

typedef enum dipengine_code {
  DIPENGINE_CODE_NOISE = 0,    /* uniform in [0, code_scale], on 256 levels; generated, not stored */
  DIPENGINE_CODE_MESHGRID = 1, /* x / (W - 1) and y / (H - 1) over the canvas; input_depth 2 */
  DIPENGINE_CODE_IMAGE = 2     /* the slot's own, reflected to fill the canvas */
} dipengine_code;

typedef enum dipengine_stop {
  DIPENGINE_STOP_FIXED = 0,
  DIPENGINE_STOP_AUTO = 1 /* ES-EMV; the discrepancy principle where the noise is known; pixels held out (hold_out) */
} dipengine_stop;

typedef enum dipengine_device {
  DIPENGINE_DEVICE_CPU = 0,
  DIPENGINE_DEVICE_CUDA = 1
} dipengine_device;

typedef struct dipengine_fit_params {
  size_t struct_size;
  int32_t device;       /* dipengine_device: where the fit runs, slots one after the other on a CPU and side by side on CUDA */
  int32_t device_index; /* of several CUDA devices */
  dipengine_pool* pool; /* NULL: the calling thread alone; outlives the fit */
  dipengine_generator generator;
  int32_t dtype;         /* of what the generator keeps: bfloat16 or float32; products sum in float32, weights are float32 */
  int32_t slots;         /* at least 1 */
  int64_t height, width; /* of the image that the generator paints; of the largest one where slots have their own sizes */

  /* A: from height x width to data_height x data_width */
  int32_t operator_kind;            /* dipengine_operator */
  int64_t data_height, data_width;  /* of x0 of an image of height x width; unused for the identity */
  int32_t factor, before;           /* downsampling */
  int32_t taps_count;
  const double* taps;               /* [taps_count]; read by dipengine_fit_create alone, as is `kernel` */
  int32_t kernel_height, kernel_width;
  const double* kernel;             /* [kernel_height, kernel_width] */

  int32_t data_term;                                         /* dipengine_data_term */
  double electrons_scale, electrons_shift, read_variance;    /* sensor: electrons = scale * x + shift; squared electrons */
  double sigma;                                              /* of Gaussian noise in [0, 1] units; 0: unknown */

  int32_t code; /* dipengine_code */
  double code_scale;
  double perturbation;  /* standard deviation of the noise added to z, anew at each iteration */
  double learning_rate; /* Adam, betas 0.9 and 0.999, eps 1e-8 */
  double average_decay; /* of the delivered average of outputs, in [0, 1) */
  int32_t average_warm_up;    /* decay min(average_decay, (t + 1) / (t + 10)) after t outputs */
  int32_t deliver_average;    /* 0: f(z) itself is delivered */
  double es_alpha;            /* ES-EMV's weight of a new output: 0.1, or where the average is delivered 3 (1 - average_decay) if that is less */
  double rollback_db;         /* a loss worse by more than this returns to the last good weights */
  int32_t stop;               /* dipengine_stop */
  int64_t iterations;         /* fixed length, or the ceiling of STOP_AUTO */
  /* Under STOP_AUTO, share of the known pixels (0 to 0.5) that each slot keeps out of its fit, drawn by its seed. Once the average has
   * been nearest to them, the slot goes on from there for 150 iterations (a tenth of `iterations` at most) with all pixels. For x0
   * without noise, as in inpainting: a fit is done when it finds no more of what it was not shown. Pixel i, in rows, is drawn where
   * element i of the Philox uniforms (ops/philox/philox.h) of the slot's seed, stream 5, step 0 lies below the share; a slot of which no
   * more than 63 were, or no other was left, goes by ES-EMV. 0: none; with known noise it has to be. */
  double hold_out;
} dipengine_fit_params;

/* The paper's denoising network with nearest upsampling, stopped by itself: fill in height, width, pool. */
DIPENGINE_API void dipengine_fit_default_params(dipengine_fit_params* params);

/* Thresholds of STOP_AUTO, in iterations. */
typedef struct dipengine_stop_rule {
  int64_t ceiling;
  int64_t patience; /* since variance, or error where pixels were held out, was last within 5 % of its minimum, before a fit stops */
  int64_t warm_up;  /* in which no minimum counts */
  int64_t lag;      /* with known noise, from the residual's coming down to it to the end: what the average looks back */
} dipengine_stop_rule;

DIPENGINE_API void dipengine_fit_stop_rule(int64_t iterations, double average_decay, dipengine_stop_rule* rule);

typedef struct dipengine_fit dipengine_fit;

/* Bytes that a fit of `params` will hold: its one arena; code and threads apart. Each slot has room for the largest image. For a
 * CUDA device it has to be there to be asked. */
DIPENGINE_API dipengine_status dipengine_fit_memory(const dipengine_fit_params* params, size_t* bytes);
DIPENGINE_API dipengine_status dipengine_fit_create(const dipengine_fit_params* params, dipengine_fit** fit);
DIPENGINE_API void dipengine_fit_destroy(dipengine_fit* fit);

typedef struct dipengine_fit_start_params {
  size_t struct_size;
  uint64_t seed;
  const float* target; /* x0 [data_height, data_width, output_channels]; unknown pixels may hold anything but are finite */
  const float* mask;   /* [data_height, data_width], 1 where x0 is known, else 0; NULL: all known */
  const float* code;   /* CODE_IMAGE: [height, width, input_depth], in the host's memory */
  int32_t keep_weights; /* a new target on the slot's old weights */
  /* Of this slot's image and its x0; each 0: as in the fit's params. At most as large as there, and on the same canvas:
   * dipengine_generator_canvas of both sides is that of the fit's. The sizes above are these. */
  int64_t height, width;
  int64_t data_height, data_width; /* what the operator makes of height x width; unused for the identity */
} dipengine_fit_start_params;

DIPENGINE_API dipengine_status dipengine_fit_start(dipengine_fit* fit, int32_t slot, const dipengine_fit_start_params* start);

typedef enum dipengine_fit_state {
  DIPENGINE_FIT_IDLE = 0, /* never started */
  DIPENGINE_FIT_RUNNING = 1,
  DIPENGINE_FIT_DONE = 2,
  DIPENGINE_FIT_FAILED = 3 /* the loss is not finite, and rolling back did not mend it */
} dipengine_fit_state;

typedef enum dipengine_fit_reason {
  DIPENGINE_REASON_NONE = 0,
  DIPENGINE_REASON_ITERATIONS = 1,
  DIPENGINE_REASON_VARIANCE = 2,
  DIPENGINE_REASON_DISCREPANCY = 3,
  DIPENGINE_REASON_FIRST_LOSS = 4, /* failed: the very first loss is not finite */
  DIPENGINE_REASON_DIVERGED = 5,   /* failed: roll-backs did not help */
  DIPENGINE_REASON_HELD_OUT = 6    /* the error of the pixels held out has been at its least, and they were shown */
} dipengine_fit_reason;

typedef struct dipengine_fit_progress {
  size_t struct_size;
  int32_t slot;
  int32_t state;       /* dipengine_fit_state */
  int32_t reason;      /* dipengine_fit_reason */
  int32_t rolled_back; /* the last iteration was bad: nothing was learnt in it */
  int64_t iteration;   /* run so far */
  int64_t delivered_iteration; /* the one whose state would be delivered now */
  int64_t rollbacks;
  double loss;          /* of the last iteration, at the weights before its update */
  double variance;      /* ES-EMV's V after its output */
  double learning_rate;
  int64_t height, width; /* of the slot's image; 0 before it is started */
  int64_t held_out;      /* pixels of its x0 that are kept out of the fit until it has been nearest to them */
} dipengine_fit_progress;

DIPENGINE_API dipengine_status dipengine_fit_get_progress(const dipengine_fit* fit, int32_t slot,
                                                          dipengine_fit_progress* progress);

typedef struct dipengine_fit_run_params {
  size_t struct_size;
  int64_t iterations; /* at most, of every running slot; slots take turns, one iteration each */
  double *losses, *variances; /* [slots, iterations], optional */
  /* Called after each iteration; other than 0 returns from the run. Optional, as is `poll`. Both are called by the thread that
   * runs, must not throw, and leave the fit alone. */
  int (*report)(void* user, const dipengine_fit_progress* progress);
  /* Called several times an iteration; other than 0 returns from the run as soon as no iteration is half done. */
  int (*poll)(void* user);
  void* user;
  double* step_seconds; /* [dipengine_fit_steps()], optional: the time of each step is added; a CUDA device then takes them one by one */
  int32_t stopped;      /* output: report or poll ended the run */
  const uint8_t* active; /* [slots], optional: where it is 0 the slot sits this run out */
} dipengine_fit_run_params;

DIPENGINE_API dipengine_status dipengine_fit_run(dipengine_fit* fit, dipengine_fit_run_params* run);

/* The restored image [height, width, output_channels], of the slot's own size as all images of a slot are, with the
 * parameters that it stems from and its iteration; each optional. The slot goes on as if nothing had been asked. */
DIPENGINE_API dipengine_status dipengine_fit_deliver(dipengine_fit* fit, int32_t slot, float* image, float* parameters,
                                                     int64_t* iteration);
/* The average of the outputs so far, and f(z) at the unperturbed z, [height, width, output_channels]. */
DIPENGINE_API dipengine_status dipengine_fit_average(const dipengine_fit* fit, int32_t slot, float* image);
DIPENGINE_API dipengine_status dipengine_fit_render(dipengine_fit* fit, int32_t slot, float* image);

/* Parameters in the order of dipengine_generator_parameters. Setting them leaves Adam's state alone. */
DIPENGINE_API dipengine_status dipengine_fit_get_parameters(const dipengine_fit* fit, int32_t slot, float* parameters);
DIPENGINE_API dipengine_status dipengine_fit_set_parameters(dipengine_fit* fit, int32_t slot, const float* parameters);
/* The seed that z is drawn from (CODE_NOISE alone); a start sets it to its own. Weights mean something with the z that they were
 * fitted with: both together, set behind a start, begin a fit with the generator of another one. */
DIPENGINE_API dipengine_status dipengine_fit_set_code_seed(dipengine_fit* fit, int32_t slot, uint64_t seed);
/* Iterations since the variance was last within 5 % of its minimum before STOP_AUTO stops the slot, 1 at least; a start sets it to that of
 * dipengine_fit_stop_rule. A fit that begins with another one's generator is done with half of it. A slot that holds pixels out counts
 * from their error, looked at every fifth iteration, and never waits for more than 200. */
DIPENGINE_API dipengine_status dipengine_fit_set_patience(dipengine_fit* fit, int32_t slot, int64_t patience);
/* Standard deviation of Gaussian noise on the slot's x0, in [0, 1] units, for a fit that was created with any sigma above 0; a start
 * sets it to that one. STOP_AUTO compares the residual with it. Saved with the slot's state. */
DIPENGINE_API dipengine_status dipengine_fit_set_sigma(dipengine_fit* fit, int32_t slot, double sigma);
/* What every BatchNorm is given at the unperturbed z, per channel: its mean where a flat array of all parameters has gamma, its
 * biased variance where it has beta, 0 elsewhere. Freezing a generator takes them. */
DIPENGINE_API dipengine_status dipengine_fit_statistics(dipengine_fit* fit, int32_t slot, float* statistics);
/* The gradients of the iteration that learnt last, of whichever slot; dead ones are 0. */
DIPENGINE_API dipengine_status dipengine_fit_get_gradients(const dipengine_fit* fit, float* gradients);

/* All of a slot as bytes, to be kept in a file: a fit of the same params (whatever its pool and slots, and of another size where
 * the canvas is the same and the image fits in) goes on from there with the same bits, and the slot then has the state's image
 * size. The bytes are those of a fit for this image alone. Saving takes dipengine_fit_state_bytes() bytes at least, 0 for a slot
 * that was never started. Loading refuses bytes that are no whole state, damaged, of another format of this library, of a fit
 * with other params, or of too large an image, and leaves the slot as it was; a slot that was never started may be loaded into.
 * States are of the machine's byte order. */
DIPENGINE_API size_t dipengine_fit_state_bytes(const dipengine_fit* fit, int32_t slot);
/* The size of the image that a state is of. */
DIPENGINE_API dipengine_status dipengine_fit_state_image(const void* state, size_t bytes, int64_t* height, int64_t* width);
DIPENGINE_API dipengine_status dipengine_fit_save_state(const dipengine_fit* fit, int32_t slot, void* state, size_t bytes);
DIPENGINE_API dipengine_status dipengine_fit_load_state(dipengine_fit* fit, int32_t slot, const void* state, size_t bytes);

/* Steps of an iteration in their order: "level0.up forward" and so on. */
DIPENGINE_API int32_t dipengine_fit_steps(const dipengine_fit* fit);
DIPENGINE_API const char* dipengine_fit_step_name(const dipengine_fit* fit, int32_t step);
DIPENGINE_API size_t dipengine_fit_arena_bytes(const dipengine_fit* fit);

#ifdef __cplusplus
}
#endif

#endif
