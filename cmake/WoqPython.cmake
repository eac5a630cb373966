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
install(TARGETS _woq LIBRARY DESTINATION .)
