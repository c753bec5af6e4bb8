// Which part of z a region of the image depends on: the generator's receptive field, walked through its levels. The twin of
// engine/dipengine/rendering/regions.py.
#pragma once

#include "dipengine/fit.h"

namespace dipengine {

// An exported generator: dipengine_generator says that "up" kernels are 3, files may say otherwise.
struct Hourglass {
  dipengine_generator generator;
  int32_t kernel_up[DIPENGINE_MAX_LEVELS];
};

// Positions along one axis, both ends included or half open as said.
struct Span {
  int64_t first, last;
};

// First and last position of z, without regard to borders, that output pixels first..last depend on.
Span needed(const Hourglass& hourglass, Span output);

// The part [first, last) of a canvas's axis of `length` pixels on which output pixels first..last come out as on the whole: it
// starts and ends on multiples of 2^levels, so that pixels keep their places on every level, and is no shorter than the smallest
// canvas.
Span window(const Hourglass& hourglass, Span output, int64_t length);

// Number of parameters, dead ones included.
double parameter_count(const Hourglass& hourglass);

}  // namespace dipengine
