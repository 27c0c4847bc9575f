#!/usr/bin/env python3
"""The checks judged: a program that is wrong on purpose (quicksave-faulty, QUICKSAVE_FAULT) must be found out.

One guest with a disk is booted; each fault then gets a VM of its own, restored from that guest's snapshot, because the fault is
chosen when a process starts. `none` proves that the scenario passes when nothing is wrong.
"""

import os
import sys

import harness
from guest import GuestError
from harness import Failure, Guest, check_same_run, expect, plant_nonce, run_all
from vmm import GUESTS, Spec

SPEC = Spec("cloud", GUESTS + "/busybox-cloud.img", GUESTS + "/debian.qcow2", "console=ttyS0 quiet", 256, 1)


def boots(vmm, shared):
    t = Guest(vmm, "t").boot(SPEC, 120)
    t.console.check("mount -t ext4 /dev/vda /mnt && head -c 2000000 /dev/urandom >/mnt/root/data && sync")
    shared["planted"] = plant_nonce(t.console)
    shared["sum"] = t.console.check("md5sum </mnt/root/data")
    t.snapshot("clean")
    t.console.attach()
    shared["t"] = t


def destroy_and_revert(vmm, shared, fault):
    """The same for every fault; raises where the guest is not as it was."""
    os.environ["QUICKSAVE_FAULT"] = fault
    try:
        guest = shared["t"].restored("clean", "f-" + fault)
    finally:
        del os.environ["QUICKSAVE_FAULT"]
    try:
        guest.console.check("dd if=/dev/zero of=/mnt/root/data bs=1M count=2 conv=notrunc 2>/dev/null; sync; umount /mnt; "
                            "echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 /dev/vda /mnt")
        guest.vmm.revert(guest.name, "clean")
        guest.console.run("true", 4)
        check_same_run(guest.console, shared["planted"])
        expect(guest.console.run("echo 3 >/proc/sys/vm/drop_caches; md5sum </mnt/root/data", 8).output.strip() == shared["sum"],
               "the file on the disk is not T's")
    finally:
        guest.stop()


def passes_without_a_fault(vmm, shared):
    destroy_and_revert(vmm, shared, "none")


def finds(fault):
    def scenario(vmm, shared):
        try:
            destroy_and_revert(vmm, shared, fault)
        except (Failure, GuestError) as error:
            harness.note("found: " + str(error).replace("\n", " ")[:150])
            return
        raise Failure("a program that leaves out the %s in a revert passes" % fault)
    return scenario


if __name__ == "__main__":
    sys.exit(run_all([
        ("faults.boots", boots),
        ("faults.passes_without_one", passes_without_a_fault),
        ("faults.disk", finds("disk")),
        ("faults.device", finds("device")),
    ]))
