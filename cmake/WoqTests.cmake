# SPDX-License-Identifier: Apache-2.0
# One executable of every tests/cpp/**/*_test.cc, and the same statically linked for the emulator.

# Where WOQ_BUILD_TESTS is AUTO, what the tests need may be missing; a source distribution has none.
set(WOQ_TESTS_OBSTACLE "")
find_package(GTest QUIET)
# The oracle of the tests of linear algebra. The library itself never uses it.
find_package(Eigen3 3.3 QUIET CONFIG)
if(NOT IS_DIRECTORY ${PROJECT_SOURCE_DIR}/tests/cpp)
  set(WOQ_TESTS_OBSTACLE "there is no folder tests/cpp")
elseif(NOT GTest_FOUND)
  set(WOQ_TESTS_OBSTACLE "GoogleTest is not found (Debian: apt-get install libgtest-dev)")
elseif(NOT Eigen3_FOUND)
  set(WOQ_TESTS_OBSTACLE "Eigen is not found (Debian: apt-get install libeigen3-dev)")
endif()
if(WOQ_TESTS_OBSTACLE)
  if(WOQ_BUILD_TESTS STREQUAL "AUTO")
    message(STATUS "woq: the tests are left out: ${WOQ_TESTS_OBSTACLE}")
    return()
  endif()
  message(FATAL_ERROR "woq: WOQ_BUILD_TESTS=${WOQ_BUILD_TESTS}, but ${WOQ_TESTS_OBSTACLE}")
endif()

include(GoogleTest)
enable_testing()

set(WOQ_TESTS "" CACHE STRING
  "Test sources to build, below tests/cpp and without .cc, such as core/*;linear_test; empty: all")
set(WOQ_TEST_PATTERNS ${WOQ_TESTS})
if(NOT WOQ_TEST_PATTERNS)
  set(WOQ_TEST_PATTERNS "*_test")
endif()
list(TRANSFORM WOQ_TEST_PATTERNS PREPEND ${PROJECT_SOURCE_DIR}/tests/cpp/)
list(TRANSFORM WOQ_TEST_PATTERNS APPEND .cc)
file(GLOB_RECURSE WOQ_TEST_SOURCES CONFIGURE_DEPENDS
  ${WOQ_TEST_PATTERNS} ${PROJECT_SOURCE_DIR}/tests/cpp/support/*.cc)
# The consumer is a project of its own, built against the installed package.
list(FILTER WOQ_TEST_SOURCES EXCLUDE REGEX "/tests/cpp/consumer/")

add_library(woq_test_objects OBJECT ${WOQ_TEST_SOURCES})
woq_own_target(woq_test_objects)
target_include_directories(woq_test_objects PRIVATE ${PROJECT_SOURCE_DIR}/tests/cpp)
target_link_libraries(woq_test_objects PUBLIC woq::woq GTest::gtest PRIVATE Eigen3::Eigen)
# Eigen would hand products to OpenMP's threads, of which the tests count their own.
target_compile_definitions(woq_test_objects PRIVATE
  WOQ_EXPECTS_ONEDNN=$<BOOL:${WOQ_HAS_ONEDNN}> EIGEN_DONT_PARALLELIZE)

add_executable(woq_tests)
woq_own_target(woq_tests)
target_link_libraries(woq_tests PRIVATE woq_test_objects GTest::gtest_main)
# Names are listed when ctest runs, so that a failing listing doesn't break the build.
gtest_discover_tests(woq_tests DISCOVERY_MODE PRE_TEST)

# tests/emulation boots one static binary at a fixed address. Not in the default build, because
# sanitizers can't be linked statically. OpenMP::OpenMP_CXX names the shared library's file, so the
# archive is linked by its path and the compiler's own flag finds the static OpenMP runtime. There is
# no static oneDNN: the target's source without it comes before the archive's.
if(NOT BUILD_SHARED_LIBS)
  add_executable(woq_tests_static EXCLUDE_FROM_ALL $<TARGET_OBJECTS:woq_test_objects>
    ${PROJECT_SOURCE_DIR}/src/kernels/targets/onednn.cc)
  target_include_directories(woq_tests_static PRIVATE ${PROJECT_SOURCE_DIR}/include)
  add_dependencies(woq_tests_static woq)
  target_link_libraries(woq_tests_static PRIVATE $<TARGET_FILE:woq> GTest::gtest_main)
  target_link_options(woq_tests_static PRIVATE -static -no-pie ${OpenMP_CXX_FLAGS})
endif()

# An outside project builds against the installed package: once with each exported target.
set(WOQ_CONSUMER_DIR ${CMAKE_CURRENT_BINARY_DIR}/consumer)
add_test(NAME consumer_install
  COMMAND ${CMAKE_COMMAND} --install ${CMAKE_CURRENT_BINARY_DIR} --prefix ${WOQ_CONSUMER_DIR}/prefix)
set_tests_properties(consumer_install PROPERTIES FIXTURES_SETUP woq_prefix)
if(WOQ_SANITIZE)
  # The exported target carries no flags, but a sanitized archive links only with its runtime. Not
  # header-only: it would instrument every kernel once more, for minutes.
  set(WOQ_CONSUMER_FLAGS
    -DCMAKE_CXX_FLAGS=-fsanitize=${WOQ_SANITIZE} -DCONSUMER_TARGETS=woq)
endif()
add_test(NAME consumer
  COMMAND ${CMAKE_CTEST_COMMAND}
    --build-and-test ${PROJECT_SOURCE_DIR}/tests/cpp/consumer ${WOQ_CONSUMER_DIR}/build
    --build-generator ${CMAKE_GENERATOR}
    --build-options
      -DCMAKE_PREFIX_PATH=${WOQ_CONSUMER_DIR}/prefix
      -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER} -DCMAKE_BUILD_TYPE=Release
      ${WOQ_CONSUMER_FLAGS}
    --test-command ${CMAKE_CTEST_COMMAND} --output-on-failure)
set_tests_properties(consumer PROPERTIES FIXTURES_REQUIRED woq_prefix)
