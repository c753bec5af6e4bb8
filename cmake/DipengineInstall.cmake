# `cmake --install`: headers, libdipengine.so and a package for find_package(dipengine), target dipengine::dipengine.
include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/dipengine")
install(TARGETS dipengine EXPORT dipengineTargets
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
  ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
  RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
install(DIRECTORY csrc/include/dipengine DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")
foreach(op activation adam blur conv deviance masked_mse norm philox resample)
  install(FILES "csrc/ops/${op}/${op}.h" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/dipengine/ops")
endforeach()
# The CUDA ops' contracts; their functions are there where the kernels are built.
foreach(op activation adam blur conv deviance masked_mse norm philox resample)
  install(FILES "csrc/ops/${op}/${op}_cuda.h" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/dipengine/ops")
endforeach()
install(EXPORT dipengineTargets NAMESPACE dipengine:: DESTINATION "${package_dir}")

configure_package_config_file(cmake/dipengineConfig.cmake.in "${PROJECT_BINARY_DIR}/dipengineConfig.cmake"
  INSTALL_DESTINATION "${package_dir}")
# A 0.x minor version may change the interface.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/dipengineConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/dipengineConfig.cmake" "${PROJECT_BINARY_DIR}/dipengineConfigVersion.cmake"
  DESTINATION "${package_dir}")
