// The register window of virtio over MMIO, version 2 (virtio 1.2, 4.2.2 "MMIO Device Register
// Layout"). All registers are 32 bits wide and little-endian.

#pragma once

#include "vmm/base/types.h"

namespace devices::virtio {

enum class Register : u32 {
  magic_value = 0x000,                // R   "virt"
  version = 0x004,                    // R   2
  device_id = 0x008,                  // R
  vendor_id = 0x00c,                  // R
  device_features = 0x010,            // R   the half device_features_select names
  device_features_select = 0x014,     //  W
  driver_features = 0x020,            //  W  the half driver_features_select names
  driver_features_select = 0x024,     //  W
  queue_select = 0x030,               //  W  the queue the next block is about
  queue_size_max = 0x034,             // R   QueueNumMax
  queue_size = 0x038,                 //  W  QueueNum
  queue_ready = 0x044,                // RW
  queue_notify = 0x050,               //  W  a queue's index, not the selected one
  interrupt_status = 0x060,           // R   InterruptBit
  interrupt_acknowledge = 0x064,      //  W
  status = 0x070,                     // RW  StatusBit; 0 resets
  queue_descriptor_low = 0x080,       //  W
  queue_descriptor_high = 0x084,      //  W
  queue_driver_low = 0x090,           //  W  the avail ring
  queue_driver_high = 0x094,          //  W
  queue_device_low = 0x0a0,           //  W  the used ring
  queue_device_high = 0x0a4,          //  W
  shared_memory_select = 0x0ac,       //  W
  shared_memory_length_low = 0x0b0,   // R   all ones: there is none (4.2.2.1)
  shared_memory_length_high = 0x0b4,  // R
  shared_memory_base_low = 0x0b8,     // R
  shared_memory_base_high = 0x0bc,    // R
  config_generation = 0x0fc,          // R   0: our configuration spaces never change
};

inline constexpr u64 kConfigOffset = 0x100;  // RW, any width

inline constexpr u32 kMagicValue = 0x74726976;
inline constexpr u32 kVersion = 2;
inline constexpr u32 kVendorId = 0x56535351;  // "QSSV"

}  // namespace devices::virtio
