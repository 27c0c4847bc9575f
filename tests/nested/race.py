#!/usr/bin/env python3
"""The demonstration's race: in-place revert beside QEMU's loadvm, of the same guest after the same work, on the same KVM.

    race.py            both guests run, and are taken back by turns
    race.py prepare    QEMU's guest alone boots and takes its snapshot, which is kept for the races to come
"""

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys

import harness
from bench_revert import Contestant, Qemu, QemuClient, QuicksaveClient
from guest import GuestError
from harness import Failure, Guest
from narrator import BOLD, GREEN, PLAIN, RED, say, title
from vmm import WORK, Quicksave, VmmError, debian

ROUNDS = 3
WANTED_RATIO = 20
# Booting QEMU's guest takes a minute of an emulated machine: what it had at its snapshot goes from race to race.
KEPT_DISK, KEPT_NONCE = "rival.qcow2", "rival.json"
HERE = os.path.dirname(os.path.abspath(__file__))


def quicksave_guest(vmm):
    return Contestant(vmm, QuicksaveClient).snapshot()


def qemu_guest(vmm):
    return kept_qemu_guest(vmm) if os.path.exists(os.path.join(HERE, KEPT_NONCE)) else Contestant(vmm, QemuClient).snapshot()


def kept_qemu_guest(qemu):
    guest = Guest(qemu, "bench-qemu")
    os.makedirs(os.path.dirname(qemu.disk(guest.name)))
    shutil.move(os.path.join(HERE, KEPT_DISK), qemu.disk(guest.name))
    qemu.start(guest.name, debian(memory=256, cpus=1), "bench")
    guest.open()
    guest.console.attach()
    contestant = Contestant(qemu, QemuClient, guest)
    with open(os.path.join(HERE, KEPT_NONCE)) as file:
        contestant.planted = json.load(file)
    return contestant


def keep(contestant):
    """REQUIRES: its guest is stopped."""
    shutil.move(contestant.vmm.disk(contestant.guest.name), os.path.join(harness.RESULTS, KEPT_DISK))
    with open(os.path.join(harness.RESULTS, KEPT_NONCE), "w") as file:
        json.dump(contestant.planted, file)


def qemu_version():
    return subprocess.run(["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, text=True).stdout.split()[3]


def side_by_side(*calls):
    """Each call is a function and its arguments."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return [done.result() for done in [pool.submit(*call) for call in calls]]


def race(quicksave, qemu):
    title("7. How fast: after real work, in-place revert beside QEMU's loadvm")
    say("   the same guest under both, Quicksave and QEMU %s, on the same KVM. In each round both unpack a Debian package, write a" % qemu_version())
    say("   file, sync and hash it, side by side; then one is taken back, then the other; %d rounds, medians" % ROUNDS)
    contestants = side_by_side((quicksave_guest, quicksave), (qemu_guest, qemu))
    for number in range(ROUNDS):
        side_by_side(*[(contestant.work,) for contestant in contestants])
        for contestant in contestants:
            contestant.revert()
            say("   round %d: %-10s %8.1f ms" % (number + 1, contestant.vmm.kind, 1e3 * contestant.answered[-1]))
    for contestant in contestants:
        say("   " + contestant.line())
        contestant.guest.stop()
    keep(contestants[1])
    ratio = contestants[1].seconds() / contestants[0].seconds()
    verdict = "%sthe bar is %d%s" % (GREEN if ratio >= WANTED_RATIO else RED, WANTED_RATIO, PLAIN)
    say("   %sQuicksave reverts %.0f times faster here%s (%s)" % (BOLD, ratio, PLAIN, verdict))


def prepare(qemu):
    contestant = qemu_guest(qemu)
    contestant.guest.stop()
    keep(contestant)


def main():
    os.makedirs(WORK, exist_ok=True)
    os.makedirs(harness.RESULTS, exist_ok=True)
    harness.note = lambda text: None  # The story is told here.
    vmms = [Qemu()] if sys.argv[1:] == ["prepare"] else [Quicksave(), Qemu()]
    try:
        prepare(*vmms) if len(vmms) == 1 else race(*vmms)
    except (Failure, GuestError, VmmError, subprocess.TimeoutExpired) as error:
        say("\n%sfailed:%s %s" % (RED, PLAIN, error))
        return 1
    finally:
        for vmm in vmms:
            vmm.stop("bench-" + vmm.kind)
    return 0


if __name__ == "__main__":
    sys.exit(main())
