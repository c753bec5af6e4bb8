// The register layouts of the tensor cores' operands, each element written out from the tables of the PTX ISA, and the
// products against plain loops. (NVIDIA, PTX ISA 9.0, "Matrix fragments for mma.m16n8k8", "... m16n8k16", "ldmatrix".)
#include "emulated_kernels.h"
#include "guarded.h"
#include "platform/cuda/tensor_core.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;

namespace {

struct Place {
  int row, column;
};

// The tables: element i of a fragment, by groupID = lane >> 2 and threadID_in_group = lane % 4.
Place a_bf16(int lane, int i) {
  const int group = lane >> 2, member = lane % 4;
  const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
  const int column = i < 4 ? member * 2 + (i & 1) : member * 2 + (i & 1) + 8;
  return {row, column};
}
Place b_bf16(int lane, int i) {
  const int group = lane >> 2, member = lane % 4;
  return {i < 2 ? member * 2 + (i & 1) : member * 2 + (i & 1) + 8, group};
}
Place a_tf32(int lane, int i) {
  const int group = lane >> 2, member = lane % 4;
  return {i == 0 || i == 2 ? group : group + 8, i < 2 ? member : member + 4};
}
Place b_tf32(int lane, int i) {
  const int group = lane >> 2, member = lane % 4;
  return {i == 0 ? member : member + 4, group};
}
Place c_all(int lane, int i) {
  const int group = lane >> 2, member = lane % 4;
  return {i < 2 ? group : group + 8, member * 2 + (i & 1)};
}

// Small integers: exact in bfloat16, and every sum in float32.
std::vector<float> integers(check::Numbers& numbers, int count) {
  std::vector<float> values;
  for (int i = 0; i < count; ++i) values.push_back(static_cast<float>(std::floor(numbers.next() * 8)));
  return values;
}

}  // namespace

TEST(golden_fragments_of_mma_bf16_give_the_plain_product) {
  check::Numbers numbers(1);
  const std::vector<float> a = integers(numbers, 256), b = integers(numbers, 128), c = integers(numbers, 128);
  Array<uint16_t> fragments(32 * 12);
  Array<float> sums(32 * 4);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i)
      fragments[lane * 12 + i] = bf16_from_float(a[static_cast<size_t>(a_bf16(lane, i).row * 16 + a_bf16(lane, i).column)]);
    for (int i = 0; i < 4; ++i)
      fragments[lane * 12 + 8 + i] = bf16_from_float(b[static_cast<size_t>(b_bf16(lane, i).row * 8 + b_bf16(lane, i).column)]);
    for (int i = 0; i < 4; ++i) sums[lane * 4 + i] = c[static_cast<size_t>(c_all(lane, i).row * 8 + c_all(lane, i).column)];
  }
  CHECK(emulated::mma(fragments.data(), sums.data(), false) == DIPENGINE_OK);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const Place at = c_all(lane, i);
      float expected = c[static_cast<size_t>(at.row * 8 + at.column)];
      for (int k = 0; k < 16; ++k)
        expected += a[static_cast<size_t>(at.row * 16 + k)] * b[static_cast<size_t>(k * 8 + at.column)];
      CHECK(sums[lane * 4 + i] == expected);
    }
  }
}

TEST(golden_fragments_of_mma_tf32_give_the_plain_product_of_rounded_inputs) {
  check::Numbers numbers(2);
  const std::vector<float> a = integers(numbers, 128), b = integers(numbers, 64), c = integers(numbers, 128);
  Array<float> fragments(32 * 6), sums(32 * 4);
  for (int lane = 0; lane < 32; ++lane) {
    // Mantissa bits below the tenth are ignored.
    for (int i = 0; i < 4; ++i) {
      fragments[lane * 6 + i] =
          float_from_bits(float_bits(a[static_cast<size_t>(a_tf32(lane, i).row * 8 + a_tf32(lane, i).column)]) | 0xfffu);
    }
    for (int i = 0; i < 2; ++i)
      fragments[lane * 6 + 4 + i] = b[static_cast<size_t>(b_tf32(lane, i).row * 8 + b_tf32(lane, i).column)];
    for (int i = 0; i < 4; ++i) sums[lane * 4 + i] = c[static_cast<size_t>(c_all(lane, i).row * 8 + c_all(lane, i).column)];
  }
  CHECK(emulated::mma(fragments.data(), sums.data(), true) == DIPENGINE_OK);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const Place at = c_all(lane, i);
      float expected = c[static_cast<size_t>(at.row * 8 + at.column)];
      for (int k = 0; k < 8; ++k) expected += a[static_cast<size_t>(at.row * 8 + k)] * b[static_cast<size_t>(k * 8 + at.column)];
      CHECK(sums[lane * 4 + i] == expected);
    }
  }
}

