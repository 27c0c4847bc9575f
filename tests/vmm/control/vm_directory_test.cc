#include "vmm/control/vm_directory.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "tests/vmm/control/support/temporary_home.h"
#include "vmm/base/directories.h"
#include "vmm/control/unix_socket.h"

namespace control {
namespace {

u32 mode_of(const std::string& path) {
  struct stat status {};
  EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
  return status.st_mode & 07777;
}

TEST(Home, FollowsTheEnvironment) {
  const TemporaryHome temporary;
  EXPECT_EQ(temporary.home().state, temporary.path());
  EXPECT_EQ(temporary.home().runtime, temporary.path() + "/run");
  ::setenv("QUICKSAVE_HOME", "relative/", 1);
  EXPECT_EQ(Home::from_environment()->state.front(), '/');
  ::unsetenv("QUICKSAVE_HOME");
  ::setenv("XDG_STATE_HOME", "/s", 1);
  ::setenv("XDG_RUNTIME_DIR", "/r", 1);
  EXPECT_EQ(Home::from_environment()->state, "/s/quicksave");
  EXPECT_EQ(Home::from_environment()->runtime, "/r/quicksave");
  ::unsetenv("XDG_STATE_HOME");
  ::unsetenv("XDG_RUNTIME_DIR");
  ::setenv("HOME", "/h", 1);
  EXPECT_EQ(Home::from_environment()->runtime, "/h/.local/state/quicksave/run");
  ::unsetenv("HOME");
  const Result<Home> nowhere = Home::from_environment();
  ASSERT_FALSE(nowhere);
  EXPECT_FALSE(nowhere.error().hint().empty());
}

TEST(VmDirectory, IsForItsOwnerOnlyWhateverTheUmask) {
  const TemporaryHome temporary;
  const mode_t before = ::umask(0);
  const Result<VmDirectory> vm = create_vm_directory(temporary.home(), "t");
  ::umask(before);
  ASSERT_TRUE(vm) << vm.error().message();
  EXPECT_EQ(mode_of(vm->path()), 0700u);
  EXPECT_EQ(mode_of(vm->refs()), 0700u);
  EXPECT_EQ(mode_of(vm->runtime()), 0700u);
  EXPECT_EQ(mode_of(vm->path() + "/lock"), 0600u);
}

TEST(VmDirectory, ASecondOfTheSameNameIsRefused) {
  const TemporaryHome temporary;
  const Result<VmDirectory> vm = create_vm_directory(temporary.home(), "t");
  const Result<VmDirectory> second = create_vm_directory(temporary.home(), "t");
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().kind(), ErrorKind::exists);
}

TEST(VmDirectory, TellsWhoHoldsTheLock) {
  const TemporaryHome temporary;
  Result<VmDirectory> vm = create_vm_directory(temporary.home(), "t");
  ASSERT_TRUE(vm);
  VmDirectory other = *find_vm_directory(temporary.home(), "t");
  EXPECT_EQ(**owner_of(other), static_cast<u32>(::getpid()));
  const Result<void> refused = lock_vm_directory(other);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::busy);
  EXPECT_NE(refused.error().message().find(std::to_string(::getpid())), std::string::npos);
  vm->lock.reset();
  EXPECT_FALSE(owner_of(other)->has_value());
  EXPECT_TRUE(lock_vm_directory(other));
}

