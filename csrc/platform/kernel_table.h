// The kernels of one op, per type that images are stored in.
#pragma once

#include <cstdint>

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

// Entry<Stored>::kernels() for float32, bfloat16 and, in the portable set alone, float64 (elsewhere null).
template <typename Table, template <typename> class Entry>
constexpr Table kernel_table() {
#if defined(DIPENGINE_WITH_FLOAT64)
  return {Entry<float>::kernels(), Entry<uint16_t>::kernels(), Entry<double>::kernels()};
#else
  return {Entry<float>::kernels(), Entry<uint16_t>::kernels(), {}};
#endif
}

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
