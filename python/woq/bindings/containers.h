// SPDX-License-Identifier: Apache-2.0
// safetensors and GGUF models, mapped.
#pragma once

#include <pybind11/pybind11.h>

namespace woq::python {

void bind_containers(pybind11::module_& module);

}  // namespace woq::python
