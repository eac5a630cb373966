// SPDX-License-Identifier: Apache-2.0
// What every reader of another library's layers refuses, and how it says so. That it reads what is
// well-formed has the libraries themselves as oracles (tests/python/test_foreign_formats.py).
#include "woq/io/foreign.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <list>
#include <string>
#include <utility>
#include <vector>

#include "support/errors.h"
#include "woq/core/check.h"

namespace woq::testing {
namespace {

struct Named {
  const char* name;
  TensorType type;
  std::vector<int64_t> shape;
};

// A reader, and the tensors that it wants of a layer of 8 rows, 32 columns and groups of 16.
struct Format {
  const char* name;
  std::vector<Named> tensors;
  std::function<void(const io::ForeignTensors&, int64_t rows, int64_t cols)> read;
};

constexpr int64_t kRows = 8, kCols = 32;

io::GptqOptions gptq_options() {
  io::GptqOptions options;
  options.group_size = 16;
  options.sym = false;
  return options;
}

const std::vector<Format>& formats() {
  using Tensors = const io::ForeignTensors&;
  using T = TensorType;
  static const std::vector<Format> formats = {
      {"gptq",
       {{"qweight", T::kInt32, {4, 8}},
        {"qzeros", T::kInt32, {2, 1}},
        {"scales", T::kFp16, {2, 8}}},
       [](Tensors t, int64_t n, int64_t k) { io::read_gptq(t, n, k, gptq_options()); }},
      {"awq",
       {{"qweight", T::kInt32, {32, 1}}, {"scales", T::kFp16, {2, 8}}},
       [](Tensors t, int64_t n, int64_t k) { io::read_awq(t, n, k, 16); }},
      {"compressed-tensors, packed",
       {{"weight_packed", T::kInt32, {8, 4}}, {"weight_scale", T::kBf16, {8, 2}}},
       [](Tensors t, int64_t n, int64_t k) { io::read_compressed_packed(t, n, k, 4, 16); }},
      {"compressed-tensors, int",
       {{"weight", T::kInt8, {8, 32}}, {"weight_scale", T::kFp32, {8, 2}}},
       [](Tensors t, int64_t n, int64_t k) { io::read_compressed_int(t, n, k, 16); }},
      {"fp4",
       {{"weight", T::kUint8, {8, 16}}, {"weight_scale", T::kUint8, {8, 2}}},
       [](Tensors t, int64_t n, int64_t k) {
         io::Fp4Options options;
         options.group_size = 16;
         io::read_fp4(t, n, k, options);
       }},
      {"bitsandbytes, 4 bits",
       {{"weight", T::kUint8, {128, 1}}, {"absmax", T::kFp32, {16}}},
       [](Tensors t, int64_t n, int64_t k) { io::read_bitsandbytes4(t, n, k, {true, 16, 0.0f}); }},
      {"bitsandbytes, 8 bits",
       {{"weight", T::kInt8, {8, 32}}, {"SCB", T::kFp32, {8}}},
       [](Tensors t, int64_t n, int64_t k) { io::read_bitsandbytes8(t, n, k); }},
      {"hqq",
       {{"W_q", T::kUint8, {8, 16}}, {"scale", T::kFp16, {16, 1}}, {"zero", T::kFp16, {16, 1}}},
       [](Tensors t, int64_t n, int64_t k) { io::read_hqq(t, n, k, 4, 16); }},
  };
  return formats;
}

// The tensors of a layer, with bytes of their own: all 0, which every format reads.
class Layer {
 public:
  explicit Layer(const std::vector<Named>& tensors) {
    for (const Named& tensor : tensors) {
      const int64_t bytes = element_count(tensor.shape) * size_of(tensor.type);
      storage_.emplace_back(static_cast<size_t>(bytes));
      views[tensor.name] = {tensor.type, tensor.shape, storage_.back().data(), bytes};
    }
  }

  io::ForeignTensors views;

