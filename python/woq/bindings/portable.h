// SPDX-License-Identifier: Apache-2.0
// See portable.cc.
#pragma once

namespace woq::python {

// Throws ImportError where the OpenMP runtime, which a portable build looks up when it is imported,
// is not found. Does nothing in other builds: there the dynamic loader has found it.
void find_openmp();

}  // namespace woq::python
