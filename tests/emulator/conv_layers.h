// Convolutions as the tests of the emulated device write them down.
#pragma once

#include <vector>

#include "ops/conv/conv_cuda.h"

namespace dipengine::emulator::layers {

struct Input {
  int height, width, channels;
  int upsample = DIPENGINE_UPSAMPLE_NONE;
  bool inner = true, outer = false;
  int gap = 0;  // elements between pixels
};

struct Layer {
  std::vector<Input> inputs;
  int channels;
  int kernel = 3, stride = 1, pad = 1, padding = DIPENGINE_PADDING_REFLECTION;
  bool wide = false, bias = false;
  int fits = 1;
  bool tickets = true;  // blocks merge what they leave
};

constexpr int kNearest = DIPENGINE_UPSAMPLE_NEAREST, kBilinear = DIPENGINE_UPSAMPLE_BILINEAR, kZero = DIPENGINE_PADDING_ZERO;

}  // namespace dipengine::emulator::layers
