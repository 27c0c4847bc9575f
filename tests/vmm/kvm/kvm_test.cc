#include "vmm/kvm/kvm.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "tests/vmm/kvm/support/tiny_guest.h"
#include "vmm/kvm/cpuid.h"

namespace kvm {
namespace {

TEST(Kvm, MissingDeviceSaysWhatToDo) {
  const Result<Kvm> kvm = Kvm::open("/nonexistent/kvm");
  ASSERT_FALSE(kvm);
  EXPECT_EQ(kvm.error().kind(), ErrorKind::not_found);
  EXPECT_NE(kvm.error().message().find("/nonexistent/kvm"), std::string::npos);
  EXPECT_NE(kvm.error().hint().find("modprobe"), std::string::npos);
}

TEST(Kvm, AnotherDeviceIsNotTakenForKvm) {
  const Result<Kvm> kvm = Kvm::open("/dev/null");
  ASSERT_FALSE(kvm);
  EXPECT_EQ(kvm.error().message(), "/dev/null is not a KVM device");
}

// What is said of a device with this mode. Root opens everything, so the look is taken in a child
// without its powers.
std::string text_of_denied(mode_t mode, gid_t group) {
  const std::string path = testing::TempDir() + "kvm_denied";
  EXPECT_GE(::close(::open(path.c_str(), O_CREAT | O_WRONLY, 0600)), 0);
  const gid_t own_or_given = ::geteuid() == 0 ? group : ::getegid();
  EXPECT_EQ(::chown(path.c_str(), ::geteuid(), own_or_given), 0);
  EXPECT_EQ(::chmod(path.c_str(), mode), 0);
  int pipe_ends[2];
  EXPECT_EQ(::pipe(pipe_ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    if (::geteuid() == 0 && (::setgid(65534) != 0 || ::setuid(65534) != 0)) ::_exit(2);
    const Result<Kvm> kvm = Kvm::open(path);
    const std::string text =
        kvm ? "opened" : kvm.error().message() + "\n" + kvm.error().hint() + "\n";
    const bool written = ::write(pipe_ends[1], text.data(), text.size()) > 0;
    ::_exit(written ? 0 : 1);
  }
  ::close(pipe_ends[1]);
  std::string text(4096, '\0');
  text.resize(
      static_cast<std::size_t>(std::max<ssize_t>(::read(pipe_ends[0], text.data(), 4096), 0)));
  ::close(pipe_ends[0]);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  ::unlink(path.c_str());
  return text;
}

TEST(Kvm, PermissionDeniedNamesUserGroupsAndMode) {
  const std::string text = text_of_denied(0, 0);
  EXPECT_NE(text.find("permission denied (you are uid "), std::string::npos) << text;
  EXPECT_NE(text.find("groups: "), std::string::npos) << text;
  EXPECT_NE(text.find(" 0000)"), std::string::npos) << text;
  EXPECT_NE(text.find("sudo chmod 0666"), std::string::npos) << text;
}

TEST(Kvm, PermissionDeniedSendsIntoTheDevicesGroupOnlyWhereThatHelps) {
  EXPECT_NE(text_of_denied(0060, 1).find("usermod -aG"), std::string::npos);
  EXPECT_EQ(text_of_denied(0000, 1).find("usermod"), std::string::npos);
}

using CpuidTest = KvmTest;

const CpuidEntry* find(std::span<const CpuidEntry> cpuid, u32 function, u32 index = 0) {
  for (const CpuidEntry& e : cpuid) {
    if (e.function == function && e.index == index) return &e;
  }
  return nullptr;
}

TEST_F(CpuidTest, HidesWhatASnapshotCannotHold) {
  const std::vector<CpuidEntry> cpuid = guest_cpuid(test_kvm()->supported_cpuid(), {2});
  const CpuidEntry* one = find(cpuid, 1);
  ASSERT_NE(one, nullptr);
  EXPECT_EQ(one->ecx >> 5 & 1, 0U) << "VMX";
  EXPECT_EQ(one->ecx >> 3 & 1, 0U) << "MONITOR";
  EXPECT_EQ(one->ecx >> 31 & 1, 1U) << "hypervisor";
  if (const CpuidEntry* extended = find(cpuid, 0x80000001)) {
    EXPECT_EQ(extended->ecx >> 2 & 1, 0U) << "SVM";
  }
  if (const CpuidEntry* power = find(cpuid, 0x80000007)) {
    EXPECT_EQ(power->edx >> 8 & 1, 0U) << "invariant TSC";
  }
  const CpuidEntry* features = find(cpuid, 0x40000001);
  ASSERT_NE(features, nullptr);
  EXPECT_EQ(features->eax >> KVM_FEATURE_CLOCKSOURCE2 & 1, 1U);
  EXPECT_EQ(features->eax >> KVM_FEATURE_ASYNC_PF & 1, 0U);
  EXPECT_EQ(features->eax >> KVM_FEATURE_PV_EOI & 1, 0U);
  EXPECT_EQ(features->eax >> KVM_FEATURE_STEAL_TIME & 1, 0U);
}

TEST_F(CpuidTest, TopologyIsOneThreadPerCoreInOneSocket) {
  std::vector<CpuidEntry> cpuid = guest_cpuid(test_kvm()->supported_cpuid(), {3});
  set_apic_id(cpuid, 2);
  EXPECT_EQ(find(cpuid, 1)->ebx >> 24, 2U);
  EXPECT_EQ(find(cpuid, 1)->ebx >> 16 & 0xff, 4U);
  if (find(cpuid, 0xb) != nullptr) {
    EXPECT_EQ(find(cpuid, 0xb, 0)->ebx, 1U);
    EXPECT_EQ(find(cpuid, 0xb, 1)->ebx, 3U);
    EXPECT_EQ(find(cpuid, 0xb, 1)->eax, 2U);
    EXPECT_EQ(find(cpuid, 0xb, 1)->edx, 2U);
  }
  if (const CpuidEntry* sizes = find(cpuid, 0x80000008)) {
    EXPECT_EQ(sizes->ecx, 0x2002U);
  }
  if (const CpuidEntry* ids = find(cpuid, 0x8000001e)) {
    EXPECT_EQ(ids->eax, 2U);
  }
}

TEST_F(CpuidTest, TscDeadlineFollowsTheModel) {
  const auto shown = [&](TscDeadline deadline) {
    const std::vector<CpuidEntry> cpuid = guest_cpuid(test_kvm()->supported_cpuid(), {1, deadline});
    return find(cpuid, 1)->ecx >> 24 & 1;
  };
  EXPECT_EQ(shown(TscDeadline::shown), 1U);
  EXPECT_EQ(shown(TscDeadline::hidden), 0U);
}

TEST_F(CpuidTest, MissingFeatureIsNamed) {
  const std::vector<CpuidEntry> host = guest_cpuid(test_kvm()->supported_cpuid(), {1});
  ASSERT_OK(check_cpuid_supported(host, host));
  std::vector<CpuidEntry> poorer = host;
  for (CpuidEntry& e : poorer) {
    if (e.function == 7 && e.index == 0) e.ebx &= ~(u32{1} << 5);
  }
  const Result<void> refused = check_cpuid_supported(host, poorer);
  if (refused) GTEST_SKIP() << "this host has no AVX2 to take away";
  EXPECT_NE(refused.error().message().find("avx2"), std::string::npos) << refused.error().message();
  EXPECT_NE(refused.error().message().find(cpu_name(host)), std::string::npos);
}

TEST_F(CpuidTest, AnotherVendorIsRefused) {
  const std::vector<CpuidEntry> host = guest_cpuid(test_kvm()->supported_cpuid(), {1});
  std::vector<CpuidEntry> other = host;
  for (CpuidEntry& e : other) {
    if (e.function == 0) e.ebx = 0x746e6543;  // "Cent"
  }
  EXPECT_FALSE(check_cpuid_supported(other, host));
}

}  // namespace
}  // namespace kvm
