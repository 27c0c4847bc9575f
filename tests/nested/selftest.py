#!/usr/bin/env python3
"""The harness judged by itself, on the smallest guest: a revert keeps the nonce, a reboot does not and is found out."""

import sys

from harness import Failure, Guest, check_same_run, check_timers, expect, plant_nonce, run_all
from vmm import busybox


def boots(vmm, shared):
    shared["t"] = Guest(vmm, "t").boot(busybox("cloud", cpus=2), 120)


def revert_keeps_the_nonce(vmm, shared):
    t = shared["t"]
    shared["planted"] = plant_nonce(t.console)
    t.console.check("echo before >/tmp/f; echo on-disk | dd of=/dev/vda bs=512 conv=sync 2>/dev/null || true")
    t.snapshot("clean")
    t.console.check("echo after >/tmp/f; rm -rf /bin/vi; touch /tmp/later")
    t.revert("clean")
    check_same_run(t.console, shared["planted"])
    expect(t.console.check("cat /tmp/f; ls /tmp/later 2>/dev/null || true") == "before", "memory is not T's")
    check_timers(t.console, 2)


def restore_keeps_the_nonce(vmm, shared):
    other = shared["t"].restored("clean", "t2")
    check_same_run(other.console, shared["planted"])
    other.stop()


def reboot_is_found_out(vmm, shared):
    console = shared["t"].console
    console.mark_of_boot = console.mark()
    console.send("\x15\n reboot -f\n")
    console.handshake(120)
    try:
        check_same_run(console, shared["planted"])
    except Failure:
        return
    except Exception:
        # The nonce's file is gone with the tmpfs: the same finding.
        return
    raise Failure("a reboot passes for a revert")


if __name__ == "__main__":
    sys.exit(run_all([
        ("selftest.boots", boots),
        ("selftest.revert_keeps_the_nonce", revert_keeps_the_nonce),
        ("selftest.restore_keeps_the_nonce", restore_keeps_the_nonce),
        ("selftest.reboot_is_found_out", reboot_is_found_out),
    ]))