// ldmatrix .x4: thread T gets row T / 4, elements 2 (T % 4) and the next, of each 8x8 matrix; .trans: of its transpose.
TEST(golden_fragments_of_load_matrices) {
  std::vector<uint16_t> values;
  for (int i = 0; i < 256; ++i) values.push_back(static_cast<uint16_t>(i));
  for (int transposed = 0; transposed < 2; ++transposed) {
    Array<uint16_t> from(values), out(32 * 8);
    CHECK(emulated::load_matrices(from.data(), out.data(), transposed != 0) == DIPENGINE_OK);
    for (int lane = 0; lane < 32; ++lane) {
      for (int m = 0; m < 4; ++m) {
        for (int e = 0; e < 2; ++e) {
          const int row = lane / 4, column = 2 * (lane % 4) + e;
          const int expected = transposed != 0 ? 64 * m + 8 * column + row : 64 * m + 8 * row + column;
          CHECK(out[lane * 8 + 2 * m + e] == expected);
        }
      }
    }
  }
}

// Of 32-bit elements a row of a matrix is four: rows 0 to 7, 8 to 15 and columns 0 to 3, 4 to 7 of A in the order of the
// matrices give the fragment of mma.m16n8k8.
TEST(golden_fragments_of_load_matrices_are_those_of_mma_tf32) {
  check::Numbers numbers(3);
  const std::vector<float> a = integers(numbers, 128);
  std::vector<uint16_t> rows(256);  // row l % 8 of matrix l / 8 is what lane l gives the address of
  for (int l = 0; l < 32; ++l) {
    const int row = l % 8 + l / 8 % 2 * 8, column = l / 16 * 4;
    std::memcpy(rows.data() + 8 * l, a.data() + row * 8 + column, 16);
  }
  Array<uint16_t> from(rows), out(32 * 8);
  CHECK(emulated::load_matrices(from.data(), out.data(), false) == DIPENGINE_OK);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      float got;
      std::memcpy(&got, out.data() + lane * 8 + 2 * i, 4);
      CHECK(got == a[static_cast<size_t>(a_tf32(lane, i).row * 8 + a_tf32(lane, i).column)]);
    }
  }
}

// cvt.rna.tf32.f32: ten bits behind the leading one, to the nearest, ties away from zero.
TEST(golden_values_of_rounding_to_tf32) {
  const float infinity = INFINITY;
  const std::vector<std::pair<float, float>> golden = {
      {0.0f, 0.0f},
      {-0.0f, -0.0f},
      {1.0f, 1.0f},
      {0x1.ffcp0f, 0x1.ffcp0f},
      {0x1.001p0f, 0x1.0p0f},        // below the tie
      {0x1.002p0f, 0x1.004p0f},      // a tie: away
      {-0x1.002p0f, -0x1.004p0f},
      {0x1.006p0f, 0x1.008p0f},      // the next tie: away too, where to even would be down
      {0x1.001ffep0f, 0x1.0p0f},     // the last float32 below the tie
      {0x1.ffep0f, 0x1.0p1f},        // into the next power of two
      {-0x1.23456p-100f, -0x1.234p-100f},
      {0x1p-149f, 0.0f},             // subnormal: as many bits below the point
      {0x1p-136f, 0x1p-136f},
      {infinity, infinity},
      {-infinity, -infinity},
  };
  for (const auto& [from, to] : golden) {
    CHECK(cuda::tf32_from_float(from) == float_bits(to));
  }
  CHECK(std::isnan(float_from_bits(cuda::tf32_from_float(NAN) & 0xffffe000u)));
}

