// Checks of downsampling's params, those of a CPU and those of a CUDA device alike.
#pragma once

#include "platform/error.h"
#include "platform/pixels.h"

namespace dipengine {

constexpr int64_t kMostResampled = int64_t{1} << 30;  // of factors, taps and offsets

template <typename Params>
static inline dipengine_status check_resample_dims(const Params* params, const char* op) {
  DIPENGINE_TRY(check_struct(params, op));
  const Params& p = *params;
  DIPENGINE_TRY(check_size(p.height, p.width, p.channels, op));
  DIPENGINE_REQUIRE(p.factor >= 1 && p.factor <= kMostResampled && p.taps_count >= 1 && p.taps_count <= kMostResampled,
                    "%s was given factor %lld and %lld taps; each must be at least 1.", op, static_cast<long long>(p.factor),
                    static_cast<long long>(p.taps_count));
  return DIPENGINE_OK;
}

template <typename Params>
static inline dipengine_status check_resample_taps(const Params& p, const char* op) {
  DIPENGINE_REQUIRE(p.taps != nullptr, "%s was given no taps; point taps at them, where the images are.", op);
  DIPENGINE_REQUIRE(p.before >= -kMostResampled && p.before <= kMostResampled, "%s was given before = %lld, which no filter has.",
                    op, static_cast<long long>(p.before));
  return DIPENGINE_OK;
}

}  // namespace dipengine
