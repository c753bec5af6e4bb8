# dipengine_flags: an interface target with what every C++ source of the project is compiled with.
#
# -ffp-contract=off: a fused multiply-add only where the source says fma, so that every instruction set gives the same
# bits. -fno-math-errno, -fno-trapping-math: let square roots and selections be vectorised; they change no value.
file(STRINGS "${PROJECT_SOURCE_DIR}/csrc/include/dipengine/dipengine.h" abi_line REGEX "^#define DIPENGINE_ABI_VERSION")
string(REGEX MATCH "[0-9]+$" DIPENGINE_ABI_VERSION "${abi_line}")

set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")

add_library(dipengine_flags INTERFACE)
target_compile_features(dipengine_flags INTERFACE cxx_std_17)
set_property(TARGET dipengine_flags PROPERTY INTERFACE_CXX_EXTENSIONS OFF)
target_include_directories(dipengine_flags INTERFACE
  "${PROJECT_SOURCE_DIR}/csrc/include" "${PROJECT_SOURCE_DIR}/csrc")
set(host_flags -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Wconversion -Wno-sign-conversion)

if(DIPENGINE_SANITIZE)
  list(APPEND host_flags -fsanitize=${DIPENGINE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  target_link_options(dipengine_flags INTERFACE -fsanitize=${DIPENGINE_SANITIZE})
endif()
target_compile_options(dipengine_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${host_flags}>")
