# DIPENGINE_CUDA_STATE: what CUDA kernels this build has, in words, for the build information.
#
# This version has no CUDA source, so there is nothing to enable the language for. ON still asks for a compiler, so that
# a build meant for a GPU fails here and not at run time; AUTO and OFF do not look for one.
set(DIPENGINE_CUDA_SOURCES
  csrc/ops/adam/adam_cuda.cu
  csrc/ops/conv/conv_forward_cuda.cu
  csrc/ops/conv/conv_moments_cuda.cu
  csrc/ops/conv/conv_plan_cuda.cu
  csrc/ops/conv/conv_weights_cuda.cu
  csrc/ops/masked_mse/masked_mse_cuda.cu
  csrc/ops/philox/philox_cuda.cu)
if(NOT DIPENGINE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "DIPENGINE_CUDA is '${DIPENGINE_CUDA}'; it takes AUTO, ON or OFF.")
endif()
set(DIPENGINE_CUDA_STATE "none in this version")
if(DIPENGINE_CUDA STREQUAL "ON")
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR
      "DIPENGINE_CUDA is ON but no working CUDA compiler was found; install the CUDA toolkit (12.8 or newer), set CUDACXX to its nvcc, or build with -DDIPENGINE_CUDA=AUTO.")
  endif()
  set(DIPENGINE_CUDA_STATE "none in this version (compiler found: ${CMAKE_CUDA_COMPILER})")
elseif(DIPENGINE_CUDA STREQUAL "OFF")
  set(DIPENGINE_CUDA_STATE "none (built with DIPENGINE_CUDA=OFF)")
endif()
