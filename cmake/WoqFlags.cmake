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
