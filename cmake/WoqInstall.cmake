# SPDX-License-Identifier: Apache-2.0
# find_package(woq) with woq::woq and woq::header_only, from a prefix or from inside the wheel.

include(CMakePackageConfigHelpers)

if(SKBUILD)
  # Below the Python package, where woq.get_cmake_dir() and woq.get_include() point; a multiarch
  # libdir would make the wheel's layout depend on the distribution that built it.
  set(CMAKE_INSTALL_LIBDIR lib)
  set(WOQ_CMAKE_DIR share/cmake/woq)
else()
  set(WOQ_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/woq)
endif()

install(TARGETS woq woq_header_only EXPORT woqTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/woq DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.h")
install(EXPORT woqTargets NAMESPACE woq:: DESTINATION ${WOQ_CMAKE_DIR})

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/woqConfig.cmake.in woqConfig.cmake
  INSTALL_DESTINATION ${WOQ_CMAKE_DIR})
# Before 1.0 a minor version may break its users.
write_basic_package_version_file(woqConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/woqConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/woqConfigVersion.cmake
  DESTINATION ${WOQ_CMAKE_DIR})
