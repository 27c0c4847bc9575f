// The program's version, as `version` prints it and manifests record it.

#pragma once

namespace control {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace control
