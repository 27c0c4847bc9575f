#include "vmm/bench/thread_times.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <unistd.h>

#include <chrono>
#include <thread>

namespace bench {
namespace {

using namespace std::chrono_literals;

TEST(ThreadTimes, CountsWorkAndSleepsOfEachThread) {
  ThreadTimesByName times;
  std::thread worker([&] {
    // A name as hostile as proc(5) lets it be.
    ::pthread_setname_np(::pthread_self(), "a) R (b 1 2");
    const auto end = std::chrono::steady_clock::now() + 50ms;
    while (std::chrono::steady_clock::now() < end) continue;
    std::this_thread::sleep_for(1ms);
    const Result<ThreadTimesByName> found = thread_times_of(::getpid());
    if (found) times = *found;
  });
  worker.join();
  ASSERT_TRUE(times.contains("a) R (b 1 2"));
  const ThreadTimes& worked = times["a) R (b 1 2"];
  EXPECT_GT(worked.user_us + worked.system_us, 0);
  EXPECT_GT(worked.sleeps, 0U);
  EXPECT_GE(times.size(), 2U);
}

TEST(ThreadTimes, NoProcessIsAnError) { EXPECT_FALSE(thread_times_of(0x7fffffff)); }

}  // namespace
}  // namespace bench
