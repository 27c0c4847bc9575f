"""How the demonstration speaks: titles, ticks, and commands with what they print."""

import os
import subprocess
import time

from harness import expect

BOLD, DIM, GREEN, RED, PLAIN = ("\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m") \
    if os.environ.get("NESTED_COLOUR") == "yes" else ("",) * 5


def say(text=""):
    print(text, flush=True)


def title(text):
    say("\n%s%s%s" % (BOLD, text, PLAIN))


def tick(text):
    say("   %s✓%s %s" % (GREEN, PLAIN, text))


def shell(*words):
    """One of our own commands, as a user types it, with what it prints."""
    say("   %s$ %s%s" % (DIM, " ".join(words), PLAIN))
    started = time.monotonic()
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    for line in done.stdout.rstrip("\n").split("\n"):
        say("     " + line)
    expect(done.returncode == 0, "%s returned %d" % (" ".join(words), done.returncode))
    return time.monotonic() - started
