#include <cstring>

#include "tests/fuzz/virtio_fuzz.h"
#include "tests/support/stateful_contract.h"
#include "tests/support/virtio_rig.h"

namespace test {
namespace {

class Input final {
 public:
  explicit Input(std::span<const u8> bytes) : left_(bytes) {}
  bool empty() const { return left_.empty(); }
  u8 byte() {
    if (left_.empty()) return 0;
    const u8 value = left_.front();
    left_ = left_.subspan(1);
    return value;
  }
  u32 word() { return byte() | u32{byte()} << 8 | u32{byte()} << 16 | u32{byte()} << 24; }

 private:
  std::span<const u8> left_;
};

void require(bool condition) {
  if (!condition) std::abort();
}

void access_register(Input& input, BlockRig& rig) {
  static constexpr u64 kWidths[] = {4, 4, 4, 4, 4, 1, 2, 8};
  const u64 width = kWidths[input.byte() % 8];
  // Mostly the registers, now and then the configuration space and the window's end.
  const u8 where = input.byte();
  const u64 offset = where < 0xf0 ? where : (u64{input.word()} % (0x1000 - width));
  u8 data[8];
  const le64 value(u64{input.word()} | u64{input.word()} << 32);
  std::memcpy(data, &value, sizeof data);
  if ((input.byte() & 1) != 0) {
    rig.device->read(offset, {data, width});
  } else {
    rig.device->write(offset, {data, width});
  }
}

// A descriptor, an avail element, or raw bytes near the rings.
void write_ring(Input& input, BlockRig& rig) {
  MockDriver& driver = rig.driver();
  const u8 kind = input.byte() % 4;
  const u16 index = input.byte() % 16;
  if (kind == 0) {
    static constexpr u64 kBases[] = {kRings, BlockRig::kHeader, BlockRig::kPayload, kRamBytes - 64,
                                     0xfffffffffffffff0};
    const u64 base = kBases[input.byte() % 5];
    const u8 length = input.byte();
    driver.set_descriptor(index, base + input.byte(), u32{length} << (input.byte() % 25),
                          input.byte() % 8, input.byte() % 18);
  } else if (kind == 1) {
    driver.set_avail_element(index, input.byte() % 18);
  } else if (kind == 2) {
    driver.set_avail_index(static_cast<u16>(driver.avail_index() + input.byte() % 20));
  } else {
    driver.put(kRings + input.word() % (kRingBytes + 0x1000), le32(input.word()));
  }
}

void send_request(Input& input, BlockRig& rig) {
  static constexpr u32 kTypes[] = {0, 1, 4, 8, 11, 13, 99, 0};
  const u32 type = kTypes[input.byte() % 8];
  const u16 write = type == 0 || type == 8 ? kWrite : 0;
  rig.put_header(0, type, input.byte() % 40 * 64);
  const std::vector<Buffer> chain{{BlockRig::kHeader, 16},
                                  {BlockRig::kPayload, u32{input.byte()} * 64, write},
                                  {BlockRig::kStatus, 1, kWrite}};
  rig.driver().send(chain);
}

// A quiet device's state always passes its own checks, and comes back as it was.
void check_state(BlockRig& rig) {
  rig.device->pause();
  rig.device->drain();
  const devices::virtio::MmioState state = rig.device->save();
  require(rig.device->validate(state).has_value());
  require(rig.device->restore(state).has_value());
  require(base::encode_state(state) == bytes_of(*rig.device));
  rig.device->resume();
}

}  // namespace

void run_virtio_sequence(std::span<const u8> bytes) {
  base::set_log_level(base::LogLevel::error);
  Input input(bytes);
  BlockRig rig;
  if ((input.byte() & 7) != 0) rig.start();  // else the driver finds its own way
  while (!input.empty()) {
    switch (input.byte() % 16) {
      case 0:
      case 1:
      case 2: access_register(input, rig); break;
      case 3:
      case 4:
      case 5: write_ring(input, rig); break;
      case 6:
      case 7:
      case 8: send_request(input, rig); break;
      case 9:
      case 10:
      case 11: rig.serve(); break;
      case 12: check_state(rig); break;
      case 13: rig.disk.completion = static_cast<Completion>(input.byte() % 3); break;
      case 14: rig.disk.write_status = static_cast<blockdev::BlockStatus>(input.byte() % 4); break;
      case 15:
        if (!rig.needs_reset()) break;
        rig.driver().restart();
        rig.start();
        break;
    }
  }
  check_state(rig);
}

}  // namespace test
