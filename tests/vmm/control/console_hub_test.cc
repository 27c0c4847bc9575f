#include "vmm/control/console_hub.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "tests/vmm/control/support/temporary_home.h"
#include "vmm/control/unix_socket.h"

namespace control {
namespace {

using std::chrono::milliseconds;

std::span<const u8> bytes_of(std::string_view text) {
  return {reinterpret_cast<const u8*>(text.data()), text.size()};
}

class ConsoleHubTest : public testing::Test {
 protected:
  void start(ConsoleTarget target = ConsoleTarget::none) {
    options_.log_file = home_.path() + "/console.log";
    options_.socket_path = home_.path() + "/console.sock";
    options_.target = target;
    hub_ = std::move(*ConsoleHub::create(loop_, options_));
    hub_->set_input([this](std::span<const u8> bytes) { return take_input(bytes); });
    thread_ = std::thread([this] { loop_.run(); });
  }
  void TearDown() override {
    std::atomic<bool> done = false;
    loop_.post([&] {
      hub_.reset();
      done = true;
    });
    while (!done) std::this_thread::yield();
    loop_.stop();
    thread_.join();
  }

  u64 take_input(std::span<const u8> bytes) {
    const u64 count = std::min<u64>(bytes.size(), room_.load());
    input_.append(reinterpret_cast<const char*>(bytes.data()), count);
    room_ -= count;
    return count;
  }
  std::string log() const {
    Result<std::string> text = base::read_whole_file(options_.log_file, 1 << 30);
    return text ? *text : "";
  }
  template <class Condition>
  static bool eventually(Condition condition) {
    for (int i = 0; i < 3000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(milliseconds(1));
    }
    return false;
  }
  base::Fd attach() { return std::move(*connect_unix(options_.socket_path)); }
  static std::string read_some(const base::Fd& fd) {
    char buffer[65536];
    const ssize_t count = ::recv(fd.get(), buffer, sizeof buffer, 0);
    return count > 0 ? std::string(buffer, static_cast<std::size_t>(count)) : "";
  }
  // A client that has been seen: its first byte arrived.
  base::Fd attached() {
    base::Fd fd = attach();
    const u64 before = input_.size();
    EXPECT_EQ(::send(fd.get(), "!", 1, 0), 1);
    EXPECT_TRUE(eventually([&] { return input_.size() > before; }));
    return fd;
  }

