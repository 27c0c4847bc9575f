#!/usr/bin/env python3
"""Stock guests boot: Debian to a shell on its ext4 disk with both kernels, eight vCPUs, power-off, reboot."""

import sys

from harness import Failure, Guest, check_same_run, check_timers, expect, plant_nonce, run_all
from vmm import busybox, debian


def debian_boots_to_a_shell(vmm, shared):
    t = Guest(vmm, "t").boot(debian())
    shared["t"] = t
    console = t.console
    expect("Debian GNU/Linux 12" in console.check("cat /etc/os-release"), "not Debian 12")
    expect("cloud-amd64" in console.check("uname -r"), "not the cloud kernel")
    console.check("echo works >/root/f && sync /root/f && grep -q works /root/f")
    mount = " ".join(console.check("findmnt -n -o SOURCE,FSTYPE,OPTIONS /").split())
    expect(mount.startswith("/dev/vda ext4 rw"), "root is %s" % mount)
    expect(console.check("cat /proc/1/comm") == "systemd", "process 1 is not systemd")
    console.check("systemctl is-system-running --wait >/dev/null; systemctl is-system-running | grep -E 'running|degraded'", 120)


def timers_tick(vmm, shared):
    check_timers(shared["t"].console, 2)


def reboot_boots_again(vmm, shared):
    """Also proves that the check which tells a revert from a reboot does tell them apart."""
    t = shared["t"]
    console = t.console
    planted = plant_nonce(console)
    check_same_run(console, planted)
    console.mark_of_boot = console.mark()
    console.send("\x15\n reboot\n")
    console.handshake(150)
    try:
        check_same_run(console, planted)
    except Exception:
        pass
    else:
        raise Failure("the nonce survived a reboot: it proves nothing about a revert")
    expect(console.check("cat /root/f") == "works", "the file written before the reboot is gone")


def poweroff_ends_the_machine(vmm, shared):
    t = shared["t"]
    t.console.send("\x15\n poweroff\n")
    vmm.wait_off("t", 60)
    t.stop()


def eight_cpus(kernel):
    def scenario(vmm, shared):
        guest = Guest(vmm, "smp-" + kernel).boot(busybox(kernel, cpus=8), 120)
        try:
            expect(kernel != "cloud" or "cloud" in guest.console.check("uname -r"), "not the cloud kernel")
            expect(guest.console.check("nproc") == "8", "nproc is " + guest.console.check("nproc"))
            check_timers(guest.console, 8)
        finally:
            guest.stop()
    return scenario


def generic_kernel_boots_debian(vmm, shared):
    guest = Guest(vmm, "generic").boot(debian("generic"), 180)
    try:
        expect("cloud" not in guest.console.check("uname -r"), "not the generic kernel")
        expect("ext4" in guest.console.check("findmnt -n -o FSTYPE /"), "root is not ext4")
        guest.console.send("\x15\n poweroff\n")
        vmm.wait_off("generic", 60)
    finally:
        guest.stop()


if __name__ == "__main__":
    sys.exit(run_all([
        ("boot.debian_cloud_to_shell", debian_boots_to_a_shell),
        ("boot.timers_tick_on_every_cpu", timers_tick),
        ("boot.reboot", reboot_boots_again),
        ("boot.poweroff", poweroff_ends_the_machine),
        ("smp.cloud_8", eight_cpus("cloud")),
        ("smp.generic_8", eight_cpus("generic")),
        ("boot.debian_generic_to_shell", generic_kernel_boots_debian),
    ]))
