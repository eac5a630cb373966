# SPDX-License-Identifier: Apache-2.0
# Benchmarks of the C++ core: roofline (this machine's limits), bars (the kernels beside them), versus
# (a target beside the one that would be chosen), bench_linalg (the quantizers' linear algebra and
# calibration's attention, beside Eigen where it is found), bench_pack (hub to kernel layout and back)
# and bench_gemm (every kernel on the shapes of real models), the last one only with Google Benchmark.

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
woq_benchmark(bench_pack)
woq_benchmark(bench_linalg)

# Eigen is the row to beat, so it gets this machine's instructions. They stay in its own source file,
# which sees nothing of woq. A wheel from pip (cmeel-eigen) lies in <site-packages>/cmeel.prefix,
# which is not on CMake's search path.
set(WOQ_EIGEN_HINTS ${CMAKE_PREFIX_PATH})
list(TRANSFORM WOQ_EIGEN_HINTS APPEND /cmeel.prefix)
find_package(Eigen3 3.3 QUIET CONFIG HINTS ${WOQ_EIGEN_HINTS})
if(Eigen3_FOUND)
  add_library(woq_eigen_rows STATIC ${WOQ_BENCHMARK_DIR}/eigen_rows.cc)
  target_compile_features(woq_eigen_rows PRIVATE cxx_std_17)
  target_compile_options(woq_eigen_rows PRIVATE -march=native -O3)
  target_link_libraries(woq_eigen_rows PRIVATE Eigen3::Eigen OpenMP::OpenMP_CXX)
  target_link_libraries(bench_linalg PRIVATE woq_eigen_rows)
  target_compile_definitions(bench_linalg PRIVATE WOQ_BENCH_EIGEN=1)
else()
  message(STATUS "woq: bench_linalg has no rows of Eigen, which was not found")
endif()

find_package(benchmark QUIET)
if(benchmark_FOUND)
  woq_benchmark(bench_gemm benchmark::benchmark)
else()
  message(WARNING "woq: bench_gemm is left out, it needs Google Benchmark: "
    "apt-get install libbenchmark-dev")
endif()