  TemporaryHome home_;
  Loop loop_;
  ConsoleOptions options_;
  std::unique_ptr<ConsoleHub> hub_;
  std::atomic<u64> room_ = 1 << 20;
  std::string input_;  // the loop's; read after a wait
  std::thread thread_;
};

TEST_F(ConsoleHubTest, EveryReaderAndTheLogGetTheSameBytes) {
  start();
  const base::Fd one = attached();
  const base::Fd two = attached();
  hub_->write(bytes_of("hello "));
  for (const char c : std::string("world")) hub_->write(static_cast<u8>(c));
  ASSERT_TRUE(eventually([&] { return log() == "hello world"; }));
  std::string first;
  while (first.size() < 11) first += read_some(one);
  EXPECT_EQ(first, "hello world");
  std::string second;
  while (second.size() < 11) second += read_some(two);
  EXPECT_EQ(second, "hello world");
}

TEST_F(ConsoleHubTest, AReaderThatDoesNotReadStopsNobody) {
  options_.backlog_bytes = 64 * 1024;
  start();
  const base::Fd stalled = attached();
  const std::string piece(1000, 'x');
  u64 written = 0;
  std::chrono::steady_clock::duration longest{};
  while (written < 8'000'000) {
    const auto begin = std::chrono::steady_clock::now();
    hub_->write(bytes_of(piece));
    longest = std::max(longest, std::chrono::steady_clock::now() - begin);
    written += piece.size();
  }
  EXPECT_LT(longest, milliseconds(500));
  EXPECT_TRUE(eventually([&] {
    u64 dropped = 0;
    std::atomic<bool> done = false;
    loop_.post([&] {
      dropped = hub_->dropped_bytes();
      done = true;
    });
    while (!done) std::this_thread::yield();
    return dropped > 0;
  }));
  // It can still catch up, and is told.
  std::string all;
  while (all.find("were not read in time") == std::string::npos) {
    const std::string more = read_some(stalled);
    ASSERT_FALSE(more.empty());
    all += more;
  }
}

TEST_F(ConsoleHubTest, InputWaitsForRoomAndLosesNothing) {
  start();
  room_ = 0;
  const base::Fd fd = attach();
  const std::string text(10'000, 'i');
  ASSERT_EQ(::send(fd.get(), text.data(), text.size(), 0), 10'000);
  for (int i = 0; i < 1000 && input_.size() < text.size(); ++i) {
    room_ += 16;  // a receive FIFO
    hub_->input_room();
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_EQ(input_, text);
}

TEST_F(ConsoleHubTest, InputIsRetriedThoughNobodyAnnouncesRoom) {
  start();
  room_ = 1;
  const base::Fd fd = attach();
  ASSERT_EQ(::send(fd.get(), "abc", 3, 0), 3);
  ASSERT_TRUE(eventually([&] { return input_.size() == 1; }));
  room_ = 2;
  EXPECT_TRUE(eventually([&] { return input_ == "abc"; }));
}

TEST_F(ConsoleHubTest, InputForARevertedGuestIsDroppedWhereverItWaits) {
  start();
  const base::Fd one = attached();
  const base::Fd two = attached();
  input_.clear();
  room_ = 1;
  // Some of it the hub has read, most of it is in the sockets.
  const std::string text(100'000, 'o');
  for (const base::Fd* fd : {&one, &two}) {
    ASSERT_EQ(::send(fd->get(), text.data(), text.size(), 0), 100'000);
  }
  ASSERT_TRUE(eventually([&] { return input_.size() == 1; }));
  std::atomic<bool> done = false;
  loop_.post([&] {
    hub_->drop_waiting_input();
    done = true;
  });
  while (!done) std::this_thread::yield();
  room_ = 1 << 20;
  ASSERT_EQ(::send(one.get(), "new", 3, 0), 3);
  ASSERT_TRUE(eventually([&] { return input_.size() >= 4; }));
  ASSERT_EQ(::send(two.get(), "er", 2, 0), 2);
  ASSERT_TRUE(eventually([&] { return input_.size() >= 6; }));
  EXPECT_EQ(input_, "onewer");
}

TEST_F(ConsoleHubTest, AMarkIsInTheLogOnlyAndInItsPlace) {
  start();
  const base::Fd reader = attached();
  hub_->write(bytes_of("before"));
  std::atomic<bool> done = false;
  loop_.post([&] {
    hub_->mark_log("[reverted to clean]");
    done = true;
  });
  while (!done) std::this_thread::yield();
  hub_->write(bytes_of("after"));
  EXPECT_TRUE(eventually([&] { return log() == "before\r\n[reverted to clean]\r\nafter"; }))
      << log();
  std::string seen;
  while (seen.size() < 11) seen += read_some(reader);
  EXPECT_EQ(seen, "beforeafter");
}

TEST_F(ConsoleHubTest, TheLogIsAppendedTo) {
  const Result<base::Fd> old = base::open_file(home_.path() + "/console.log", O_WRONLY | O_CREAT);
  ASSERT_TRUE(base::write_all(*old, bytes_of("history ")));
  start();
  hub_->write(bytes_of("now"));
  EXPECT_TRUE(eventually([&] { return log() == "history now"; }));
}

// Standard input and output replaced by pipes while the hub lives.
TEST_F(ConsoleHubTest, ForegroundUsesPlainPipes) {
  int in[2];
  int out[2];
  ASSERT_EQ(::pipe(in), 0);
  ASSERT_EQ(::pipe(out), 0);
  const base::Fd saved_in(::dup(0));
  const base::Fd saved_out(::dup(1));
  ::dup2(in[0], 0);
  ::dup2(out[1], 1);
  start(ConsoleTarget::stdio);
  ::dup2(saved_in.get(), 0);
  ::dup2(saved_out.get(), 1);
  hub_->write(bytes_of("to stdout"));
  char buffer[64] = {};
  EXPECT_EQ(::read(out[0], buffer, sizeof buffer), 9);
  EXPECT_STREQ(buffer, "to stdout");
  ASSERT_EQ(::write(in[1], "from stdin", 10), 10);
  EXPECT_TRUE(eventually([&] { return input_ == "from stdin"; }));
  ::close(in[1]);  // the end of input is not the end of the VM
  std::this_thread::sleep_for(milliseconds(20));
  hub_->write(bytes_of("still"));
  EXPECT_EQ(::read(out[0], buffer, sizeof buffer), 5);
  EXPECT_EQ(::fcntl(out[1], F_GETFL) & O_NONBLOCK, 0) << "the shell's own descriptor was changed";
  for (const int fd : {in[0], out[0], out[1]}) ::close(fd);
}

TEST_F(ConsoleHubTest, WhatWasWrittenLastReachesASlowStdout) {
  int out[2];
  ASSERT_EQ(::pipe(out), 0);
  const base::Fd saved_out(::dup(1));
  ::dup2(out[1], 1);
  start(ConsoleTarget::stdio);
  ::dup2(saved_out.get(), 1);
  ::close(out[1]);
  const std::string text(200'000, 'y');  // more than a pipe holds
  hub_->write(bytes_of(text));
  std::string seen;
  std::thread reader([&] {
    char buffer[4096];
    ssize_t count = 0;
    std::this_thread::sleep_for(milliseconds(50));
    while ((count = ::read(out[0], buffer, sizeof buffer)) > 0) {
      seen.append(buffer, static_cast<std::size_t>(count));
    }
  });
  std::atomic<bool> done = false;
  loop_.post([&] {
    EXPECT_TRUE(hub_->finish());
    hub_.reset();
    done = true;
  });
  while (!done) std::this_thread::yield();
  reader.join();
  EXPECT_EQ(seen.size(), text.size());
  ::close(out[0]);
  hub_ = std::move(*ConsoleHub::create(loop_, {}));
}

}  // namespace
}  // namespace control
