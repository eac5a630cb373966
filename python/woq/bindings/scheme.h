// SPDX-License-Identifier: Apache-2.0
// Python's QuantScheme: the one form in which a number format crosses the border.
#pragma once

#include <pybind11/pybind11.h>

#include "woq/woq.h"

namespace woq::python {

namespace py = pybind11;

// The scheme that fields by name describe; those left out have QuantScheme's defaults. Users may
// also say `asym` for zeros "int", and the two settings of configs for scales. Throws
// InvalidArgument for other names, and for what is no scheme.
QuantScheme scheme_from_fields(const py::dict& fields);

// Adds QuantScheme, DtypeTraits and the functions on names.
void bind_scheme(py::module_& module);

}  // namespace woq::python
