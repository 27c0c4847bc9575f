# The guests that the benchmark starts become part of the program: it measures from one file alone.
# C++ arrays of them, at ${CMAKE_BINARY_DIR}/generated/vmm/bench/NAME_guest.h.

set(bench_directory ${CMAKE_BINARY_DIR}/generated/vmm/bench)
file(MAKE_DIRECTORY ${bench_directory})

function(bench_guest name array)
  add_custom_command(
    OUTPUT ${bench_directory}/${name}_guest.h
    COMMAND ${CMAKE_COMMAND} -DINPUT=$<TARGET_FILE:guest_${name}> -DNAME=${array} -DNAMESPACE=bench
            -DOUTPUT=${bench_directory}/${name}_guest.h
            -P ${CMAKE_SOURCE_DIR}/vmm/boot/bytes_to_header.cmake
    DEPENDS guest_${name} ${CMAKE_SOURCE_DIR}/vmm/boot/bytes_to_header.cmake
    COMMENT "Embedding guests/${name}"
    VERBATIM)
  target_sources(bench PRIVATE ${bench_directory}/${name}_guest.h)
endfunction()

bench_guest(dirty_pages kDirtyPagesGuest)
bench_guest(hello kHelloGuest)
bench_guest(soak kSoakGuest)
bench_guest(disk_load kDiskLoadGuest)
