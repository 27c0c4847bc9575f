// Child: a program that the benchmark starts, measures and ends.
//
// Thread: one.

#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace bench {

using Clock = std::chrono::steady_clock;

inline double us_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double, std::micro>(end - start).count();
}

inline constexpr int kPatienceMs = 60'000;  // the slowest peer on a busy machine

// Where standard output goes; standard error goes to `errors_path`, standard input is empty.
enum class ChildOutput : u8 { none, pipe };

class Child final {
 public:
  // `words[0]` is a path or is looked up in PATH. `home`: QUICKSAVE_HOME of the child.
  static Result<Child> start(std::vector<std::string> words, const std::string& home,
                             ChildOutput output, const std::string& errors_path);
  Child(Child&& other) noexcept;
  Child& operator=(Child&& other) = delete;
  // Kills it, and waits until it is gone: what it leaves to the kernel to do is not the next one's.
  ~Child();

  pid_t pid() const { return pid_; }
  const base::Fd& output() const { return output_; }
  Clock::time_point started() const { return started_; }

  // Waits for the end; the exit status, or 128 and the signal.
  int wait();
  // What it wrote to standard error, for messages.
  std::string errors() const;

 private:
  Child(pid_t pid, base::Fd output, Clock::time_point started, std::string errors_path)
      : pid_(pid),
        output_(std::move(output)),
        started_(started),
        errors_path_(std::move(errors_path)) {}

  pid_t pid_ = -1;
  base::Fd output_;
  Clock::time_point started_;
  std::string errors_path_;
};

// The first byte that arrives, or what came instead within kPatienceMs.
Result<char> read_byte(const base::Fd& fd);

}  // namespace bench
