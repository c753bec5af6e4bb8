#include "platform/cpu_dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace dipengine {
namespace {

constexpr const char* kNames[kIsaCount] = {"portable", "avx2", "avx512", "avx512bf16", "avx512fp16"};
constexpr int kUndecided = -1;
constexpr int kBadEnvironment = -2;

std::atomic<int> chosen{kUndecided};

bool has(uint32_t word, int bit) { return (word >> bit) & 1u; }

// The highest set that both the CPU and the operating system (which must save the wider registers) have.
Isa detect() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::portable;
  const bool osxsave = has(c, 27), fma = has(c, 12), avx = has(c, 28), f16c = has(c, 29);
  if (!osxsave || !fma || !avx || !f16c) return Isa::portable;
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 0x6u) != 0x6u) return Isa::portable;  // SSE and AVX state
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has(b, 5)) return Isa::portable;
  const unsigned subleaves = a;
  const bool fp16 = has(d, 23);
  const bool avx512 = has(b, 16) && has(b, 17) && has(b, 28) && has(b, 30) && has(b, 31);  // F, DQ, CD, BW, VL
  if (!avx512 || (low & 0xe0u) != 0xe0u) return Isa::avx2;                                  // opmask and upper state
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, 5)) return fp16 ? Isa::avx512fp16 : Isa::avx512bf16;
  return Isa::avx512;
#else
  return Isa::portable;
#endif
}

int level_named(const char* name) {
  for (int level = 0; level < kIsaCount; ++level) {
    if (std::strcmp(name, kNames[level]) == 0) return level;
  }
  return kBadEnvironment;
}

// Whether the kernels were compiled for a level.
constexpr bool kCompiled[kIsaCount] = {
    true,
#if defined(DIPENGINE_WITH_AVX2)
    true,
#else
    false,
#endif
#if defined(DIPENGINE_WITH_AVX512)
    true,
#else
    false,
#endif
#if defined(DIPENGINE_WITH_AVX512BF16)
    true,
#else
    false,
#endif
#if defined(DIPENGINE_WITH_AVX512FP16)
    true,
#else
    false,
#endif
};

// The highest level, not above the given one, that this CPU has and the kernels were compiled for; what is none stays as it is.
int capped(int level) {
  static const int highest = static_cast<int>(detect());
  int least = level < highest ? level : highest;
  while (least > 0 && !kCompiled[least]) --least;
  return least;
}

// AMD's cores do vdpbf16ps at the rate of a float32 FMA, for twice the products; Intel's at a quarter of it (measured on
// Emerald Rapids: 120 against 340 GFLOP/s on two cores), so there bf16 numbers are multiplied in float32, or in
// float16 by cores that have it.
bool bf16_products_are_fast() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(0, &a, &b, &c, &d) && !(b == signature_INTEL_ebx && d == signature_INTEL_edx && c == signature_INTEL_ecx);
#else
  return false;
#endif
}

int fastest() {
  const bool slow = capped(kIsaCount) == static_cast<int>(Isa::avx512bf16) && !bf16_products_are_fast();
  return capped(slow ? static_cast<int>(Isa::avx512) : kIsaCount);
}

int from_environment() {
  const char* wish = std::getenv("DIPENGINE_ISA");
  if (wish == nullptr || *wish == '\0') return fastest();
  return capped(level_named(wish));
}

}  // namespace

dipengine_status current_isa(Isa* isa) {
  int level = chosen.load(std::memory_order_relaxed);
  if (level == kUndecided) {
    level = from_environment();
    chosen.store(level, std::memory_order_relaxed);
  }
  DIPENGINE_REQUIRE(level != kBadEnvironment,
                    "DIPENGINE_ISA holds an unknown word; set it to portable, avx2, avx512, avx512bf16 or avx512fp16,"
                    " or unset it.");
  *isa = static_cast<Isa>(level);
  return DIPENGINE_OK;
}

}  // namespace dipengine

extern "C" {

const char* dipengine_cpu_isa(void) {
  dipengine::Isa isa = dipengine::Isa::portable;
  if (dipengine::current_isa(&isa) != DIPENGINE_OK) return nullptr;
  return dipengine::kNames[static_cast<int>(isa)];
}

int32_t dipengine_cpu_has_isa(const char* name) {
  const int level = name == nullptr ? dipengine::kBadEnvironment : dipengine::level_named(name);
  return level >= 0 && dipengine::capped(level) == level;
}

int32_t dipengine_cpu_bfloat16(void) {
  dipengine::Isa isa = dipengine::Isa::portable;
  return dipengine::current_isa(&isa) == DIPENGINE_OK && isa >= dipengine::Isa::avx512 &&
         dipengine::capped(dipengine::kIsaCount) >= static_cast<int>(dipengine::Isa::avx512bf16);
}

dipengine_status dipengine_set_cpu_isa(const char* name) {
  if (name == nullptr) {
    dipengine::chosen.store(dipengine::kUndecided, std::memory_order_relaxed);
    return DIPENGINE_OK;
  }
  const int level = dipengine::level_named(name);
  DIPENGINE_REQUIRE(level != dipengine::kBadEnvironment,
                    "There is no instruction set '%s'; choose portable, avx2, avx512, avx512bf16 or avx512fp16.", name);
  dipengine::chosen.store(dipengine::capped(level), std::memory_order_relaxed);
  return DIPENGINE_OK;
}

}  // extern "C"
