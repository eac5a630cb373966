# SPDX-License-Identifier: Apache-2.0
# One libFuzzer program of every tests/fuzz/*_fuzz.cc (scripts/fuzz.sh runs them). They compile the
# readers themselves, so that the readers' branches guide the fuzzer and no kernel is instrumented.

if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  message(FATAL_ERROR "woq: WOQ_BUILD_FUZZERS needs Clang, whose libFuzzer it uses; this is "
    "${CMAKE_CXX_COMPILER_ID} (-DCMAKE_CXX_COMPILER=clang++-16)")
endif()

set(WOQ_FUZZ_FLAGS -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all)

# What computes with the matrices that were read: the sanitizers watch it, the fuzzer does not.
add_library(fuzz_matrix OBJECT EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/tests/fuzz/fuzz_matrix.cc)
woq_own_target(fuzz_matrix)
target_link_libraries(fuzz_matrix PUBLIC woq::header_only)
target_compile_options(fuzz_matrix PRIVATE -O1 -g1 ${WOQ_FUZZ_FLAGS})

file(GLOB WOQ_FUZZ_SOURCES CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/fuzz/*_fuzz.cc)
add_custom_target(fuzzers)
foreach(source IN LISTS WOQ_FUZZ_SOURCES)
  get_filename_component(name ${source} NAME_WE)
  add_executable(${name} EXCLUDE_FROM_ALL ${source} ${WOQ_IO_SOURCES})
  woq_own_target(${name})
  target_link_libraries(${name} PRIVATE fuzz_matrix)
  target_compile_options(${name} PRIVATE -O1 -g1 -fsanitize=fuzzer ${WOQ_FUZZ_FLAGS})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer ${WOQ_FUZZ_FLAGS})
  add_dependencies(fuzzers ${name})
endforeach()
