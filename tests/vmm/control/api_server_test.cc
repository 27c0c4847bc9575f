#include "vmm/control/api_server.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/vmm/control/support/fake_vm.h"
#include "tests/vmm/control/support/temporary_home.h"
#include "vmm/control/api_client.h"
#include "vmm/control/unix_socket.h"

namespace control {
namespace {

using nlohmann::json;

// A server on its own thread, as in a VM's process.
class ApiServerTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::move(*create_vm_directory(home_.home(), "fake"));
    limits_.slow_client_ms = 300;
    limits_.clients = 8;
    server_ = std::move(*ApiServer::create(loop_, vm_, directory_.api_socket(), limits_));
    thread_ = std::thread([this] { loop_.run(); });
  }
  void TearDown() override {
    on_loop([this] { server_.reset(); });
    loop_.stop();
    thread_.join();
  }

  void on_loop(const std::function<void()>& work) {
    std::atomic<bool> done = false;
    loop_.post([&] {
      work();
      done = true;
    });
    while (!done) std::this_thread::yield();
  }

  ApiClient client() { return std::move(*ApiClient::connect(directory_)); }
  base::Fd raw() { return std::move(*connect_unix(directory_.api_socket())); }
  static void send(const base::Fd& fd, std::string_view text) {
    ASSERT_EQ(::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
  }
  // Until the server closes, or `count` bytes.
  static std::string receive(const base::Fd& fd, std::size_t count = 1 << 20) {
    std::string all;
    char buffer[4096];
    while (all.size() < count) {
      const ssize_t n = ::recv(fd.get(), buffer, sizeof buffer, 0);
      if (n <= 0) break;
      all.append(buffer, static_cast<std::size_t>(n));
    }
    return all;
  }
  // Status of the only answer to `text`, over a connection of its own.
  static std::string post(std::string_view target, std::string_view body) {
    return fmt::format(
        "POST {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}", target,
        body.size(), body);
  }
  int status_of(std::string_view request) {
    const base::Fd fd = raw();
    // The server may have answered and closed before it was given all.
    EXPECT_GT(::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL), 0);
    const std::string answer = receive(fd);
    return answer.size() > 12 ? std::stoi(answer.substr(9, 3)) : 0;
  }

  TemporaryHome home_;
  VmDirectory directory_;
  ApiLimits limits_;
  Loop loop_;
  FakeVm vm_;
  std::unique_ptr<ApiServer> server_;
  std::thread thread_;
};

TEST_F(ApiServerTest, TellsAboutTheVm) {
  ApiClient c = client();
  const json info = json::parse(*c.request("GET", "/v1/vm"));
  EXPECT_EQ(info["name"], "fake");
  EXPECT_EQ(info["state"], "running");
  EXPECT_EQ(info["pid"], ::getpid());
  EXPECT_EQ(info["config"]["kernel"], "/k");
}

TEST_F(ApiServerTest, RevertAnswersWithTheFiguresScriptsRelyOn) {
  ApiClient c = client();
  const json done = json::parse(*c.request("POST", "/v1/revert", R"({"snapshot":"clean"})"));
  EXPECT_EQ(done, json::parse(R"({"snapshot":"clean","total_us":42,"dirty_pages":7,"clusters":3,
                                  "phases_us":{"pause":1,"memory":30}})"));
  ASSERT_TRUE(c.request("POST", "/v1/revert", R"({"clock":"frozen","verify":true})"));
  EXPECT_EQ(vm_.reverts[1].clock, ClockPolicy::frozen);
  EXPECT_EQ(vm_.reverts[1].verify, Verify::yes);
  EXPECT_EQ(vm_.reverts[1].snapshot, "");
}

TEST_F(ApiServerTest, SnapshotIsDeletedByItsName) {
  ApiClient c = client();
  EXPECT_EQ(c.request("DELETE", "/v1/snapshots/clean").value(), "{}");
  EXPECT_EQ(vm_.deleted, std::vector<std::string>{"clean"});
  const Result<std::string> refused = c.request("DELETE", "/v1/snapshots/current");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::wrong_state);
  EXPECT_FALSE(c.request("DELETE", "/v1/snapshots/../x"));
  EXPECT_FALSE(c.request("DELETE", "/v1/snapshots/"));
  EXPECT_FALSE(c.request("DELETE", "/v1/snapshots"));
}

