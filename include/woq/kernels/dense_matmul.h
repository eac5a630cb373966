// SPDX-License-Identifier: Apache-2.0
// A dense product by oneDNN on the calling thread, for the kernels of target onednn.
//
// oneDNN's OpenMP build would start a team of its own on every call outside a parallel region, and
// cut its work for one inside. So calls are made with the calling thread's number of threads set to
// 1: oneDNN then neither starts nor plans for others, whoever calls.
#pragma once

#include <omp.h>

#include <array>
#include <cstdint>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <vector>

#include "woq/core/buffer.h"
#include "woq/core/check.h"

namespace woq::kernels::dense {

// C [m, n] = A [m, k] B [k, n], added to C if `accumulate`. A and B hold fp32 or bfloat16, C fp32;
// rows of B and C follow each other without gaps.
struct Shape {
  bool bf16 = false, accumulate = false;
  int64_t m = 0, n = 0, k = 0;
  int64_t row_elements = 0;  // of A, from row to row

  bool operator==(const Shape& other) const {
    return bf16 == other.bf16 && accumulate == other.accumulate && m == other.m && n == other.n &&
           k == other.k && row_elements == other.row_elements;
  }
};

// Sets the calling thread's number of OpenMP threads to 1 while it lives.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

// A product of one shape, ready to run.
class Product {
 public:
  explicit Product(const Shape& shape)
      : shape_(shape), engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    using dnnl::memory;
    const auto type = shape.bf16 ? memory::data_type::bf16 : memory::data_type::f32;
    const memory::desc a({shape.m, shape.k}, type, memory::dims{shape.row_elements, 1});
    const memory::desc b({shape.k, shape.n}, type, memory::dims{shape.n, 1});
    const memory::desc c({shape.m, shape.n}, memory::data_type::f32, memory::dims{shape.n, 1});
    dnnl::primitive_attr attributes;
    if (shape.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    matmul_ = dnnl::matmul(
        dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), attributes, engine_));
    a_ = memory(a, engine_, nullptr);
    b_ = memory(b, engine_, nullptr);
    c_ = memory(c, engine_, nullptr);
  }

  const Shape& shape() const { return shape_; }

  void run(const void* a, const void* b, float* c) {
    a_.set_data_handle(const_cast<void*>(a));
    b_.set_data_handle(const_cast<void*>(b));
    c_.set_data_handle(c);
    // The C++ execute() would build a map and a list of arguments at every call.
    const std::array<dnnl_exec_arg_t, 3> arguments = {
        {{DNNL_ARG_SRC, a_.get()}, {DNNL_ARG_WEIGHTS, b_.get()}, {DNNL_ARG_DST, c_.get()}}};
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(matmul_.get(), stream_.get(), static_cast<int>(arguments.size()),
                               arguments.data()),
        "a matmul did not run");
    stream_.wait();
  }

 private:
  Shape shape_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::matmul matmul_;
  dnnl::memory a_, b_, c_;
};

// The calling thread's products and scratch memory, kept between calls. A layer takes up to 8
// shapes (whole and short panels of N and of K, the first one of K and the others) for each number
// of rows; the oldest gives way.
class Workspace {
 public:
  static constexpr size_t kMostProducts = 64;

  static Workspace& of_this_thread() {
    static thread_local Workspace workspace;
    return workspace;
  }

  uint8_t* scratch(int64_t bytes) {
    if (scratch_.size() < bytes) scratch_ = Buffer(bytes);
    return scratch_.data();
  }

  Product& product(const Shape& shape) {
    for (const auto& product : products_) {
      if (product->shape() == shape) return *product;
    }
    auto created = std::make_unique<Product>(shape);
    ++created_;
    if (products_.size() < kMostProducts) {
      products_.push_back(std::move(created));
      return *products_.back();
    }
    auto& oldest = products_[oldest_];
    oldest_ = (oldest_ + 1) % kMostProducts;
    oldest = std::move(created);
    return *oldest;
  }

  // Products made since the thread began.
  int64_t created() const { return created_; }

 private:
  std::vector<std::unique_ptr<Product>> products_;
  size_t oldest_ = 0;
  int64_t created_ = 0;
  Buffer scratch_;
};

inline uint8_t* scratch(int64_t bytes) {
  return Workspace::of_this_thread().scratch(bytes);
}

// Throws Unsupported with oneDNN's message.
inline void multiply(const Shape& shape, const void* a, const void* b, float* c) {
  try {
    const OneThread one_thread;
    Workspace::of_this_thread().product(shape).run(a, b, c);
  } catch (const dnnl::error& error) {
    fail<Unsupported>("oneDNN refused ", shape.bf16 ? "a bf16" : "an fp32", " product of ", shape.m,
                      " x ", shape.k, " by ", shape.n, ": ", error.what());
  }
}

// The library that is loaded, such as "2.6.3".
inline std::string version() {
  const dnnl_version_t* const v = dnnl_version();
  return concat(v->major, ".", v->minor, ".", v->patch);
}

}  // namespace woq::kernels::dense
