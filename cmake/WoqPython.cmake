# SPDX-License-Identifier: Apache-2.0
# The Python extension woq._woq. It never links torch: it takes buffers, whoever owns them.

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
find_package(pybind11 3.1 CONFIG REQUIRED)

if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  # torch's wheels bring libgomp.so.1; an extension that needs the same SONAME shares its threads.
  message(WARNING "woq: Clang links LLVM's OpenMP runtime, a second thread pool beside torch's; "
    "build the Python extension with GCC")
endif()

file(GLOB WOQ_BINDING_SOURCES CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/python/woq/bindings/*.cc)
# NO_EXTRAS: pybind11 would add LTO, which buys nothing over one small static library.
pybind11_add_module(_woq MODULE NO_EXTRAS ${WOQ_BINDING_SOURCES})
woq_own_target(_woq)
target_link_libraries(_woq PRIVATE woq::woq)
# A wheel for others: no symbol of a glibc newer than 2.28, libstdc++ inside, libgomp looked up on
# import (bindings/portable.cc says why and how).
option(WOQ_PORTABLE "Build the extension for every glibc from 2.28 on" OFF)
if(WOQ_PORTABLE)
  set_source_files_properties(${PROJECT_SOURCE_DIR}/python/woq/bindings/portable.cc
    PROPERTIES COMPILE_DEFINITIONS WOQ_PORTABLE=1)
  set(WOQ_WRAPPED
    exp log pow pthread_once __pthread_key_create dlopen dlsym dlerror fstat arc4random)
  list(TRANSFORM WOQ_WRAPPED PREPEND "LINKER:--wrap=")
  target_link_options(_woq PRIVATE -static-libstdc++ LINKER:--as-needed ${WOQ_WRAPPED}
    LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/portable.map)
endif()
install(TARGETS _woq LIBRARY DESTINATION .)
