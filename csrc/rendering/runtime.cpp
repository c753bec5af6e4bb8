#include "rendering/runtime.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>

#include "rendering/unusable.h"

namespace dipengine {
namespace {

constexpr int kOldest = 12;  // the first whose operators (opset 17) are those that `dipengine export` writes

std::string real_path(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> real(realpath(path.c_str(), nullptr), &std::free);
  return real == nullptr ? path : real.get();
}

// Its interfaces are numbered by its minor version, and it keeps those before: the newest that both sides know. Asking for one that
// it has not would make it complain on stderr.
const OrtApi* newest_api(const OrtApiBase* base, const std::string& path, const std::string& version) {
  int major = 0, minor = 0;
  const bool numbered = std::sscanf(version.c_str(), "%d.%d", &major, &minor) == 2 && major == 1;
  const OrtApi* api = numbered && minor >= kOldest
                          ? base->GetApi(static_cast<uint32_t>(std::min(minor, static_cast<int>(ORT_API_VERSION))))
                          : nullptr;
  if (api == nullptr) {
    throw Unusable(DIPENGINE_UNSUPPORTED, path + " is ONNX Runtime " + version.substr(0, 40) + "; install 1." +
                                              std::to_string(kOldest) + " or a later 1.x.");
  }
  return api;
}

}  // namespace

Runtime::Runtime(const std::string& path, const OrtApiBase* base) : path_(path), version_(base->GetVersionString()) {
  Ort::InitApi(newest_api(base, path, version_));
  env_ = std::make_unique<Ort::Env>(ORT_LOGGING_LEVEL_ERROR, "dipengine");
}

Runtime& Runtime::open(const std::string& path) {
  static std::mutex mutex;
  static Runtime* opened = nullptr;  // never destroyed: threads of the runtime may outlive main()
  if (path.empty() || path[0] != '/') {
    throw Unusable("The runtime is '" + path + "'; give the whole path of libonnxruntime, from the root, so that no other is found.");
  }
  const std::lock_guard<std::mutex> lock(mutex);
  const std::string real = real_path(path);
  if (opened != nullptr) {
    if (opened->path_ == real) return *opened;
    throw Unusable("This process paints with " + opened->path_ + " already; give that one, or start another process.");
  }
  void* library = dlopen(real.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* why = dlerror();
    throw Unusable("The runtime cannot be opened (" + std::string(why == nullptr ? path : why) + "); check its path.");
  }
  using GetBase = const OrtApiBase*(ORT_API_CALL*)();
  const auto get_base = reinterpret_cast<GetBase>(dlsym(library, "OrtGetApiBase"));
  const OrtApiBase* base = get_base == nullptr ? nullptr : get_base();
  if (base == nullptr) {
    dlclose(library);
    throw Unusable(path + " is no ONNX Runtime; give the path of libonnxruntime.");
  }
  try {
    opened = new Runtime(real, base);
  } catch (const Unusable&) {
    dlclose(library);
    throw;
  }
  return *opened;
}

}  // namespace dipengine