TEST_F(ApiServerTest, AClientThatAsksAndDoesNotReadIsNotReadEither) {
  const base::Fd fd = raw();
  const std::string_view request = "GET /v1/vm HTTP/1.1\r\nHost: x\r\n\r\n";
  std::string many;
  for (int i = 0; i < 1000; ++i) many += request;
  // What both sockets hold and a few buffers: then nobody takes more.
  u64 sent = 0;
  int refused = 0;
  while (refused < 20 && sent < 64 * base::kMiB) {
    const ssize_t count = ::send(fd.get(), many.data(), many.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count > 0) sent += static_cast<u64>(count);
    refused = count > 0 ? 0 : refused + 1;
    if (count <= 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_LT(sent, 4 * base::kMiB);
}

TEST_F(ApiServerTest, AnswersThatWaitedForTheirReaderAllArrive) {
  const base::Fd fd = raw();
  constexpr int kRequests = 3000;
  std::thread asker([&] {
    std::string all;
    for (int i = 0; i < kRequests; ++i) all += "GET /v1/vm HTTP/1.1\r\nHost: x\r\n\r\n";
    send(fd, all);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  std::string all;
  char buffer[65536];
  int answers = 0;
  while (answers < kRequests) {
    const ssize_t count = ::recv(fd.get(), buffer, sizeof buffer, 0);
    ASSERT_GT(count, 0) << answers;
    all.append(buffer, static_cast<std::size_t>(count));
    answers = 0;
    for (std::size_t at = 0; (at = all.find("HTTP/1.1 200", at)) != std::string::npos; ++at) {
      ++answers;
    }
  }
  asker.join();
}

TEST_F(ApiServerTest, ARefusalKeepsKindMessageAndHint) {
  ApiClient c = client();
  const Result<std::string> refused = c.request("POST", "/v1/revert", R"({"snapshot":"missing"})");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::not_found);
  EXPECT_EQ(refused.error().message(), "no snapshot \"missing\"");
  EXPECT_EQ(refused.error().hint(), "try another");
  EXPECT_FALSE(c.transport_failed());
  EXPECT_TRUE(c.request("GET", "/v1/vm"));  // the connection goes on
}

TEST_F(ApiServerTest, PausesResumesAndPresses) {
  ApiClient c = client();
  EXPECT_TRUE(c.request("PUT", "/v1/vm/state", R"({"state":"paused"})"));
  EXPECT_EQ(c.request("PUT", "/v1/vm/state", R"({"state":"paused"})").error().kind(),
            ErrorKind::wrong_state);
  EXPECT_TRUE(c.request("PUT", "/v1/vm/state", R"({"state":"running"})"));
  EXPECT_TRUE(c.request("POST", "/v1/power-button"));
  EXPECT_EQ(vm_.power_presses, 1);
  EXPECT_TRUE(c.request("POST", "/v1/kill", "{}"));
  on_loop([] {});
  EXPECT_TRUE(vm_.killed);
}

TEST_F(ApiServerTest, RefusesUnknownKeysTypesRoutesAndMethods) {
  ApiClient c = client();
  const Result<std::string> unknown = c.request("POST", "/v1/revert", R"({"snapshto":"x"})");
  ASSERT_FALSE(unknown);
  EXPECT_NE(unknown.error().message().find("snapshto"), std::string::npos);
  EXPECT_FALSE(c.request("POST", "/v1/revert", R"({"snapshot":7})"));
  EXPECT_FALSE(c.request("POST", "/v1/revert", R"({"snapshot":"../x"})"));
  EXPECT_FALSE(c.request("POST", "/v1/revert", R"({"verify":1})"));
  EXPECT_FALSE(c.request("POST", "/v1/revert", R"({"clock":"x"})"));
  EXPECT_FALSE(c.request("POST", "/v1/revert", R"({"verify":true,"verify":true})"));
  EXPECT_FALSE(c.request("POST", "/v1/revert", "[]"));
  EXPECT_FALSE(c.request("POST", "/v1/revert", "{"));
  EXPECT_FALSE(c.request("POST", "/v1/kill", R"({"now":true})"));
  EXPECT_FALSE(c.request("PUT", "/v1/vm/state", R"({"state":"gone"})"));
  EXPECT_EQ(vm_.reverts.size(), 0u);
  EXPECT_FALSE(vm_.killed);
  EXPECT_EQ(status_of(post("/v1/nothing", "")), 404);
  EXPECT_EQ(status_of("GET /v1/revert HTTP/1.1\r\nConnection: close\r\n\r\n"), 405);
}

TEST_F(ApiServerTest, RefusesWhatIsTooLargeOrNotHttp) {
  EXPECT_EQ(status_of(post("/v1/revert", std::string(65 * 1024, ' '))), 413);
  EXPECT_EQ(status_of("GET /v1/vm HTTP/1.1\r\nX: " + std::string(9 * 1024, 'x') + "\r\n\r\n"), 431);
  EXPECT_EQ(status_of("\x16\x03\x01 this is no request\r\n\r\n"), 400);
  EXPECT_EQ(status_of(post("/v1/revert", std::string(60000, '['))), 400);
  EXPECT_TRUE(client().request("GET", "/v1/vm"));
}

TEST_F(ApiServerTest, ServesRequestsThatCameTogether) {
  const base::Fd fd = raw();
  const std::string one = "GET /v1/vm HTTP/1.1\r\n\r\n";
  send(fd, one + one + "GET /v1/vm HTTP/1.1\r\nConnection: close\r\n\r\n");
  const std::string all = receive(fd);
  std::size_t answers = 0;
  for (std::size_t at = 0; (at = all.find("HTTP/1.1 200", at)) != std::string::npos; ++at)
    ++answers;
  EXPECT_EQ(answers, 3u);
}

TEST_F(ApiServerTest, ARequestInPiecesIsOneRequest) {
  const base::Fd fd = raw();
  for (const char c : post("/v1/revert", R"({"snapshot":"a"})")) send(fd, {&c, 1});
  EXPECT_EQ(receive(fd).substr(0, 12), "HTTP/1.1 200");
}

TEST_F(ApiServerTest, GivesUpOnAClientThatDrips) {
  const base::Fd fd = raw();
  const auto begin = std::chrono::steady_clock::now();
  std::thread dripper([&] {
    for (int i = 0; i < 40; ++i) {
      if (::send(fd.get(), "G", 1, MSG_NOSIGNAL) != 1) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  });
  EXPECT_EQ(receive(fd).substr(0, 12), "HTTP/1.1 408");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(1500));
  dripper.join();
}

TEST_F(ApiServerTest, AnIdleConnectionIsKept) {
  ApiClient c = client();
  ASSERT_TRUE(c.request("GET", "/v1/vm"));
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  EXPECT_TRUE(c.request("GET", "/v1/vm"));
}

TEST_F(ApiServerTest, ClientsThatNeverAskKeepNobodyOut) {
  std::vector<base::Fd> silent;
  for (u32 i = 0; i < limits_.clients; ++i) silent.push_back(raw());
  const Result<std::string> answer = client().request("GET", "/v1/vm");
  EXPECT_TRUE(answer) << answer.error().message();
}

TEST_F(ApiServerTest, OneClientTooManyGetsThePlaceOfTheIdlest) {
  std::vector<ApiClient> clients;
  for (u32 i = 0; i < limits_.clients; ++i) {
    clients.push_back(client());
    ASSERT_TRUE(clients.back().request("GET", "/v1/vm"));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  ASSERT_TRUE(clients[0].request("GET", "/v1/vm"));
  EXPECT_TRUE(client().request("GET", "/v1/vm"));
  EXPECT_FALSE(clients[1].request("GET", "/v1/vm"));
  EXPECT_TRUE(clients[1].transport_failed());
  EXPECT_TRUE(clients[0].request("GET", "/v1/vm"));
}

TEST_F(ApiServerTest, OneClientTooManyIsTurnedAwayWhereNobodyIsIdle) {
  std::vector<base::Fd> asking;
  for (u32 i = 0; i < limits_.clients; ++i) {
    asking.push_back(raw());
    send(asking.back(), "GET /v1/vm HTTP/1.1\r\n");  // and not yet the rest
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  ApiClient extra = client();
  const Result<std::string> refused = extra.request("GET", "/v1/vm");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::busy);
  EXPECT_NE(refused.error().message().find("8 clients"), std::string::npos)
      << refused.error().message();
  EXPECT_EQ(refused.error().hint(), "try again");
}

TEST_F(ApiServerTest, ASnapshotAnswersWhenItIsDurable) {
  ApiClient c = client();
  const json made = json::parse(*c.request("POST", "/v1/snapshots", R"({"name":"clean"})"));
  EXPECT_EQ(made["name"], "clean");
  EXPECT_EQ(made["uuid"], "u-u-i-d");
  EXPECT_EQ(made["pause_us"], 5);
  EXPECT_EQ(made["total_us"], 9);
  EXPECT_EQ(made["memory_bytes"], 4096);
  EXPECT_EQ(made["durable"], true);
  const json early = json::parse(*c.request("POST", "/v1/snapshots", R"({"wait":false})"));
  EXPECT_EQ(early["durable"], false);
}

TEST_F(ApiServerTest, AFailedSnapshotSaysWhy) {
  vm_.snapshot_error = "no space left for snapshot";
  const Result<std::string> failed = client().request("POST", "/v1/snapshots");
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().kind(), ErrorKind::no_space);
  EXPECT_EQ(failed.error().hint(), "make room");
  EXPECT_TRUE(client().request("POST", "/v1/revert"));  // nothing is left under way
}

TEST_F(ApiServerTest, OneChangeAtATimeAndItIsNamed) {
  vm_.hold_snapshots = true;
  const base::Fd waiting = raw();
  send(waiting, post("/v1/snapshots", R"({"name":"slow"})"));
  while (!vm_.held_durable) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  ApiClient c = client();
  const Result<std::string> refused = c.request("POST", "/v1/revert");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::busy);
  EXPECT_NE(refused.error().message().find("snapshot create \"slow\""), std::string::npos);
  EXPECT_TRUE(c.request("GET", "/v1/vm"));
  on_loop([this] { vm_.held_paused_done(); });
  EXPECT_TRUE(c.request("POST", "/v1/revert"));  // though it is still being written
  on_loop([this] { vm_.held_durable(); });
  EXPECT_EQ(receive(waiting).substr(0, 12), "HTTP/1.1 200");
}

TEST_F(ApiServerTest, ASnapshotOutlivesItsClient) {
  vm_.hold_snapshots = true;
  {
    const base::Fd gone = raw();
    send(gone, post("/v1/snapshots", R"({"name":"slow"})"));
    while (!vm_.held_durable) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  on_loop([this] { vm_.held_paused_done(); });
  on_loop([this] { vm_.held_durable(); });
  EXPECT_TRUE(client().request("POST", "/v1/revert"));
}

TEST_F(ApiServerTest, RoundTripOfARevertRequest) {
  ApiClient c = client();
  std::vector<double> us;
  for (int i = 0; i < 2000; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    ASSERT_TRUE(c.request("POST", "/v1/revert", R"({"snapshot":"clean","clock":"realtime"})"));
    us.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin)
                     .count());
  }
  std::sort(us.begin(), us.end());
  RecordProperty("p50_us", static_cast<int>(us[us.size() / 2]));
  fmt::print("round trip of a request: p50 {:.1f} us, p10 {:.1f} us, p99 {:.1f} us\n",
             us[us.size() / 2], us[us.size() / 10], us[us.size() * 99 / 100]);
}

}  // namespace
}  // namespace control
