// The program's version, as `quicksave version` and manifests have it.

#pragma once

namespace vmm {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace vmm
