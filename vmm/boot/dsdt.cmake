# Compiles dsdt.asl when the program is built: iasl makes AML, and bytes_to_header.cmake a C++ array
# of it, at ${CMAKE_BINARY_DIR}/generated/vmm/boot/dsdt_aml.h.

find_program(IASL iasl)
if(NOT IASL)
  message(FATAL_ERROR "iasl is missing: it compiles the ACPI tables (Debian: apt-get install acpica-tools)")
endif()

set(dsdt_directory ${CMAKE_BINARY_DIR}/generated/vmm/boot)
file(MAKE_DIRECTORY ${dsdt_directory})
add_custom_command(
  OUTPUT ${dsdt_directory}/dsdt_aml.h
  # -we: a warning is an error, as everywhere else. -oa: no optimisations, which differ from version
  # to version of iasl; what guests keep of this table must not.
  COMMAND ${IASL} -we -oa -vs -p ${dsdt_directory}/dsdt ${CMAKE_SOURCE_DIR}/vmm/boot/dsdt.asl
  COMMAND ${CMAKE_COMMAND} -DINPUT=${dsdt_directory}/dsdt.aml -DNAME=kDsdtAml -DNAMESPACE=boot::acpi
          -DOUTPUT=${dsdt_directory}/dsdt_aml.h
          -P ${CMAKE_SOURCE_DIR}/vmm/boot/bytes_to_header.cmake
  DEPENDS ${CMAKE_SOURCE_DIR}/vmm/boot/dsdt.asl
          ${CMAKE_SOURCE_DIR}/vmm/boot/bytes_to_header.cmake
  COMMENT "Compiling vmm/boot/dsdt.asl"
  VERBATIM)
target_sources(boot PRIVATE ${dsdt_directory}/dsdt_aml.h)
