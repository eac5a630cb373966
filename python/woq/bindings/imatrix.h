// SPDX-License-Identifier: Apache-2.0
// Files of importance matrices, as bytes.
#pragma once

#include <pybind11/pybind11.h>

namespace woq::python {

void bind_imatrix(pybind11::module_& module);

}  // namespace woq::python
