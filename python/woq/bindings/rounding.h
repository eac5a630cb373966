// SPDX-License-Identifier: Apache-2.0
// The tuned rounding of AutoRound, on tensors of the caller.
#pragma once

#include <pybind11/pybind11.h>

namespace woq::python {

void bind_rounding(pybind11::module_& module);

}  // namespace woq::python
