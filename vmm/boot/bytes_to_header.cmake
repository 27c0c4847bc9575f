# cmake -DINPUT=file -DOUTPUT=header -DNAMESPACE=n -DNAME=kName -P bytes_to_header.cmake
# A header that holds the bytes of a file.

file(READ ${INPUT} digits HEX)
string(REGEX REPLACE "(................................)" "\\1\n    " lines "${digits}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," lines "${lines}")
file(WRITE ${OUTPUT} "#pragma once

#include \"vmm/base/types.h\"

namespace ${NAMESPACE} {

inline constexpr u8 ${NAME}[] = {
    ${lines}};

}  // namespace ${NAMESPACE}
")
