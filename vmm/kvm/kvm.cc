#include "vmm/kvm/kvm.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "vmm/kvm/ioctl.h"

namespace kvm {

namespace {

constexpr u32 kMaximumMsrIndices = 4096;

struct NamedCapability {
  int number;
  std::string_view name;
};

constexpr NamedCapability kRequired[] = {
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    {KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM"},
    {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
    {KVM_CAP_PIT2, "KVM_CAP_PIT2"},
    {KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2"},
    {KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR"},
    {KVM_CAP_SET_IDENTITY_MAP_ADDR, "KVM_CAP_SET_IDENTITY_MAP_ADDR"},
    {KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
    {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
    {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
    {KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},
    {KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},
    {KVM_CAP_XCRS, "KVM_CAP_XCRS"},
    {KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK"},
    {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
    {KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"},
    {KVM_CAP_SYNC_REGS, "KVM_CAP_SYNC_REGS"},
    {KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"},
};

// The name that /etc/passwd or /etc/group gives to a number, or the number. Read by hand: the
// library's functions load plugins, which a static program cannot.
std::string name_of_id(const std::string& path, u32 id) {
  const Result<std::string> text = base::read_whole_file(path, base::kMiB);
  const std::string number = fmt::format("{}", id);
  if (!text) return number;
  for (std::size_t line = 0; line < text->size();) {
    const std::size_t end = std::min(text->find('\n', line), text->size());
    const std::string_view entry = std::string_view(*text).substr(line, end - line);
    const std::size_t name_end = entry.find(':');
    const std::size_t id_start = entry.find(':', name_end + 1);
    if (name_end != entry.npos && id_start != entry.npos &&
        entry.substr(id_start + 1, entry.find(':', id_start + 1) - id_start - 1) == number) {
      return std::string(entry.substr(0, name_end));
    }
    line = end + 1;
  }
  return number;
}

std::string own_groups() {
  gid_t groups[64];
  const int count = ::getgroups(64, groups);
  std::string names;
  for (int i = 0; i < count; ++i) {
    if (i != 0) names += ' ';
    names += name_of_id("/etc/group", groups[i]);
  }
  return names.empty() ? name_of_id("/etc/group", ::getegid()) : names;
}

Error permission_denied(const std::string& path) {
  struct stat status {};
  std::string device = "the device cannot be examined";
  std::string join_group;
  if (::stat(path.c_str(), &status) == 0) {
    const std::string group = name_of_id("/etc/group", status.st_gid);
    device = fmt::format("the device is {}:{} {:04o}", name_of_id("/etc/passwd", status.st_uid),
                         group, status.st_mode & 07777);
    // Nobody joins root's group for this, and one that may not write would not help.
    if (status.st_gid != 0 && (status.st_mode & 0060) == 0060) {
      join_group = fmt::format("sudo usermod -aG {} $USER and log in again; or, ", group);
    }
  }
  return make_error(ErrorKind::denied,
                    "cannot open {}: permission denied (you are uid {}, groups: {}; {})", path,
                    ::geteuid(), own_groups(), device)
      .with_hint(join_group + "on a machine that is yours alone: sudo chmod 0666 " + path);
}

Error cannot_open(const std::string& path, int error_number) {
  switch (error_number) {
    case EACCES:
    case EPERM: return permission_denied(path);
    case ENOENT:
      return make_error(ErrorKind::not_found, "cannot open {}: it does not exist", path)
          .with_hint(
              "load the module (sudo modprobe kvm_intel or kvm_amd), switch virtualisation on in "
              "the firmware, or, in a virtual machine, nested virtualisation; in a container, "
              "pass the device in (--device /dev/kvm)");
    case ENXIO:
    case ENODEV:
      return make_error(ErrorKind::not_found, "cannot open {}: no driver stands behind it", path)
          .with_hint("sudo modprobe kvm_intel, or kvm_amd");
    default: return Error::from_errno(error_number, fmt::format("cannot open {}", path));
  }
}

Result<std::vector<CpuidEntry>> read_supported_cpuid(const base::Fd& fd) {
  std::vector<u8> bytes(sizeof(kvm_cpuid2) + kMaximumCpuidEntries * sizeof(kvm_cpuid_entry2));
  kvm_cpuid2* list = reinterpret_cast<kvm_cpuid2*>(bytes.data());
  list->nent = kMaximumCpuidEntries;
  TRY(KVM_CALL(fd, KVM_GET_SUPPORTED_CPUID, list));
  std::vector<CpuidEntry> entries;
  for (u32 i = 0; i < list->nent; ++i) {
    const kvm_cpuid_entry2& e = list->entries[i];
    entries.push_back({e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx});
  }
  return entries;
}

Result<std::vector<u32>> read_msr_indices(const base::Fd& fd) {
  std::vector<u8> bytes(sizeof(kvm_msr_list) + kMaximumMsrIndices * sizeof(u32));
  kvm_msr_list* list = reinterpret_cast<kvm_msr_list*>(bytes.data());
  list->nmsrs = kMaximumMsrIndices;
  TRY(KVM_CALL(fd, KVM_GET_MSR_INDEX_LIST, list));
  std::vector<u32> indices(list->indices, list->indices + list->nmsrs);
  std::sort(indices.begin(), indices.end());
  return indices;
}

u32 extension(const base::Fd& fd, int capability) {
  const int value = ::ioctl(fd.get(), KVM_CHECK_EXTENSION, capability);
  return value < 0 ? 0 : static_cast<u32>(value);
}

Result<void> check_required(const base::Fd& fd, const std::string& path) {
  std::string missing;
  for (const NamedCapability& capability : kRequired) {
    if (extension(fd, capability.number) != 0) continue;
    if (!missing.empty()) missing += ", ";
    missing += capability.name;
  }
  if (missing.empty()) return {};
  return make_error(ErrorKind::unsupported, "{} lacks what this program needs: {}", path, missing)
      .with_hint("use a host with Linux 5.10 or later");
}

Capabilities read_capabilities(const base::Fd& fd) {
  Capabilities capabilities;
  capabilities.maximum_vcpus = std::max(extension(fd, KVM_CAP_MAX_VCPUS), 1U);
  capabilities.memory_slots = extension(fd, KVM_CAP_NR_MEMSLOTS);
  capabilities.xsave_bytes =
      std::max<u32>(extension(fd, KVM_CAP_XSAVE2), static_cast<u32>(sizeof(kvm_xsave)));
  capabilities.clock_flags = extension(fd, KVM_CAP_ADJUST_CLOCK);
  capabilities.sregs2 = extension(fd, KVM_CAP_SREGS2) != 0;
  capabilities.tsc_deadline = extension(fd, KVM_CAP_TSC_DEADLINE_TIMER) != 0;
  capabilities.enforce_pv_cpuid = extension(fd, KVM_CAP_ENFORCE_PV_FEATURE_CPUID) != 0;
  return capabilities;
}

KvmKind find_kind() {
  const auto loaded = [](const char* module) { return ::access(module, F_OK) == 0; };
  if (loaded("/sys/module/kvm_pvm")) return KvmKind::pvm;
  if (loaded("/sys/module/kvm_amd")) return KvmKind::svm;
  if (loaded("/sys/module/kvm_intel")) return KvmKind::vmx;
  return KvmKind::unknown;
}

}  // namespace

std::string_view kind_name(KvmKind kind) {
  switch (kind) {
    case KvmKind::svm: return "AMD-V";
    case KvmKind::vmx: return "Intel VT-x";
    case KvmKind::pvm: return "PVM (no hardware virtualisation)";
    case KvmKind::unknown: break;
  }
  return "unknown";
}

Result<Kvm> Kvm::open(const std::string& path) {
  Kvm kvm;
  kvm.fd_ = base::Fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!kvm.fd_) return cannot_open(path, errno);
  const int version = ::ioctl(kvm.fd_.get(), KVM_GET_API_VERSION, 0);
  if (version < 0) return make_error(ErrorKind::unsupported, "{} is not a KVM device", path);
  if (version != KVM_API_VERSION) {
    return make_error(ErrorKind::unsupported, "{} speaks KVM API version {}, this program {}", path,
                      version, KVM_API_VERSION);
  }
  TRY(check_required(kvm.fd_, path));
  kvm.capabilities_ = read_capabilities(kvm.fd_);
  kvm.supported_cpuid_ = TRY(read_supported_cpuid(kvm.fd_));
  kvm.msr_indices_ = TRY(read_msr_indices(kvm.fd_));
  kvm.run_bytes_ = static_cast<u64>(TRY(KVM_CALL(kvm.fd_, KVM_GET_VCPU_MMAP_SIZE, 0)));
  kvm.kind_ = find_kind();
  return kvm;
}

}  // namespace kvm