 private:
  std::list<std::vector<uint8_t>> storage_;
};

std::string complaint(const Format& format, const io::ForeignTensors& tensors, int64_t rows = kRows,
                      int64_t cols = kCols) {
  return error_of<InvalidArgument>([&] { format.read(tensors, rows, cols); });
}

TEST(Foreign, AWellFormedLayerIsRead) {
  for (const Format& format : formats())
    EXPECT_NO_THROW(format.read(Layer(format.tensors).views, kRows, kCols)) << format.name;
}

TEST(Foreign, AMissingTensorIsNamed) {
  for (const Format& format : formats()) {
    for (const Named& tensor : format.tensors) {
      SCOPED_TRACE(format.name);
      Layer layer(format.tensors);
      layer.views.erase(tensor.name);
      EXPECT_MENTIONS(complaint(format, layer.views), concat("'", tensor.name, "' is missing"));
    }
  }
}

TEST(Foreign, TensorsThatAreCutOrTooLongAreNamed) {
  for (const Format& format : formats()) {
    for (const Named& tensor : format.tensors) {
      SCOPED_TRACE(concat(format.name, ", ", tensor.name));
      for (const int64_t more : {-1, 1}) {
        Layer layer(format.tensors);
        TensorView& view = layer.views.at(tensor.name);
        view.bytes += more;
        EXPECT_MENTIONS(complaint(format, layer.views),
                        concat("'", tensor.name, "' has ", view.bytes, " bytes, expected"));
        Layer other(format.tensors);
        TensorView& shaped = other.views.at(tensor.name);
        shaped.shape[0] += more;
        shaped.bytes = element_count(shaped.shape) * size_of(shaped.type);
        EXPECT_MENTIONS(complaint(format, other.views),
                        concat("'", tensor.name, "' has shape ", shape_text(shaped.shape)));
      }
    }
  }
}

TEST(Foreign, ATensorWithoutElementsIsNamed) {
  for (const Format& format : formats()) {
    for (const Named& tensor : format.tensors) {
      SCOPED_TRACE(format.name);
      Layer layer(format.tensors);
      TensorView& view = layer.views.at(tensor.name);
      view.shape[0] = 0;
      view.bytes = 0;
      EXPECT_MENTIONS(complaint(format, layer.views),
                      concat("'", tensor.name, "' has shape ", shape_text(view.shape)));
    }
  }
}

// Rows and columns come from a config that may say anything.
TEST(Foreign, ExtentsThatNoMatrixHasAreRefused) {
  constexpr int64_t kHuge = int64_t{1} << 62;
  for (const Format& format : formats()) {
    const Layer layer(format.tensors);
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{0, kCols},
                                     {kRows, 0},
                                     {-1, kCols},
                                     {kRows, -32},
                                     {kHuge, kCols},
                                     {kRows, kHuge},
                                     {kHuge, kHuge}}) {
      SCOPED_TRACE(concat(format.name, ": ", rows, " x ", cols));
      EXPECT_FALSE(complaint(format, layer.views, rows, cols).empty());
    }
  }
}

TEST(Foreign, WidthsAndGroupsThatNoFormatHasAreRefused) {
  const Layer layer(formats()[0].tensors);
  for (const int64_t group_size : {int64_t{0}, int64_t{-2}, int64_t{7}, int64_t{1} << 62}) {
    io::GptqOptions options = gptq_options();
    options.group_size = group_size;
    EXPECT_THROW(io::read_gptq(layer.views, kRows, kCols, options), InvalidArgument) << group_size;
    EXPECT_THROW(io::read_hqq(layer.views, kRows, kCols, 4, group_size), Error);
  }
  for (const int bits : {-1, 0, 1, 9, 32, 1 << 30}) {
    io::GptqOptions options = gptq_options();
    options.bits = bits;
    EXPECT_THROW(io::read_gptq(layer.views, kRows, kCols, options), Error) << bits;
    EXPECT_THROW(io::read_compressed_packed(layer.views, kRows, kCols, bits, 16), Error) << bits;
    EXPECT_THROW(io::read_awq(layer.views, kRows, kCols, 16, bits), Error) << bits;
    EXPECT_THROW(io::read_hqq(layer.views, kRows, kCols, bits, 16), Error) << bits;
  }
}

}  // namespace
}  // namespace woq::testing
