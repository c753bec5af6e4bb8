# The CUDA kernels: target dipengine_cuda (objects) where they are built, and DIPENGINE_CUDA_STATE, which says so in words.
#
#   ON    build them, or fail where there is no CUDA compiler; for every architecture of DIPENGINE_CUDA_ALL
#   AUTO  build them where there are both a compiler and a GPU, for that GPU alone. A machine without one could not run
#         them, and every build of the package there would take minutes longer
#   OFF   do not
#
# CMAKE_CUDA_ARCHITECTURES chooses other ones. The runtime is linked statically and the driver's library not at all, so
# the result loads on a machine without a driver and says there what it misses.
set(DIPENGINE_CUDA_SOURCES
  csrc/fit/census_cuda.cu
  csrc/fit/iteration_cuda.cu
  csrc/ops/activation/activation_cuda.cu
  csrc/ops/adam/adam_cuda.cu
  csrc/ops/blur/blur_cuda.cu
  csrc/ops/conv/conv_bias_gradient_cuda.cu
  csrc/ops/conv/conv_data_gradient_cuda.cu
  csrc/ops/conv/conv_data_plan_cuda.cu
  csrc/ops/conv/conv_few_gradient_cuda.cu
  csrc/ops/conv/conv_forward_cuda.cu
  csrc/ops/conv/conv_joint_gradients_cuda.cu
  csrc/ops/conv/conv_mean_cuda.cu
  csrc/ops/conv/conv_operand_cuda.cu
  csrc/ops/conv/conv_pack_cuda.cu
  csrc/ops/conv/conv_plan_cuda.cu
  csrc/ops/conv/conv_weight_gradient_cuda.cu
  csrc/ops/deviance/deviance_cuda.cu
  csrc/ops/masked_mse/masked_mse_cuda.cu
  csrc/ops/norm/norm_cuda.cu
  csrc/ops/norm/parts_cuda.cu
  csrc/ops/philox/philox_cuda.cu
  csrc/ops/resample/resample_cuda.cu)
# Host code that calls them.
set(DIPENGINE_CUDA_HOST_SOURCES
  csrc/fit/cuda_branches.cpp
  csrc/fit/cuda_data.cpp
  csrc/fit/cuda_device.cpp
  csrc/fit/cuda_norms.cpp
  csrc/fit/cuda_plan.cpp
  csrc/fit/cuda_weights.cpp)
set(DIPENGINE_CUDA_ALL 80-real 86-real 89-real 90-real 120-real 80-virtual)
# As on the host: a fused multiply-add only where the source says fma.
set(DIPENGINE_CUDA_FLAGS -fmad=false)

if(NOT DIPENGINE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "DIPENGINE_CUDA is '${DIPENGINE_CUDA}'; it takes AUTO, ON or OFF.")
endif()

set(build_cuda OFF)
if(DIPENGINE_CUDA STREQUAL "OFF")
  set(DIPENGINE_CUDA_STATE "none (built with DIPENGINE_CUDA=OFF)")
elseif(DIPENGINE_CUDA STREQUAL "AUTO" AND NOT EXISTS "/dev/nvidiactl" AND NOT EXISTS "/dev/dxg")
  set(DIPENGINE_CUDA_STATE "none (built on a machine without a GPU, DIPENGINE_CUDA=ON builds them anywhere)")
else()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(build_cuda ON)
  elseif(DIPENGINE_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "DIPENGINE_CUDA is ON but no working CUDA compiler was found; install the CUDA toolkit (12.8 or newer), set CUDACXX to its nvcc, or build with -DDIPENGINE_CUDA=AUTO.")
  else()
    set(DIPENGINE_CUDA_STATE "none (built on a machine without a CUDA compiler)")
  endif()
endif()

if(build_cuda)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    if(DIPENGINE_CUDA STREQUAL "ON")
      set(CMAKE_CUDA_ARCHITECTURES ${DIPENGINE_CUDA_ALL})
    else()
      set(CMAKE_CUDA_ARCHITECTURES native)
    endif()
  endif()
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  add_library(dipengine_cuda OBJECT ${DIPENGINE_CUDA_SOURCES} ${DIPENGINE_CUDA_HOST_SOURCES}
              csrc/platform/cuda/device.cu csrc/platform/cuda/stream.cu)
  target_link_libraries(dipengine_cuda PRIVATE dipengine_flags)
  target_compile_options(dipengine_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${DIPENGINE_CUDA_FLAGS}>")
  set_target_properties(dipengine_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden)
  list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
  set(DIPENGINE_CUDA_STATE "for ${architectures} (nvcc ${CMAKE_CUDA_COMPILER_VERSION})")
endif()
