// What a fit is made from: its defaults, and what it refuses.
#pragma once

#include "dipengine/fit.h"

namespace dipengine {

dipengine_fit_params default_params();

// One status and one sentence for whatever no fit can be made of; NULL and other struct sizes included.
dipengine_status check_params(const dipengine_fit_params* params);

}  // namespace dipengine