TEST(VmDirectory, AKilledHolderLeavesNoLock) {
  const TemporaryHome temporary;
  const pid_t child = ::fork();
  if (child == 0) {
    const Result<VmDirectory> vm = create_vm_directory(temporary.home(), "t");
    ::_exit(vm ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  VmDirectory left = *find_vm_directory(temporary.home(), "t");
  EXPECT_FALSE(owner_of(left)->has_value());
  EXPECT_TRUE(lock_vm_directory(left));
  EXPECT_TRUE(remove_vm_directory(left));
  EXPECT_EQ(list_vm_names(temporary.home())->size(), 0u);
}

TEST(VmDirectory, AMissingOneNamesThoseThereAre) {
  const TemporaryHome temporary;
  const Result<VmDirectory> vm = create_vm_directory(temporary.home(), "here");
  const Result<VmDirectory> missing = find_vm_directory(temporary.home(), "there");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().kind(), ErrorKind::not_found);
  EXPECT_NE(missing.error().hint().find("here"), std::string::npos);
}

TEST(UnixSocket, AStaleOneIsReplacedAndAFileIsNot) {
  const TemporaryHome temporary;
  const std::string path = temporary.path() + "/s.sock";
  { const Result<base::Fd> stale = listen_unix(path); }
  const Result<base::Fd> fresh = listen_unix(path);
  ASSERT_TRUE(fresh) << fresh.error().message();
  EXPECT_EQ(mode_of(path), 0600u);
  EXPECT_TRUE(connect_unix(path));
  const std::string file = temporary.path() + "/file";
  std::ofstream(file) << "precious";
  EXPECT_FALSE(listen_unix(file));
  EXPECT_TRUE(std::filesystem::exists(file));
}

TEST(UnixSocket, OneThatSomebodyListensOnIsLeftAlone) {
  const TemporaryHome temporary;
  const std::string path = temporary.path() + "/s.sock";
  const Result<base::Fd> live = listen_unix(path);
  ASSERT_TRUE(live);
  const Result<base::Fd> second = listen_unix(path);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().kind(), ErrorKind::busy);
  EXPECT_TRUE(connect_unix(path));
}

TEST(VmDirectory, OneThatCannotBeFilledIsNotLeftBehind) {
  const TemporaryHome temporary;
  std::ofstream(temporary.path() + "/run") << "where the runtime directory should be";
  EXPECT_FALSE(create_vm_directory(temporary.home(), "t"));
  EXPECT_FALSE(std::filesystem::exists(temporary.path() + "/vms/t"));
}

TEST(VmDirectory, WhoeverHandsTheLockOnIsNoLongerItsOwner) {
  const TemporaryHome temporary;
  const Result<VmDirectory> vm = create_vm_directory(temporary.home(), "t");
  ASSERT_TRUE(record_no_owner(*vm));
  EXPECT_EQ(**owner_of(*find_vm_directory(temporary.home(), "t")), 0u);
  ASSERT_TRUE(record_owner(*vm));
  EXPECT_EQ(**owner_of(*find_vm_directory(temporary.home(), "t")), static_cast<u32>(::getpid()));
}

TEST(VmDirectory, OneThatIsRemovedMeanwhileIsMissing) {
  const TemporaryHome temporary;
  VmDirectory gone{temporary.home(), "t", {}};
  const Result<void> locked = lock_vm_directory(gone);
  ASSERT_FALSE(locked);
  EXPECT_EQ(locked.error().kind(), ErrorKind::not_found);
  EXPECT_EQ(locked.error().message(), "no VM is called \"t\"");
}

// Else a second `rm --force` would kill whatever has that pid by now.
TEST(VmDirectory, WhoeverRemovesOneLeavesNoPidOfOldInItsLock) {
  const TemporaryHome temporary;
  { ASSERT_TRUE(create_vm_directory(temporary.home(), "t")); }
  VmDirectory first = *find_vm_directory(temporary.home(), "t");
  ASSERT_TRUE(lock_vm_directory(first));
  EXPECT_EQ(**owner_of(first), 0u);
  VmDirectory second = *find_vm_directory(temporary.home(), "t");
  const Result<void> refused = lock_vm_directory(second);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::busy);
  EXPECT_NE(refused.error().message().find("started or removed"), std::string::npos);
}

TEST(UnixSocket, APathLongerThanTheAddressWorks) {
  const TemporaryHome temporary;
  const std::string directory = temporary.path() + "/" + std::string(150, 'd');
  ASSERT_TRUE(base::make_directories(directory));
  const Result<base::Fd> listener = listen_unix(directory + "/api.sock");
  ASSERT_TRUE(listener) << listener.error().message();
  EXPECT_TRUE(connect_unix(directory + "/api.sock"));
}

}  // namespace
}  // namespace control
