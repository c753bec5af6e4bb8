// What stands between the ops of an iteration on a CUDA device: which fits take part, what becomes of a loss, snapshots, and when
// a fit stops. All of it happens on the device, by the functions of loop.h, so that iterations follow each other without the host.
#pragma once

#include "fit/loop.h"

namespace dipengine {

constexpr int64_t kHistory = 64;  // turns of which losses and variances are kept until the host has fetched them

// Of all fits, in device memory.
struct TurnCount {
  int64_t turn, turns;  // this one, and how many were asked for: behind them nobody takes part
  int64_t total;        // since the fit was made
};

// Per fit, [fits] each in device memory: what ops take as arrays, beside the states.
struct FitNumbers {
  SlotState* states;
  TurnCount* count;
  uint64_t *seeds, *code_seeds;
  int64_t *updates, *frames;              // Adam's number of this update; outputs seen
  int64_t *learnt, *unread;               // turn of the last update; frames of passes that count none
  double *learning_rate, *es_variance, *loss, *pixels, *known, *residual;
  double *scale, *shift, *read_variance;  // of a sensor
  double *losses, *variances;             // [fits, kHistory]
  int64_t *painted, *measured;            // [fits, 2]: rows and elements of a row, of the slot's image and of its x0
  uint32_t* iterations;                   // the perturbation's step
  int32_t* copies;                        // dipengine::Copies
  uint8_t *wanted, *active, *learns, *looks, *shows;
};

// Bytes of all of them, and where they lie from `base` on, a multiple of 64.
size_t fit_numbers_bytes(int64_t fits);
FitNumbers fit_numbers_at(void* base, int64_t fits);

struct TurnLaunch {
  LoopRules rules;
  FitNumbers of;
  int64_t fits, channels;  // channels: of an image
};

// Who takes part, with the numbers that the ops of this turn need.
dipengine_status launch_begin(const TurnLaunch& launch, void* stream);
// Behind the loss: learns, looks, and copies of the arrays that a snapshot or a return to one asks for.
dipengine_status launch_judge(const TurnLaunch& launch, void* stream);
// Behind the update and the residual: stops, copies of the best state and returns to it, history; the next turn.
dipengine_status launch_end(const TurnLaunch& launch, void* stream);

enum Copies : int32_t { kCopyNothing, kKeep, kReturn };

struct ArrayPair {
  int64_t live, kept, count;  // floats; offsets in a fit's block are multiples of 4
};

struct CopyLaunch {
  static constexpr int kMost = 5;
  ArrayPair pairs[kMost];
  int32_t pairs_count;
  float* blocks;
  int64_t fit_stride;
  const int32_t* copies;
  ArrayPair shown;       // the mask, and what is added to it where `shows` says so
  const uint8_t* shows;  // NULL: nowhere
};
dipengine_status launch_copies(const CopyLaunch& launch, int64_t fits, void* stream);

// Zeros in what lies outside the first rows and elements of a row of each image [fits, rows, row].
struct MarginLaunch {
  float* image;
  int64_t fit_stride;
  int64_t rows, row;     // of the canvas
  const int64_t* sizes;  // [fits, 2], of the window
  const uint8_t* active;
};
dipengine_status launch_margin(const MarginLaunch& launch, int64_t fits, void* stream);

}  // namespace dipengine
