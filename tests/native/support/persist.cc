#include "tests/native/support/persist.h"

namespace native {

std::string pattern(u64 first, u64 count, u64 seed) {
  std::string bytes;
  for (u64 sector = first; sector < first + count; ++sector) {
    u64 state = seed ^ (sector * 0x9e3779b97f4a7c15);
    for (unsigned word = 0; word < kSectorBytes / 8; ++word) {
      u64 value = (state += 0x9e3779b97f4a7c15);
      value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
      value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
      value ^= value >> 31;
      bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
  }
  return bytes;
}

}  // namespace native
