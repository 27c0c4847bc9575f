#!/usr/bin/env python3
"""Stock guests boot: both kernels with eight vCPUs, Debian's generic kernel to a shell on its ext4 disk; reboot, power-off.

The snapshot group boots Debian's cloud kernel the same way. The first guest also judges the harness: what tells a
revert from a reboot must find a reboot out.
"""

import sys

from harness import Failure, Guest, check_same_run, check_timers, expect, plant_nonce, run_all
from vmm import busybox, debian

CPUS = 8


def check_machine(console, is_cloud):
    release = console.check("uname -r")
    expect(("cloud" in release) == is_cloud, "the kernel is " + release)
    expect(console.check("nproc") == str(CPUS), "nproc is " + console.check("nproc"))
    check_timers(console, CPUS)


def eight_cpus_cloud(vmm, shared):
    t = Guest(vmm, "t").boot(busybox("cloud", cpus=CPUS), 120)
    shared["t"] = t
    check_machine(t.console, True)


def eight_cpus_generic(vmm, shared):
    guest = Guest(vmm, "generic8").boot(busybox("generic", cpus=CPUS), 120)
    try:
        check_machine(guest.console, False)
    finally:
        guest.stop()


def revert_keeps_the_nonce(vmm, shared):
    t = shared["t"]
    shared["planted"] = plant_nonce(t.console)
    t.console.check("echo before >/tmp/f")
    t.snapshot("clean")
    t.console.check("echo after >/tmp/f; rm -rf /bin/vi; touch /tmp/later")
    t.revert("clean")
    check_same_run(t.console, shared["planted"])
    expect(t.console.check("cat /tmp/f; ls /tmp/later 2>/dev/null || true") == "before", "memory is not T's")
    check_timers(t.console, CPUS)


def restored_guest_powers_off(vmm, shared):
    other = shared["t"].restored("clean", "t2")
    check_same_run(other.console, shared["planted"])
    check_timers(other.console, CPUS)
    other.console.send("\x15\n poweroff -f\n")
    vmm.wait_off("t2", 60)
    other.stop()


def reboot_starts_anew(vmm, shared):
    t = shared["t"]
    console = t.console
    console.mark_of_boot = console.mark()
    console.send("\x15\n reboot -f\n")
    console.handshake(120)
    try:
        check_same_run(console, shared["planted"])
    except Exception:  # The nonce differs, or its file is gone with the tmpfs.
        pass
    else:
        raise Failure("the nonce survived a reboot: it proves nothing about a revert")
    check_machine(console, True)


def revert_after_a_reboot(vmm, shared):
    """Every page is another kernel's by now, and the processors were reset."""
    t = shared["t"]
    t.revert("clean")
    check_same_run(t.console, shared["planted"])
    check_timers(t.console, CPUS)
    t.stop()


def generic_kernel_boots_debian(vmm, shared):
    guest = Guest(vmm, "debian").boot(debian("generic"), 150)
    shared["debian"] = guest
    console = guest.console
    expect("Debian GNU/Linux 12" in console.check("cat /etc/os-release"), "not Debian 12")
    expect("cloud" not in console.check("uname -r"), "not the generic kernel")
    mount = " ".join(console.check("findmnt -n -o SOURCE,FSTYPE,OPTIONS /").split())
    expect(mount.startswith("/dev/vda ext4 rw"), "root is %s" % mount)
    expect(console.check("cat /proc/1/comm") == "systemd", "process 1 is not systemd")
    console.check("systemctl is-system-running --wait >/dev/null; systemctl is-system-running | grep -E 'running|degraded'", 120)


def debian_reboots(vmm, shared):
    console = shared["debian"].console
    console.check("echo works >/root/f")
    console.mark_of_boot = console.mark()
    console.send("\x15\n reboot\n")
    console.handshake(150)
    expect(console.check("cat /root/f") == "works", "the file written before the reboot is gone")


def debian_powers_off(vmm, shared):
    guest = shared["debian"]
    guest.console.send("\x15\n poweroff\n")
    vmm.wait_off("debian", 60)
    guest.stop()


if __name__ == "__main__":
    sys.exit(run_all([
        ("smp.cloud_8", eight_cpus_cloud),
        ("revert.keeps_the_nonce", revert_keeps_the_nonce),
        ("restore.then_power_off", restored_guest_powers_off),
        ("reboot.starts_anew", reboot_starts_anew),
        ("revert.after_a_reboot", revert_after_a_reboot),
        ("smp.generic_8", eight_cpus_generic),
        ("boot.debian_generic_to_shell", generic_kernel_boots_debian),
        ("boot.debian_reboots", debian_reboots),
        ("boot.debian_powers_off", debian_powers_off),
    ]))
