#include "fit/state.h"

#include "fit/loop.h"
#include "fit/params.h"
#include "platform/error.h"

namespace dipengine {
namespace {

constexpr uint64_t kMagic = 0x0a74696670696444;  // "Ddipfit\n" in memory, in the byte order of the machine that wrote it
constexpr uint32_t kFormat = 6;  // of SlotState and SlotArrays: grows whenever either changes in layout or meaning

struct Header {
  uint64_t magic;
  uint32_t format, reserved;
  uint64_t fingerprint, bytes, checksum;  // bytes: with this header; checksum: of the block
};
static_assert(sizeof(Header) == 40, "A header without padding.");

// FNV-1a, a 64-bit word at a time.
class Hash {
 public:
  void add(uint64_t word) { value_ = (value_ ^ word) * 0x100000001b3; }
  void add_words(const void* data, size_t bytes) {
    for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
      uint64_t word;
      memcpy(&word, static_cast<const char*>(data) + i, sizeof(word));
      add(word);
    }
  }
  void integer(int64_t value) { add(static_cast<uint64_t>(value)); }
  void real(double value) { add_words(&value, sizeof(value)); }
  void reals(const double* values, int64_t count) {
    integer(count);
    for (int64_t i = 0; i < count; ++i) real(values[i]);
  }
  // The multiplication carries upwards alone: high bits of the last words come down here.
  uint64_t value() const { return value_ ^ value_ >> 32; }

 private:
  uint64_t value_ = 0xcbf29ce484222325;
};

void add_generator(Hash& hash, const dipengine_generator& g) {
  for (int32_t value : {g.levels, g.input_depth, g.output_channels, g.downsample, int32_t{g.one_by_one_up != 0}, g.padding}) {
    hash.integer(value);
  }
  for (int i = 0; i < g.levels; ++i) {
    for (int32_t value : {g.channels_down[i], g.channels_up[i], g.channels_skip[i], g.kernel_down[i], g.upsample[i]}) {
      hash.integer(value);
    }
  }
  hash.real(g.negative_slope);
}

void add_operator(Hash& hash, const dipengine_fit_params& p) {
  hash.integer(p.operator_kind);
  if (p.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE) {
    hash.integer(p.factor);
    hash.integer(p.before);
    hash.reals(p.taps, p.taps_count);
  } else if (p.operator_kind == DIPENGINE_OPERATOR_BLUR) {
    hash.integer(p.kernel_height);
    hash.reals(p.kernel, int64_t{p.kernel_height} * p.kernel_width);
  }
  hash.integer(p.data_term);
  if (p.data_term == DIPENGINE_DATA_SENSOR) {
    for (double value : {p.electrons_scale, p.electrons_shift, p.read_variance}) hash.real(value);
  } else {
    hash.integer(p.sigma > 0);  // each slot has its own, saved with it
  }
}

uint64_t checksum(const void* block, size_t bytes) {
  Hash hash;
  hash.add_words(block, bytes);
  return hash.value();
}

}  // namespace

uint64_t params_fingerprint(const dipengine_fit_params& p) {
  Hash hash;
  add_generator(hash, p.generator);
  hash.integer(p.dtype);
  hash.integer(canvas_side(p.generator, p.height));
  hash.integer(canvas_side(p.generator, p.width));
  add_operator(hash, p);
  hash.integer(p.code);
  if (p.code == DIPENGINE_CODE_NOISE) hash.real(p.code_scale);
  for (double value : {p.perturbation, p.learning_rate, p.average_decay, p.es_alpha, p.rollback_db}) hash.real(value);
  for (int64_t value : {int64_t{p.average_warm_up != 0}, int64_t{p.deliver_average != 0}, int64_t{p.stop}, p.iterations}) {
    hash.integer(value);
  }
  if (loop_rules(p).holds_out != 0) hash.real(p.hold_out);
  return hash.value();
}

size_t state_bytes(const SlotLayout& layout, const Extent& extent) { return sizeof(Header) + layout.places(extent).bytes; }

size_t state_bytes(const Slot& slot) { return sizeof(Header) + slot.bytes(); }

void save_state(uint64_t fingerprint, const Slot& slot, void* state) {
  const Header header{kMagic, kFormat, 0, fingerprint, state_bytes(slot), checksum(slot.block(), slot.bytes())};
  memcpy(state, &header, sizeof(header));
  memcpy(static_cast<char*>(state) + sizeof(header), slot.block(), slot.bytes());
}

// The header of bytes that say of themselves that they are a whole state.
static dipengine_status read_header(const void* state, size_t bytes, Header* header) {
  *header = {};
  if (bytes >= sizeof(*header)) memcpy(header, state, sizeof(*header));
  DIPENGINE_REQUIRE(header->magic == kMagic, "These %zu bytes are no state of a fit; load what dipengine_fit_save_state wrote.",
                    bytes);
  DIPENGINE_REQUIRE(header->format == kFormat,
                    "The state is of format %u where this library has %u; load it with the version that saved it.", header->format,
                    kFormat);
  DIPENGINE_REQUIRE(header->bytes == bytes, "The state has %zu of its %llu bytes; load the whole of it.", bytes,
                    static_cast<unsigned long long>(header->bytes));
  return DIPENGINE_OK;
}

// The scalars of a state with that header, whose bytes are those that were saved.
static dipengine_status read_scalars(const Header& header, const void* state, SlotState* scalars) {
  const size_t bytes = header.bytes - sizeof(header);
  const char* block = static_cast<const char*>(state) + sizeof(header);
  const bool room = bytes >= sizeof(*scalars) && bytes % sizeof(uint64_t) == 0;
  if (room) memcpy(scalars, block, sizeof(*scalars));
  const bool known = room && scalars->status >= DIPENGINE_FIT_RUNNING && scalars->status <= DIPENGINE_FIT_FAILED &&
                     scalars->reason >= DIPENGINE_REASON_NONE && scalars->reason <= DIPENGINE_REASON_HELD_OUT;
  DIPENGINE_REQUIRE(known && header.checksum == checksum(block, bytes),
                    "The state is damaged: its bytes are not those that were saved; load another copy.");
  return DIPENGINE_OK;
}

dipengine_status state_extent(const void* state, size_t bytes, Extent* extent) {
  Header header;
  SlotState scalars;
  DIPENGINE_TRY(read_header(state, bytes, &header));
  DIPENGINE_TRY(read_scalars(header, state, &scalars));
  *extent = scalars.extent;
  return DIPENGINE_OK;
}

dipengine_status load_state(const dipengine_fit_params& params, const SlotLayout& layout, uint64_t fingerprint, const Slot& slot,
                            const void* state, size_t bytes) {
  Header header;
  SlotState scalars;
  DIPENGINE_TRY(read_header(state, bytes, &header));
  DIPENGINE_REQUIRE(header.fingerprint == fingerprint,
                    "The state is that of a fit with other params; create one with those that it was saved with.");
  DIPENGINE_TRY(read_scalars(header, state, &scalars));
  DIPENGINE_TRY(check_extent(params, scalars.extent, "state"));
  const size_t held = layout.places(scalars.extent).bytes;
  DIPENGINE_REQUIRE(bytes == sizeof(header) + held, "The state is damaged: it has %zu bytes where its image takes %zu; load "
                    "another copy.", bytes, sizeof(header) + held);
  memcpy(slot.block(), static_cast<const char*>(state) + sizeof(header), held);
  return DIPENGINE_OK;
}

}  // namespace dipengine
