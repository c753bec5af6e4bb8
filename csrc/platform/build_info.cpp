// What this library was built from; the DIPENGINE_BUILD_* words come from CMakeLists.txt.
#include "platform/error.h"

extern "C" {

int32_t dipengine_abi_version(void) { return DIPENGINE_ABI_VERSION; }

const char* dipengine_version_string(void) { return DIPENGINE_BUILD_VERSION; }

const char* dipengine_cuda_manifest(void) { return DIPENGINE_BUILD_KERNELS; }

dipengine_status dipengine_get_build_info(dipengine_build_info* info) {
  DIPENGINE_TRY(dipengine::check_struct(info, "dipengine_get_build_info"));
  info->compiler = DIPENGINE_BUILD_COMPILER;
  info->build_type = DIPENGINE_BUILD_TYPE;
  info->instruction_sets = DIPENGINE_BUILD_ISAS;
  info->cuda = DIPENGINE_BUILD_CUDA;
  return DIPENGINE_OK;
}

}  // extern "C"
