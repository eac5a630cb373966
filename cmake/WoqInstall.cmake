# SPDX-License-Identifier: Apache-2.0
# find_package(woq) with woq::woq and woq::header_only, from a prefix or from inside the wheel, and
# woq.pc for pkg-config.

include(CMakePackageConfigHelpers)

if(SKBUILD)
  # Below the Python package, where woq.get_cmake_dir() and woq.get_include() point; a multiarch
  # libdir would make the wheel's layout depend on the distribution that built it.
  set(CMAKE_INSTALL_LIBDIR lib)
  set(WOQ_CMAKE_DIR share/cmake/woq)
else()
  set(WOQ_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/woq)
endif()

install(TARGETS woq woq_header_only EXPORT woqTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
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

# Its folder, not an absolute path, says where the rest is: a wheel is unpacked anywhere.
set(WOQ_PKGCONFIG_DIR ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
set(WOQ_PC_ROOT ${CMAKE_CURRENT_BINARY_DIR}/prefix)
get_filename_component(WOQ_PC_FROM ${WOQ_PKGCONFIG_DIR} ABSOLUTE BASE_DIR ${WOQ_PC_ROOT})
foreach(name IN ITEMS INCLUDEDIR LIBDIR)
  get_filename_component(path ${CMAKE_INSTALL_${name}} ABSOLUTE BASE_DIR ${WOQ_PC_ROOT})
  file(RELATIVE_PATH WOQ_PC_${name} ${WOQ_PC_FROM} ${path})
endforeach()
set(WOQ_PC_ONEDNN "")
if(WOQ_HAS_ONEDNN)
  set(WOQ_PC_ONEDNN " -ldnnl")
endif()
configure_file(${PROJECT_SOURCE_DIR}/cmake/woq.pc.in woq.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/woq.pc DESTINATION ${WOQ_PKGCONFIG_DIR})
