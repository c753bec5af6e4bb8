// A slot as bytes: a header that says what they are, and the slot's block.
#pragma once

#include "fit/slot.h"

namespace dipengine {

// Of everything in params that fixes a state's layout or what it means: all but the pool and the number of slots. What a fit of
// these params does not look at (taps without downsampling, levels that are not there) does not count.
uint64_t params_fingerprint(const dipengine_fit_params& params);

size_t state_bytes(const SlotLayout& layout);

// Into state_bytes() bytes.
void save_state(const SlotLayout& layout, uint64_t fingerprint, const Slot& slot, void* state);

// Refuses, with the slot as it was, what is not a whole state of a fit with this fingerprint.
dipengine_status load_state(const SlotLayout& layout, uint64_t fingerprint, const Slot& slot, const void* state, size_t bytes);

}  // namespace dipengine
