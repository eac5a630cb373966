# SPDX-License-Identifier: Apache-2.0
# Benchmarks of the C++ core: roofline (this machine's limits), bars (the kernels beside them), versus
# (a target beside the one that would be chosen) and bench_gemm (every kernel on the shapes of real
# models), the last one only with Google Benchmark.

if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  message(FATAL_ERROR "woq: the benchmarks measure x86-64 machines; this is "
    "${CMAKE_SYSTEM_PROCESSOR} (configure with -DWOQ_BUILD_BENCHMARKS=OFF)")
endif()

set(WOQ_BENCHMARK_DIR ${PROJECT_SOURCE_DIR}/benchmarks/cpp)
add_library(woq_benchmark_support STATIC
  ${WOQ_BENCHMARK_DIR}/gemm_case.cc ${WOQ_BENCHMARK_DIR}/machine_limits.cc)
woq_own_target(woq_benchmark_support)
target_include_directories(woq_benchmark_support PUBLIC ${WOQ_BENCHMARK_DIR})
target_link_libraries(woq_benchmark_support PUBLIC woq::woq)

function(woq_benchmark name)
  add_executable(${name} ${WOQ_BENCHMARK_DIR}/${name}.cc)
  woq_own_target(${name})
  target_link_libraries(${name} PRIVATE woq_benchmark_support ${ARGN})
endfunction()

woq_benchmark(roofline)
woq_benchmark(bars)
woq_benchmark(versus)

find_package(benchmark QUIET)
if(benchmark_FOUND)
  woq_benchmark(bench_gemm benchmark::benchmark)
else()
  message(WARNING "woq: bench_gemm is left out, it needs Google Benchmark: "
    "apt-get install libbenchmark-dev")
endif()
