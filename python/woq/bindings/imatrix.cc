// SPDX-License-Identifier: Apache-2.0
#include "imatrix.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "woq/core/check.h"
#include "woq/io/imatrix.h"

namespace woq::python {

namespace py = pybind11;

namespace {

using Means = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Counts = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

// (name: (mean [experts, K], counts [experts])), names of data sets, tokens of a chunk.
py::tuple read(const py::bytes& data, const std::string& path) {
  const auto bytes = static_cast<std::string_view>(data);
  io::Imatrix imatrix;
  {
    const py::gil_scoped_release release;
    imatrix = io::read_imatrix(bytes, path);
  }
  py::dict entries;
  for (const io::ImatrixEntry& entry : imatrix.entries) {
    const std::vector<py::ssize_t> shape = {entry.experts, entry.cols};
    entries[py::str(entry.name)] =
        py::make_tuple(Means(shape, entry.mean.data()), Counts(entry.experts, entry.counts.data()));
  }
  return py::make_tuple(entries, imatrix.datasets, imatrix.chunk_size);
}

io::Imatrix imatrix_of(const py::dict& entries, std::vector<std::string> datasets,
                       int64_t chunk_size) {
  io::Imatrix imatrix{{}, std::move(datasets), chunk_size};
  for (const auto& [key, value] : entries) {
    const auto [mean, counts] = value.cast<std::pair<Means, Counts>>();
    io::ImatrixEntry entry;
    entry.name = key.cast<std::string>();
    if (mean.ndim() != 2 || counts.ndim() != 1)
      fail("importance matrix: entry '", entry.name, "' needs mean [experts, K], counts [experts]");
    entry.experts = mean.shape(0);
    entry.cols = mean.shape(1);
    entry.mean.assign(mean.data(), mean.data() + mean.size());
    entry.counts.assign(counts.data(), counts.data() + counts.size());
    imatrix.entries.push_back(std::move(entry));
  }
  return imatrix;
}

}  // namespace

void bind_imatrix(py::module_& module) {
  module.def("read_imatrix", &read, py::arg("data"), py::arg("path"));
  module.def(
      "write_imatrix",
      [](const py::dict& entries, std::vector<std::string> datasets, int64_t chunk_size,
         bool legacy) {
        const io::Imatrix imatrix = imatrix_of(entries, std::move(datasets), chunk_size);
        return py::bytes(legacy ? io::write_imatrix_dat(imatrix) : io::write_imatrix_gguf(imatrix));
      },
      py::arg("entries"), py::arg("datasets"), py::arg("chunk_size"), py::arg("legacy"));
}

}  // namespace woq::python
