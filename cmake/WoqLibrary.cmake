# SPDX-License-Identifier: Apache-2.0
# woq::woq, the library (static, or shared with BUILD_SHARED_LIBS), and woq::header_only, the same
# code without a library.

find_package(OpenMP COMPONENTS CXX)
if(NOT OpenMP_CXX_FOUND)
  message(FATAL_ERROR "woq: no OpenMP for ${CMAKE_CXX_COMPILER}; GCC brings its own, "
    "Clang needs its runtime (Debian: apt-get install libomp-16-dev for clang-16)")
endif()

# Each target is one translation unit; platforms other than x86-64 have the reference kernels only.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  file(GLOB WOQ_TARGET_SOURCES CONFIGURE_DEPENDS
    ${PROJECT_SOURCE_DIR}/src/kernels/targets/*.cc)
else()
  set(WOQ_TARGET_SOURCES
    ${PROJECT_SOURCE_DIR}/src/kernels/targets/ref.cc
    ${PROJECT_SOURCE_DIR}/src/kernels/targets/onednn.cc)
endif()

# Readers and writers of files.
file(GLOB WOQ_IO_SOURCES CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/io/*.cc)

add_library(woq ${WOQ_TARGET_SOURCES} ${WOQ_IO_SOURCES})
add_library(woq::woq ALIAS woq)
woq_own_target(woq)
woq_optimize(woq)
# Position independent, because the Python extension links it. Before 1.0 a minor version may break
# its users, so it is a part of the shared library's name. Visible, whatever a parent project's
# preset says: programs call the kernel tables, and inline functions' state, such as the team's
# mutex, must be one for the library and the program.
set_target_properties(woq PROPERTIES
  POSITION_INDEPENDENT_CODE ON
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
  CXX_VISIBILITY_PRESET default VISIBILITY_INLINES_HIDDEN OFF)
target_link_libraries(woq PUBLIC OpenMP::OpenMP_CXX)

add_library(woq_header_only INTERFACE)
add_library(woq::header_only ALIAS woq_header_only)
set_target_properties(woq_header_only PROPERTIES EXPORT_NAME header_only)
target_compile_definitions(woq_header_only INTERFACE WOQ_HEADER_ONLY=1)
target_link_libraries(woq_header_only INTERFACE OpenMP::OpenMP_CXX)

foreach(target IN ITEMS woq woq_header_only)
  if(target STREQUAL "woq")
    set(scope PUBLIC)
  else()
    set(scope INTERFACE)
  endif()
  target_compile_features(${target} ${scope} cxx_std_17)
  target_include_directories(${target} ${scope}
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
endforeach()
