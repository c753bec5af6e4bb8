// The derivative of the sigmoid by its value, for one element.
#pragma once

#include "math/host_device.h"

namespace dipengine {

template <typename Real>
DIPENGINE_HD Real sigmoid_gradient(Real d_x, Real x) {
  return d_x * (Real(1) - x) * x;
}

}  // namespace dipengine
