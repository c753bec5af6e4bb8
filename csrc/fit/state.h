// A slot as bytes: a header that says what they are, and the slot's block.
#pragma once

#include "fit/slot.h"

namespace dipengine {

// Of everything in params that fixes what a state means: all but the pool, the number of slots, and the image's size as far as
// its canvas is the same. What a fit of these params does not look at (taps without downsampling, levels that are not there)
// does not count.
uint64_t params_fingerprint(const dipengine_fit_params& params);

size_t state_bytes(const SlotLayout& layout, const Extent& extent);
size_t state_bytes(const Slot& slot);

// Into state_bytes() bytes.
void save_state(uint64_t fingerprint, const Slot& slot, void* state);

// Of the image that a state is of. Refuses what is not a whole state.
dipengine_status state_extent(const void* state, size_t bytes, Extent* extent);

// Refuses, with the slot as it was, what is not a whole state of a fit with this fingerprint, or of too large an image.
dipengine_status load_state(const dipengine_fit_params& params, const SlotLayout& layout, uint64_t fingerprint, const Slot& slot,
                            const void* state, size_t bytes);

}  // namespace dipengine
