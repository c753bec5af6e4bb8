// The C interface of renderers. Pointers are checked here and nowhere else; exceptions end here.
#include <exception>
#include <memory>
#include <new>

#include "platform/arguments.h"
#include "rendering/renderer.h"
#include "rendering/unusable.h"

using dipengine::given;

struct dipengine_renderer {
  explicit dipengine_renderer(const dipengine_renderer_params& params) : renderer(params) {}
  dipengine::OnnxRenderer renderer;
};

namespace {

// OK, or the status of what `work` throws.
template <typename Work>
dipengine_status guarded(const Work& work) {
  try {
    work();
    return DIPENGINE_OK;
  } catch (const dipengine::Unusable& error) {
    return dipengine::fail(error.status, "%s", error.what());
  } catch (const std::bad_alloc&) {
    return dipengine::fail(DIPENGINE_OUT_OF_RESOURCES, "Painting needs more memory than there is; paint a smaller region.");
  } catch (const std::exception& error) {
    return dipengine::fail(DIPENGINE_INVALID_ARGUMENT, "ONNX Runtime failed (%.300s).", error.what());
  }
}

dipengine_status check_renderer(const dipengine_renderer_params& p) {
  DIPENGINE_TRY(given("dipengine_renderer_create", {{"runtime", p.runtime}}));
  DIPENGINE_REQUIRE((p.path == nullptr) != (p.model == nullptr),
                    "The renderer was given %s; give the path of an ONNX file, or its bytes.",
                    p.path == nullptr ? "no model" : "two models");
  DIPENGINE_REQUIRE(p.threads >= 0 && p.threads <= 1024, "The renderer has %d threads; give 0 (all cores) to 1024.", p.threads);
  DIPENGINE_REQUIRE(p.options_count >= 0, "The renderer has %d options; give 0 or more.", p.options_count);
  for (int32_t i = 0; i < p.options_count; ++i) {
    DIPENGINE_TRY(given("dipengine_renderer_create", {{"option_names", p.option_names}, {"option_values", p.option_values}}));
    DIPENGINE_TRY(given("dipengine_renderer_create", {{"an option's name", p.option_names[i]}, {"an option's value", p.option_values[i]}}));
  }
  return DIPENGINE_OK;
}

int32_t dtype_of(const std::string& name) {
  if (name == "uint8") return DIPENGINE_UINT8;
  if (name == "uint16") return DIPENGINE_UINT16;
  if (name == "float32") return DIPENGINE_FLOAT32;
  return name == "float64" ? static_cast<int32_t>(DIPENGINE_FLOAT64) : -1;
}

}  // namespace

extern "C" {

dipengine_status dipengine_renderer_create(const dipengine_renderer_params* params, dipengine_renderer** renderer) {
  DIPENGINE_TRY(given(__func__, {{"renderer", renderer}}));
  *renderer = nullptr;
  DIPENGINE_TRY(dipengine::check_struct(params, __func__));
  DIPENGINE_TRY(check_renderer(*params));
  return guarded([&] { *renderer = new dipengine_renderer(*params); });
}

void dipengine_renderer_destroy(dipengine_renderer* renderer) { delete renderer; }

dipengine_status dipengine_renderer_get_info(const dipengine_renderer* renderer, dipengine_renderer_info* info) {
  DIPENGINE_TRY(given(__func__, {{"renderer", renderer}}));
  DIPENGINE_TRY(dipengine::check_struct(info, __func__));
  const dipengine::OnnxRenderer& r = renderer->renderer;
  const dipengine::GeneratorModel& m = r.model();
  *info = {sizeof(*info), m.width, m.height, static_cast<int32_t>(m.channels), dtype_of(m.dtype), m.values.low, m.values.high,
           static_cast<int32_t>(m.values.curve), m.psnr, m.task.c_str(), m.dtype.c_str(), m.precision.c_str(), r.provider().c_str(),
           r.notice().c_str(), r.runtime_version().c_str(), m.metadata.c_str()};
  return DIPENGINE_OK;
}

dipengine_status dipengine_renderer_paint(dipengine_renderer* renderer, const dipengine_paint_params* paint) {
  DIPENGINE_TRY(given(__func__, {{"renderer", renderer}}));
  DIPENGINE_TRY(dipengine::check_struct(paint, __func__));
  DIPENGINE_REQUIRE(paint->units == DIPENGINE_UNITS_DATA || paint->units == DIPENGINE_UNITS_UNIT,
                    "Painting was asked for units %d; it takes data (0) or unit (1).", paint->units);
  const bool integers = paint->dtype == DIPENGINE_UINT8 || paint->dtype == DIPENGINE_UINT16;
  DIPENGINE_REQUIRE(integers || paint->dtype == DIPENGINE_FLOAT32 || paint->dtype == DIPENGINE_FLOAT64,
                    "Painting was asked for dtype %d; it takes float32, float64, uint8 or uint16.", paint->dtype);
  DIPENGINE_REQUIRE(!integers || paint->units == DIPENGINE_UNITS_DATA, "Units in [0, 1] are painted as floats; ask for float32.");
  return guarded([&] { renderer->renderer.paint(*paint); });
}

}  // extern "C"
