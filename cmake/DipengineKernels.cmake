# dipengine_add_kernels(PREFIX SOURCE...): compile each source once per instruction set, as object targets PREFIX_<set>.
#
# Every variant sees DIPENGINE_ISA_NAMESPACE, the namespace that its kernels live in; the portable one is also compiled
# for float64 (DIPENGINE_WITH_FLOAT64). Sets DIPENGINE_KERNEL_TARGETS, the targets, and DIPENGINE_ISA_DEFINITIONS, by
# which the dispatcher in csrc/platform knows the sets that there are.
# To add a set: a flags line here, a line in csrc/platform/cpu_dispatch.h.
# DIPENGINE_ONLY_ISAS names the sets to compile beside the portable one ("portable" for it alone), for builds whose point is not speed.
set(DIPENGINE_ONLY_ISAS "" CACHE STRING "Compile the kernels for these instruction sets and the portable one; empty: for all")
include(CheckCXXCompilerFlag)
set(DIPENGINE_ISAS portable)
set(DIPENGINE_FLAGS_portable "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND DIPENGINE_ISAS avx2 avx512 avx512bf16)
  set(DIPENGINE_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(DIPENGINE_FLAGS_avx512
    -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd -mavx2 -mfma -mf16c -mprefer-vector-width=512
    -Wno-maybe-uninitialized -Wno-uninitialized)  # GCC 12 warns of its own intrinsics
  set(DIPENGINE_FLAGS_avx512bf16 ${DIPENGINE_FLAGS_avx512} -mavx512bf16)
  check_cxx_compiler_flag(-mavx512fp16 DIPENGINE_COMPILES_AVX512FP16)
  if(DIPENGINE_COMPILES_AVX512FP16)
    list(APPEND DIPENGINE_ISAS avx512fp16)
    set(DIPENGINE_FLAGS_avx512fp16 ${DIPENGINE_FLAGS_avx512bf16} -mavx512fp16)
  endif()
endif()
if(DIPENGINE_ONLY_ISAS)
  foreach(isa IN LISTS DIPENGINE_ISAS)
    if(NOT isa STREQUAL portable AND NOT isa IN_LIST DIPENGINE_ONLY_ISAS)
      list(REMOVE_ITEM DIPENGINE_ISAS ${isa})
    endif()
  endforeach()
endif()
string(REPLACE ";" " " DIPENGINE_ISAS_TEXT "${DIPENGINE_ISAS}")

function(dipengine_add_kernels prefix)
  set(targets "")
  set(definitions "")
  foreach(isa IN LISTS DIPENGINE_ISAS)
    set(target ${prefix}_${isa})
    add_library(${target} OBJECT ${ARGN})
    target_link_libraries(${target} PRIVATE dipengine_flags)
    target_compile_options(${target} PRIVATE ${DIPENGINE_FLAGS_${isa}})
    target_compile_definitions(${target} PRIVATE DIPENGINE_ISA_NAMESPACE=${isa})
    if(isa STREQUAL "portable")
      target_compile_definitions(${target} PRIVATE DIPENGINE_WITH_FLOAT64)
    endif()
    string(TOUPPER ${isa} upper)
    list(APPEND definitions DIPENGINE_WITH_${upper})
    list(APPEND targets ${target})
  endforeach()
  set(DIPENGINE_KERNEL_TARGETS ${targets} PARENT_SCOPE)
  set(DIPENGINE_ISA_DEFINITIONS ${definitions} PARENT_SCOPE)
endfunction()
