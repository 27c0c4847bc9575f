#include "tests/native/support/image.h"

#include <cstdlib>

namespace native {

bool has_program(const std::string& command) {
  return std::system((command + " >/dev/null 2>&1").c_str()) == 0;
}

void make_chain(const std::function<void(const std::string&)>& shell, const std::string& kind) {
  shell("rm -f *.qcow2 base.raw; truncate -s 4072k base.raw");
  shell("head -c 300k /dev/urandom | dd of=base.raw bs=4k seek=128 conv=notrunc,sparse");
  shell("qemu-img create -q -f qcow2 -b base.raw -F raw mid.qcow2 6M");
  shell("qemu-io -f qcow2 -c 'write -q -P 8 1M 1M' -c 'write -q -z 600k 100k' mid.qcow2");
  shell("qemu-img create -q -u -f qcow2 -b mid.qcow2 -F qcow2 -o " + kind + " top.qcow2 9M");
  shell(kWrites + std::string("top.qcow2"));
}

}  // namespace native