TEST(sums_of_products_are_truncated_and_overflow_nowhere) {
  Array<uint16_t> fragments(32 * 12);
  Array<float> sums(32 * 4);
  for (int i = 0; i < 32 * 12; ++i) fragments[i] = bf16_from_float(0);
  for (int i = 0; i < 32 * 4; ++i) sums[i] = 1.0f;
  fragments[0] = bf16_from_float(0x1.8p-24f);  // A (0, 0)
  fragments[8] = bf16_from_float(1.0f);        // B (0, 0)
  CHECK(emulated::mma(fragments.data(), sums.data(), false) == DIPENGINE_OK);
  CHECK(sums[0] == 1.0f);  // to nearest it would be 1 + 2^-23
}

// ---- what the emulator must notice ----------------------------------------------------------------------------------

static bool finds(const char* words, emulated::Mistake mistake) {
  emulator::clear_faults();
  Array<float> data(256);
  Array<uint32_t> common(std::vector<uint32_t>{0, 5});
  for (int i = 0; i < 256; ++i) data[i] = static_cast<float>(i);
  const dipengine_status status = emulated::make_mistake(data.data(), common.data(), mistake);
  bool found = false;
  for (const std::string& fault : emulator::faults()) found = found || fault.find(words) != std::string::npos;
  if (!found) {
    std::printf("  not found: %s\n", words);
    for (const std::string& fault : emulator::faults()) std::printf("    %s\n", fault.c_str());
  }
  emulator::clear_faults();
  return found && status != DIPENGINE_OK;
}

TEST(emulator_finds_mistakes_in_every_order) {
  using emulated::Mistake;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    emulator::settings().seed = seed;
    CHECK(finds("with no barrier between", Mistake::no_barrier));
    CHECK(finds("with no barrier between", Mistake::no_second_barrier));
    CHECK(finds("with no barrier between", Mistake::no_warp_barrier));
    CHECK(finds("nobody wrote", Mistake::unwritten));
    CHECK(finds("reads outside of its shared memory", Mistake::past_shared));
    CHECK(finds("writes outside of a buffer", Mistake::past_global));
    CHECK(finds("asynchronous copy may not have brought", Mistake::no_wait));
    CHECK(finds("asynchronous copy may not have brought", Mistake::wait_for_one_too_few));
    CHECK(finds("with no barrier between", Mistake::copy_into_what_is_read));
    CHECK(finds("ends with an asynchronous copy under way", Mistake::copy_left));
    CHECK(finds("for threads that never come", Mistake::barrier_in_a_branch));
    CHECK(finds("for threads that never come", Mistake::shuffle_in_a_branch));
    CHECK(finds("while others", Mistake::two_barriers_at_once));
    CHECK(finds("no multiple of 16", Mistake::misaligned));
    CHECK(finds("no multiple of 4", Mistake::misaligned_word));
    CHECK(finds("reads outside of every buffer", Mistake::host_memory));
    CHECK(finds("out of its type's range", Mistake::overflow));
    CHECK(finds("with no barrier between", Mistake::blocks_share_a_place));
    CHECK(finds("with no barrier between", Mistake::no_ticket));
    CHECK(finds("with no barrier between", Mistake::reads_behind_its_ticket));
    CHECK(finds("does not wait for the launches before", Mistake::no_wait_for_launches));
    CHECK(finds("before it has waited", Mistake::lets_next_begin_at_once));
  }
  emulator::settings().seed = 1;
  emulator::clear_faults();
  Array<float> data(256);
  Array<uint32_t> common(std::vector<uint32_t>{0, 5});
  for (int i = 0; i < 256; ++i) data[i] = static_cast<float>(i);
  CHECK(emulated::make_mistake(data.data(), common.data(), Mistake::none) == DIPENGINE_OK && emulator::faults().empty() && data.intact());
  CHECK(common.copy() == std::vector<uint32_t>({0, 6}));
}

TEST(emulator_refuses_launches_that_no_device_takes) {
  CHECK(emulated::launch_with(1024, 200 * 1024) != DIPENGINE_OK);
  CHECK(emulated::launch_with(33, 0) != DIPENGINE_OK);
  CHECK(emulated::launch_with(2048, 0) != DIPENGINE_OK);
  CHECK(emulated::launch_with(1024, 99 * 1024) == DIPENGINE_OK);
}
