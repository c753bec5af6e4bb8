// What ops on [height, width, channels] images share: the check of a tensor, its rows.
#pragma once

#include "dipengine/pixels.h"
#include "platform/error.h"

namespace dipengine {

// Pixels and rows must not overlap: two elements of an output on one address would race.
static inline dipengine_status check_pixels(const dipengine_pixels& pixels, int64_t width, int64_t channels, const char* op,
                                            const char* name) {
  DIPENGINE_REQUIRE(pixels.data != nullptr, "%s was given no %s; point it at its pixels.", op, name);
  DIPENGINE_REQUIRE(pixels.pixel_stride >= channels && pixels.row_stride >= width * pixels.pixel_stride,
                    "%s was given %s with overlapping pixels (row stride %lld, pixel stride %lld at %lld x %lld); give channels "
                    "contiguous, pixels and rows apart.",
                    op, name, static_cast<long long>(pixels.row_stride), static_cast<long long>(pixels.pixel_stride),
                    static_cast<long long>(width), static_cast<long long>(channels));
  return DIPENGINE_OK;
}

static inline dipengine_status check_size(int64_t height, int64_t width, int64_t channels, const char* op) {
  DIPENGINE_REQUIRE(height >= 1 && width >= 1 && channels >= 1, "%s was given %lld x %lld pixels of %lld channels; each must be at least 1.",
                    op, static_cast<long long>(height), static_cast<long long>(width), static_cast<long long>(channels));
  return DIPENGINE_OK;
}

static inline dipengine_status check_real(int32_t dtype, const char* op) {
  DIPENGINE_REQUIRE(dtype == DIPENGINE_FLOAT32 || dtype == DIPENGINE_FLOAT64,
                    "%s takes images in float32 or float64, not dtype %d; convert them.", op, dtype);
  return DIPENGINE_OK;
}

static inline dipengine_status check_workspace(const void* workspace, size_t bytes, size_t needed, const char* op) {
  DIPENGINE_REQUIRE(workspace != nullptr && reinterpret_cast<uintptr_t>(workspace) % 64 == 0,
                    "%s needs a workspace that is 64-byte aligned; allocate %s_workspace() bytes.", op, op);
  DIPENGINE_REQUIRE(bytes >= needed, "%s was given %zu bytes of workspace and needs %zu.", op, bytes, needed);
  return DIPENGINE_OK;
}

template <typename Real>
static inline Real* row_of(const dipengine_pixels& pixels, int64_t row) {
  return static_cast<Real*>(pixels.data) + row * pixels.row_stride;
}

}  // namespace dipengine
