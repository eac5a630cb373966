# SPDX-License-Identifier: Apache-2.0
# Target onednn, optional: WOQ_WITH_ONEDNN is AUTO (where it can be), ON (an error where it cannot)
# or OFF. Sets WOQ_HAS_ONEDNN.

set(WOQ_HAS_ONEDNN OFF)
if(NOT WOQ_WITH_ONEDNN MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "woq: WOQ_WITH_ONEDNN is '${WOQ_WITH_ONEDNN}'; known: AUTO, ON, OFF")
endif()
if(WOQ_WITH_ONEDNN STREQUAL "OFF")
  return()
endif()

set(WOQ_ONEDNN_OBSTACLE "")
if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(WOQ_ONEDNN_OBSTACLE "the target is for x86-64")
elseif(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  # Clang's team is that of LLVM's runtime, distributions' oneDNN brings GCC's.
  set(WOQ_ONEDNN_OBSTACLE "Clang's OpenMP runtime would be a second thread pool beside oneDNN's")
else()
  # Debian's package file stops CMake where OpenCL, for GPUs, is not installed: ask before it does.
  find_path(WOQ_DNNL_CONFIG_DIR dnnl-config.cmake HINTS ${dnnl_DIR} PATH_SUFFIXES
    ${CMAKE_INSTALL_LIBDIR}/cmake/dnnl lib/${CMAKE_LIBRARY_ARCHITECTURE}/cmake/dnnl lib/cmake/dnnl)
  mark_as_advanced(WOQ_DNNL_CONFIG_DIR)
  if(WOQ_DNNL_CONFIG_DIR)
    file(STRINGS ${WOQ_DNNL_CONFIG_DIR}/dnnl-config.cmake WOQ_DNNL_OPENCL
      REGEX "set\\(DNNL_GPU_RUNTIME \"OCL\"\\)")
    if(WOQ_DNNL_OPENCL)
      find_package(OpenCL QUIET)
    endif()
  endif()
  if(WOQ_DNNL_OPENCL AND NOT OpenCL_FOUND)
    set(dnnl_FOUND OFF)
  else()
    find_package(dnnl QUIET CONFIG)
  endif()
  if(NOT dnnl_FOUND)
    set(WOQ_ONEDNN_OBSTACLE "oneDNN is not found (Debian: apt-get install libdnnl-dev ocl-icd-opencl-dev)")
  elseif(NOT DNNL_CPU_THREADING_RUNTIME MATCHES "^(OMP|SEQ)$")
    set(WOQ_ONEDNN_OBSTACLE
      "oneDNN's ${DNNL_CPU_THREADING_RUNTIME} runtime would be a second thread pool")
  elseif(dnnl_VERSION VERSION_GREATER_EQUAL 3)
    set(WOQ_ONEDNN_OBSTACLE "oneDNN ${dnnl_VERSION} has another C++ interface than 2.x")
  endif()
endif()

if(WOQ_ONEDNN_OBSTACLE)
  if(WOQ_WITH_ONEDNN STREQUAL "ON")
    message(FATAL_ERROR "woq: WOQ_WITH_ONEDNN=ON, but ${WOQ_ONEDNN_OBSTACLE}")
  endif()
  message(STATUS "woq: target onednn is left out: ${WOQ_ONEDNN_OBSTACLE}")
  return()
endif()

set(WOQ_HAS_ONEDNN ON)
message(STATUS "woq: oneDNN ${dnnl_VERSION} ${dnnl_DIR}")
target_compile_definitions(woq PRIVATE WOQ_WITH_ONEDNN=1)
target_link_libraries(woq PRIVATE DNNL::dnnl)
target_compile_definitions(woq_header_only INTERFACE WOQ_WITH_ONEDNN=1)
target_link_libraries(woq_header_only INTERFACE DNNL::dnnl)
