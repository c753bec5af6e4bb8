// For C++ hosts: fits and renderers as objects that clean up behind themselves, and failures as exceptions. All of it is inline over
// the C interface (<dipengine/fit.h>, <dipengine/render.h>), which says what everything means: no C++ type crosses into the library.
#ifndef DIPENGINE_DIPENGINE_HPP_
#define DIPENGINE_DIPENGINE_HPP_

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "dipengine/dipengine.h"
#include "dipengine/fit.h"
#include "dipengine/render.h"

namespace dipengine {

// A status other than DIPENGINE_OK, and the sentence that says what is wrong and what to do.
class Error : public std::runtime_error {
 public:
  explicit Error(dipengine_status the_status) : std::runtime_error(dipengine_last_error()), status(the_status) {}
  dipengine_status status;
};

inline void check(dipengine_status status) {
  if (status != DIPENGINE_OK) throw Error(status);
}

namespace detail {
struct Destroy {
  void operator()(dipengine_pool* pool) const { dipengine_pool_destroy(pool); }
  void operator()(dipengine_fit* fit) const { dipengine_fit_destroy(fit); }
  void operator()(dipengine_renderer* renderer) const { dipengine_renderer_destroy(renderer); }
};

template <typename Struct>
Struct sized() {
  Struct value{};
  value.struct_size = sizeof(value);
  return value;
}
}  // namespace detail

// Threads for fits; it outlives those that it was given to.
class Pool {
 public:
  explicit Pool(int32_t threads) {
    dipengine_pool* made = nullptr;
    check(dipengine_pool_create(threads, &made));
    pool_.reset(made);
  }
  dipengine_pool* get() const { return pool_.get(); }
  int32_t size() const { return dipengine_pool_size(pool_.get()); }

 private:
  std::unique_ptr<dipengine_pool, detail::Destroy> pool_;
};

class Fit {
 public:
  static dipengine_fit_params default_params() {
    dipengine_fit_params params;
    dipengine_fit_default_params(&params);
    return params;
  }

  explicit Fit(const dipengine_fit_params& params) {
    dipengine_fit* made = nullptr;
    check(dipengine_fit_create(&params, &made));
    fit_.reset(made);
    channels_ = static_cast<size_t>(params.generator.output_channels);
  }

  // target: [data_height, data_width, channels] in [0, 1]; mask: [data_height, data_width], nullptr: all known.
  void start(uint64_t seed, const float* target, const float* mask = nullptr, int32_t slot = 0) {
    auto params = detail::sized<dipengine_fit_start_params>();
    params.seed = seed;
    params.target = target;
    params.mask = mask;
    check(dipengine_fit_start(get(), slot, &params));
  }
  void start(const dipengine_fit_start_params& params, int32_t slot = 0) { check(dipengine_fit_start(get(), slot, &params)); }

  static dipengine_fit_run_params run_params(int64_t iterations) {
    auto params = detail::sized<dipengine_fit_run_params>();
    params.iterations = iterations;
    return params;
  }
  void run(dipengine_fit_run_params& params) { check(dipengine_fit_run(get(), &params)); }
  void run(int64_t iterations) {
    auto params = run_params(iterations);
    run(params);
  }

  dipengine_fit_progress progress(int32_t slot = 0) const {
    auto found = detail::sized<dipengine_fit_progress>();
    check(dipengine_fit_get_progress(get(), slot, &found));
    return found;
  }
  // The restored image, [height, width, channels] of the slot in [0, 1].
  std::vector<float> deliver(int32_t slot = 0) {
    const dipengine_fit_progress now = progress(slot);
    std::vector<float> image(static_cast<size_t>(now.height * now.width) * channels_);
    check(dipengine_fit_deliver(get(), slot, image.data(), nullptr, nullptr));
    return image;
  }
  size_t arena_bytes() const { return dipengine_fit_arena_bytes(get()); }
  dipengine_fit* get() const { return fit_.get(); }  // for the functions of <dipengine/fit.h>

