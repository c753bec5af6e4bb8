// One generator, ready to paint. The twin of engine/dipengine/rendering/renderer.py.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dipengine/render.h"
#include "rendering/model.h"
#include "rendering/runtime.h"

namespace dipengine {

class OnnxRenderer {
 public:
  // From params that were checked for NULL. Throws Unusable, std::bad_alloc.
  explicit OnnxRenderer(const dipengine_renderer_params& params);

  // Throws as above; may run in several threads at once.
  void paint(const dipengine_paint_params& paint);

  const GeneratorModel& model() const { return model_; }
  const std::string& provider() const { return provider_; }
  const std::string& notice() const { return notice_; }
  const std::string& runtime_version() const { return runtime_->version(); }

 private:
  void start(const dipengine_renderer_params& params, const void* data, size_t bytes);
  std::unique_ptr<Ort::Session> session_on(const std::string& provider, const dipengine_renderer_params& params, const void* data,
                                           size_t bytes) const;
  Ort::Value network(int64_t x, int64_t y, int64_t width, int64_t height, bool whole);

  Runtime* runtime_;
  GeneratorModel model_;
  std::unique_ptr<Ort::Session> session_;
  std::string provider_, notice_;
};

}  // namespace dipengine
