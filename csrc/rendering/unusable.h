// What rendering throws inside the core; the C interface turns it into a status and a sentence.
#pragma once

#include <stdexcept>
#include <string>

#include "dipengine/dipengine.h"

namespace dipengine {

struct Unusable : std::runtime_error {
  Unusable(dipengine_status the_status, const std::string& sentence) : std::runtime_error(sentence), status(the_status) {}
  explicit Unusable(const std::string& sentence) : Unusable(DIPENGINE_INVALID_ARGUMENT, sentence) {}
  dipengine_status status;
};

}  // namespace dipengine