 private:
  std::unique_ptr<dipengine_fit, detail::Destroy> fit_;
  size_t channels_ = 0;
};

struct Region {
  int64_t x = 0, y = 0, width = 0, height = 0;  // all 0: the whole image
};

class Renderer {
 public:
  static dipengine_renderer_params default_params() { return detail::sized<dipengine_renderer_params>(); }

  explicit Renderer(const dipengine_renderer_params& params) {
    dipengine_renderer* made = nullptr;
    check(dipengine_renderer_create(&params, &made));
    renderer_.reset(made);
  }
  // runtime: the whole path of libonnxruntime; provider: "auto", "cpu", "cuda" or "tensorrt".
  Renderer(const std::string& path, const std::string& runtime, const std::string& provider = "auto", bool strict = false)
      : Renderer(params_of(path, runtime, provider, strict)) {}

  dipengine_renderer_info info() const {
    auto found = detail::sized<dipengine_renderer_info>();
    check(dipengine_renderer_get_info(get(), &found));
    return found;
  }

  // Into the caller's memory, with its strides (of elements) between pixels and rows, in the restored image's own units.
  void paint(uint8_t* pixels, int64_t row_stride, int64_t pixel_stride, const Region& region = {}) const {
    paint(DIPENGINE_UNITS_DATA, DIPENGINE_UINT8, {pixels, row_stride, pixel_stride}, region);
  }
  void paint(uint16_t* pixels, int64_t row_stride, int64_t pixel_stride, const Region& region = {}) const {
    paint(DIPENGINE_UNITS_DATA, DIPENGINE_UINT16, {pixels, row_stride, pixel_stride}, region);
  }
  void paint(float* pixels, int64_t row_stride, int64_t pixel_stride, const Region& region = {}) const {
    paint(DIPENGINE_UNITS_DATA, DIPENGINE_FLOAT32, {pixels, row_stride, pixel_stride}, region);
  }
  void paint(dipengine_units units, dipengine_dtype dtype, const dipengine_pixels& pixels, const Region& region = {}) const {
    auto params = detail::sized<dipengine_paint_params>();
    params.x = region.x;
    params.y = region.y;
    params.width = region.width;
    params.height = region.height;
    params.units = units;
    params.dtype = dtype;
    params.pixels = pixels;
    check(dipengine_renderer_paint(get(), &params));
  }

  // [height, width, channels] in data units. Sample: uint8_t, uint16_t or float.
  template <typename Sample>
  std::vector<Sample> image(const Region& region = {}) const {
    const Room room = room_for(region);
    std::vector<Sample> pixels(room.size);
    paint(pixels.data(), room.row, room.pixel, region);
    return pixels;
  }
  // [height, width, channels] in [0, 1].
  std::vector<float> units(const Region& region = {}) const {
    const Room room = room_for(region);
    std::vector<float> pixels(room.size);
    paint(DIPENGINE_UNITS_UNIT, DIPENGINE_FLOAT32, {pixels.data(), room.row, room.pixel}, region);
    return pixels;
  }
  dipengine_renderer* get() const { return renderer_.get(); }

 private:
  struct Room {
    size_t size;
    int64_t row, pixel;
  };
  // A region that does not lie within the image gets room for one pixel: painting refuses it before it writes.
  Room room_for(const Region& region) const {
    const dipengine_renderer_info about = info();
    const bool whole = region.width == 0 && region.height == 0;
    const bool fits = region.width > 0 && region.height > 0 && region.width <= about.width && region.height <= about.height;
    const int64_t width = whole ? about.width : fits ? region.width : 1, height = whole ? about.height : fits ? region.height : 1;
    return {static_cast<size_t>(height * width * about.channels), width * about.channels, about.channels};
  }
  static dipengine_renderer_params params_of(const std::string& path, const std::string& runtime, const std::string& provider,
                                             bool strict) {
    auto params = default_params();
    params.path = path.c_str();
    params.runtime = runtime.c_str();
    params.provider = provider.c_str();
    params.strict = strict ? 1 : 0;
    return params;
  }

  std::unique_ptr<dipengine_renderer, detail::Destroy> renderer_;
};

}  // namespace dipengine

#endif
