// Which instruction set the ops use, decided at run time.
#pragma once

#include "platform/error.h"

namespace dipengine {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3, avx512fp16 = 4 };
constexpr int kIsaCount = 5;

// The set in use, in *isa; fails where DIPENGINE_ISA holds an unknown word.
dipengine_status current_isa(Isa* isa);

// Kernel tables of one op, from the lowest instruction set up; null where a set was not compiled in.
template <typename Table>
struct Tables {
  const Table* by_isa[kIsaCount];

  // The table of the highest compiled set that is not above the one in use.
  dipengine_status choose(const Table** table) const {
    Isa isa = Isa::portable;
    DIPENGINE_TRY(current_isa(&isa));
    int level = static_cast<int>(isa);
    while (by_isa[level] == nullptr) --level;  // portable is always there
    *table = by_isa[level];
    return DIPENGINE_OK;
  }
};

}  // namespace dipengine

// Declare `extern const Type name` in the namespace of every compiled instruction set and define a Tables<Type> of
// them, in namespace dipengine.
#if defined(DIPENGINE_WITH_AVX2)
#define DIPENGINE_DECLARE_AVX2(Type, name) namespace avx2 { extern const Type name; }
#define DIPENGINE_TABLE_AVX2(name) &avx2::name
#else
#define DIPENGINE_DECLARE_AVX2(Type, name)
#define DIPENGINE_TABLE_AVX2(name) nullptr
#endif
#if defined(DIPENGINE_WITH_AVX512)
#define DIPENGINE_DECLARE_AVX512(Type, name) namespace avx512 { extern const Type name; }
#define DIPENGINE_TABLE_AVX512(name) &avx512::name
#else
#define DIPENGINE_DECLARE_AVX512(Type, name)
#define DIPENGINE_TABLE_AVX512(name) nullptr
#endif
#if defined(DIPENGINE_WITH_AVX512BF16)
#define DIPENGINE_DECLARE_AVX512BF16(Type, name) namespace avx512bf16 { extern const Type name; }
#define DIPENGINE_TABLE_AVX512BF16(name) &avx512bf16::name
#else
#define DIPENGINE_DECLARE_AVX512BF16(Type, name)
#define DIPENGINE_TABLE_AVX512BF16(name) nullptr
#endif
#if defined(DIPENGINE_WITH_AVX512FP16)
#define DIPENGINE_DECLARE_AVX512FP16(Type, name) namespace avx512fp16 { extern const Type name; }
#define DIPENGINE_TABLE_AVX512FP16(name) &avx512fp16::name
#else
#define DIPENGINE_DECLARE_AVX512FP16(Type, name)
#define DIPENGINE_TABLE_AVX512FP16(name) nullptr
#endif
#define DIPENGINE_TABLES(Type, name, tables)               \
  namespace portable { extern const Type name; }           \
  DIPENGINE_DECLARE_AVX2(Type, name)                       \
  DIPENGINE_DECLARE_AVX512(Type, name)                     \
  DIPENGINE_DECLARE_AVX512BF16(Type, name)                 \
  DIPENGINE_DECLARE_AVX512FP16(Type, name)                 \
  static constexpr Tables<Type> tables{                    \
      {&portable::name, DIPENGINE_TABLE_AVX2(name), DIPENGINE_TABLE_AVX512(name), DIPENGINE_TABLE_AVX512BF16(name), \
       DIPENGINE_TABLE_AVX512FP16(name)}};
