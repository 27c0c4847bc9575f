#!/usr/bin/env python3
"""The main job, told while it happens: a stock Debian guest is destroyed and taken back. Started by guests/demo.sh.

Every line that starts with a tick was asked of the guest, or of a program that is not ours, and compared. A wrong
answer ends the demonstration with status 1.
"""

import os
import subprocess
import sys
import time

import harness
from guest import GuestError
from harness import Failure, Guest, check_same_run, expect, plant_nonce
from narrator import DIM, PLAIN, RED, say, shell, tick, title
from vmm import WORK, Quicksave, VmmError, debian

PLANT = r"""
set -e
head -c 2000000 /dev/urandom >/root/on-disk; sync /root/on-disk
head -c 2000000 /dev/urandom >/dev/shm/in-ram
cd / && sha256sum root/on-disk dev/shm/in-ram usr/bin/perl usr/bin/bash usr/lib/systemd/systemd etc/passwd >/run/hashes
wc -l </run/hashes
"""
COUNTER = "i=0; while :; do i=$((i+1)); echo $i >/run/count; sleep 0.2; done"


def in_guest(console, command, seconds=60):
    say("   %sguest# %s%s" % (DIM, command, PLAIN))
    return console.check(command, seconds)


def boot():
    started = time.monotonic()
    t = Guest(Quicksave(), "t").boot(debian(memory=256, cpus=1))
    tick("a root shell after %.0f s" % (time.monotonic() - started))
    return t


def describe(console):
    facts = console.check("uname -r; findmnt -n -o SOURCE,FSTYPE / | tr -s ' '; cat /proc/1/comm; df -h --output=used / | tail -1").split("\n")
    tick("Linux %s, root on %s, process 1 is %s, %s on the disk" % (facts[0], facts[1], facts[2], facts[3].strip()))


class Planted:
    """What the guest must still know after every revert."""

    def __init__(self, console):
        self.identity = plant_nonce(console)
        self.files = int(console.check(PLANT, 120).split("\n")[-1])
        self.hashes = console.check("cat /run/hashes")
        console.start(COUNTER)
        time.sleep(1)
        self.count = int(console.check("cat /run/count"))

    def check(self, console):
        check_same_run(console, self.identity)
        tick("same boot, same secret in RAM: it was taken back, not rebooted")
        expect(console.check("cat /run/hashes") == self.hashes, "the list of hashes differs")
        console.check("cd / && sha256sum --quiet -c /run/hashes", 120)
        tick("%d files have their SHA-256 again: on the disk, in RAM, in /usr" % self.files)
        first = int(console.check("cat /run/count"))
        time.sleep(1.5)
        second = int(console.check("cat /run/count"))
        expect(second > first >= self.count, "the counter went from %d to %d" % (first, second))
        tick("the program that was counting goes on counting: %d, %d" % (first, second))


def destroy_and_take_back(console, planted):
    title("3. Destroy it")
    console.start("exec head -c 60M /dev/zero >/dev/shm/fill")
    say("   %sguest# head -c 60M /dev/zero >/dev/shm/fill &        # fill the memory%s" % (DIM, PLAIN))
    in_guest(console, "echo gone >/etc/passwd; rm /root/on-disk; echo x >/dev/shm/in-ram; kill -STOP $(pgrep systemd-udevd)")
    start = console.mark()
    say("   %sguest# rm -rf /usr%s" % (DIM, PLAIN))
    console.send("\x15\n rm -rf /usr; ls / || echo USR\"\"GONE\n")
    console.wait_for("USRGONE", start, 120)
    say("     ls: command not found")
    title("4. Take it back, in the same process")
    shell("quicksave", "revert", "t", "clean")
    console.attach()
    planted.check(console)


def panic_and_take_back(console, planted):
    title("5. Worse: crash its kernel")
    start = console.mark()
    say("   %sguest# echo c >/proc/sysrq-trigger%s" % (DIM, PLAIN))
    console.send("\x15\n dmesg -n 8; echo c >/proc/sysrq-trigger\n")
    found = console.wait_for("Kernel panic[^\n]*(?=\n)", start, 60)
    say("     " + found.group(0))
    shell("quicksave", "revert", "t", "clean")
    console.attach()
    check_same_run(console, planted.identity)
    tick("it runs again, and knows nothing of it")


def restore(planted):
    title("6. The same snapshot as a second VM, in a process of its own")
    seconds = shell("quicksave", "restore", "t@clean", "--name", "t2", "-d")
    t2 = Guest(Quicksave(), "t2")
    t2.open()
    t2.console.attach()
    tick("it answers; the command took %.2f s" % seconds)
    planted.check(t2.console)
    shell("quicksave", "ps")
    shell("quicksave", "snapshot", "list", "--tree")
    t2.console.send("\x15\n poweroff -f\n")
    t2.vmm.wait_off("t2", 60)
    tick("t2 powered itself off; t does not notice")
    t2.console.close()


def main():
    os.makedirs(WORK, exist_ok=True)
    os.makedirs(harness.RESULTS, exist_ok=True)
    harness.note = lambda text: None  # The story is told here.
    try:
        title("1. A stock Debian 12 guest: 256 MiB, ext4 on a qcow2 disk, unmodified kernel and initrd")
        t = boot()
        console = t.console
        describe(console)
        title("2. Put data into it, then take a snapshot of all of it: disk, memory, processor, devices")
        planted = Planted(console)
        tick("%d files hashed inside the guest, a program counts, a secret lies in RAM alone" % planted.files)
        shell("quicksave", "snapshot", "create", "t", "clean")
        destroy_and_take_back(console, planted)
        panic_and_take_back(console, planted)
        restore(planted)
    except (Failure, GuestError, VmmError, subprocess.TimeoutExpired) as error:
        say("\n%sfailed:%s %s" % (RED, PLAIN, error))
        return 1
    finally:
        for name in ("t", "t2"):
            subprocess.run(["quicksave", "kill", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
