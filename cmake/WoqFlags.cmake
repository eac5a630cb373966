# SPDX-License-Identifier: Apache-2.0
# Flags of our own translation units. They are not exported: users choose theirs.
# No -m flag may ever appear here: an ISA is enabled inside target regions only (docs/design.md).

add_library(woq_flags INTERFACE)
target_compile_options(woq_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow)
if(WOQ_WERROR)
  target_compile_options(woq_flags INTERFACE -Werror)
endif()
if(WOQ_SANITIZE)
  target_compile_options(woq_flags INTERFACE
    -fsanitize=${WOQ_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1
    -D_GLIBCXX_ASSERTIONS)
  target_link_options(woq_flags INTERFACE -fsanitize=${WOQ_SANITIZE})
endif()

# Public headers are C++17; what we compile ourselves may use C++20.
function(woq_own_target target)
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:woq_flags>)
  set_target_properties(${target} PROPERTIES
    CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF)
endfunction()

# The kernels are some fifty times slower without optimization, and a parent project often builds
# without a build type, or for debugging. Where CMake's flags name no level, and only there, the
# library gets one; what users compile from the headers keeps their flags.
function(woq_optimize target)
  set(levels "")
  foreach(config IN LISTS CMAKE_CONFIGURATION_TYPES CMAKE_BUILD_TYPE)
    string(TOUPPER "${config}" upper)
    if(NOT "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${upper}}" MATCHES "(^| )-O")
      list(APPEND levels "$<$<CONFIG:${config}>:-O2>")
    endif()
  endforeach()
  if(NOT CMAKE_CONFIGURATION_TYPES AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CXX_FLAGS MATCHES "(^| )-O")
    set(levels -O2)
  endif()
  if(levels)
    message(STATUS "woq: no optimization is asked for (CMAKE_BUILD_TYPE is '${CMAKE_BUILD_TYPE}'): "
      "the library is compiled with -O2 nevertheless; -DCMAKE_CXX_FLAGS=-O0 prevents it")
    target_compile_options(${target} PRIVATE ${levels})
  endif()
endfunction()
