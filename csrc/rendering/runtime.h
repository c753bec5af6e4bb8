// ONNX Runtime, opened at run time.
#pragma once

#include <memory>
#include <string>

#define ORT_API_MANUAL_INIT  // Ort's table of functions is filled by Runtime::open, not by a symbol that would have to be linked
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

namespace dipengine {

class Runtime {
 public:
  // The library at `path`, an absolute one: a bare name would be searched for where the caller did not say. Once open it stays so
  // for the life of the process, which paints with no second one: the C++ interface keeps one table of functions for all.
  // Throws Unusable for a path that is relative, names no ONNX Runtime, one too old, or another one than before.
  static Runtime& open(const std::string& path);

  const Ort::Env& env() const { return *env_; }
  const std::string& version() const { return version_; }

 private:
  Runtime(const std::string& path, const OrtApiBase* base);

  std::string path_, version_;
  std::unique_ptr<Ort::Env> env_;  // objects of Ort, empty ones too, need the table to be destroyed: none before it is there
};

}  // namespace dipengine
