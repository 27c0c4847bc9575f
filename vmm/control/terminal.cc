#include "vmm/control/terminal.h"

#include <signal.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

namespace control {
namespace {

// What the signal handler needs: globals, because a handler gets nothing else.
termios g_before;
std::atomic<bool> g_is_raw{false};

// The signals that end a process, by mistake or on purpose, and leave its terminal behind.
constexpr int kFatalSignals[] = {SIGSEGV, SIGBUS,  SIGILL,  SIGFPE, SIGABRT,
                                 SIGSYS,  SIGQUIT, SIGTERM, SIGHUP, SIGINT};

// tcsetattr is async-signal-safe (signal-safety(7)). TCSANOW: a terminal that takes no output must
// not keep a dying process.
void put_back() {
  if (g_is_raw.exchange(false)) ::tcsetattr(STDIN_FILENO, TCSANOW, &g_before);
}

void put_back_and_die(int signal) {
  put_back();
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

void catch_fatal_signals() {
  for (const int signal : kFatalSignals) {
    struct sigaction action {};
    // Whoever catches a signal already (end_on_signals) ends the process in good order.
    if (::sigaction(signal, nullptr, &action) != 0 || action.sa_handler != SIG_DFL) continue;
    action.sa_handler = put_back_and_die;
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    ::sigaction(signal, &action, nullptr);
  }
}

}  // namespace

std::unique_ptr<RawTerminal> RawTerminal::begin() {
  if (::isatty(STDIN_FILENO) != 1 || ::tcgetpgrp(STDIN_FILENO) != ::getpgrp()) return nullptr;
  if (::tcgetattr(STDIN_FILENO, &g_before) != 0) return nullptr;
  termios raw = g_before;
  ::cfmakeraw(&raw);
  if (::tcsetattr(STDIN_FILENO, TCSANOW, &raw) != 0) return nullptr;
  [[maybe_unused]] static const int registered = std::atexit(put_back);
  g_is_raw.store(true);
  catch_fatal_signals();
  return std::unique_ptr<RawTerminal>(new RawTerminal);
}

RawTerminal::~RawTerminal() { put_back(); }

}  // namespace control
