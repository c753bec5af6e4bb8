// What a fit is made from: its defaults, and what it refuses.
#pragma once

#include "fit/slot.h"

namespace dipengine {

dipengine_fit_params default_params();

// One status and one sentence for whatever no fit can be made of; NULL and other struct sizes included.
dipengine_status check_params(const dipengine_fit_params* params);

// The same for the image of one slot ("slot", or what else the sentence calls it) of a fit with valid params.
dipengine_status check_extent(const dipengine_fit_params& params, const Extent& extent, const char* whose);

}  // namespace dipengine
