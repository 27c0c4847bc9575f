#!/usr/bin/env python3
"""A stock Debian guest on a disk that is written through (mode=persist), a qcow2 overlay that qemu-img made.

What the guest discards leaves the host's file, at the granularity that it was told; snapshots split the disk into a chain that
QEMU follows; after `kill -9` while it writes, what was fsynced is there for the next VM, for a VM from the snapshot, and
(check_persist.py, outside of the emulated machine) for e2fsck and for QEMU, which boots the disk.

It judges Quicksave's own files, so there is no peer to run it against.
"""

import json
import os
import random
import re
import subprocess
import sys
import time

from guest import PATIENCE
from harness import RESULTS, Guest, check_same_run, expect, note, plant_nonce, run_all
from vmm import GUESTS, WORK, busybox, command, debian, wait_until
from writer import WRITER, rounds_on_console

BASE = GUESTS + "/debian.qcow2"
# Standard clusters of 64 KiB, as users have them. What Quicksave makes itself has subclusters of 4 KiB.
TOP, TOP_GRANULARITY, HEAD_GRANULARITY = WORK + "/top.qcow2", 65536, 4096
MIB = 1 << 20
FILL_MIB = 64

# Not zeros, and quickly made.
FILL = r"""perl -e 'open(my $random, "<", "/dev/urandom"); read($random, my $block, 1 << 20); print $block for 1..%d' >/srv/big && sync"""
# Discards beside whatever else is in flight.
CHURN = "while :; do cp /root/debs/coreutils_*.deb /srv/churn; sync /srv/churn; rm /srv/churn; sync; fstrim /; done"


def disk_bytes(path):
    """What the file takes on the host."""
    return os.stat(path).st_blocks * 512


def version_of(path):
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_blocks


def granularity(console):
    return int(console.check("cat /sys/block/vda/queue/discard_granularity"))


def first_blocks(console, file):
    """Where the first extent of a file lies on the disk: its first block of 4 KiB and how many, without what discards round off."""
    listed = console.check("filefrag -e -b4096 " + file)
    extent = re.search(r"^ +0: +0\.\. *(\d+): +(\d+)\.\.", listed, re.M)
    expect(extent, "filefrag says " + listed)
    edge = TOP_GRANULARITY // 4096
    count = int(extent.group(1)) + 1 - 2 * edge
    expect(count > 0, "the file is too scattered: " + listed)
    return int(extent.group(2)) + edge, count


def rounds_done(console):
    """The writer's lines in RAM: of whole rounds, each fsynced."""
    return console.check("cat /run/w/done 2>/dev/null || true").splitlines()


def wait_for_rounds(console, count):
    deadline = time.monotonic() + 60 * PATIENCE
    while len(rounds_done(console)) < count:
        expect(time.monotonic() < deadline, "the writer stands still: " + console.run("ls -l /srv/w; ps aux | tail -5").output)
        time.sleep(1)


def check_image(path, allowed=(0,)):
    """By qemu-img; 3 is a leak, which a crash may leave."""
    done = subprocess.run(["qemu-img", "check", "-f", "qcow2", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    expect(done.returncode in allowed, "qemu-img check %s returned %d: %s" % (path, done.returncode, done.stdout[-500:]))


def object_file(vmm, snapshot):
    """The layer that a snapshot has in the store."""
    return "%s/snapshots/%s/disk-0.qcow2" % (vmm.home, snapshot["uuid"])


def boots(vmm, shared):
    command("qemu-img", "create", "-q", "-f", "qcow2", "-b", BASE, "-F", "qcow2", TOP)
    spec = debian(memory=256, cpus=2)
    spec.disk_argument = "%s,format=qcow2,mode=persist,backing=%s:qcow2" % (TOP, BASE)
    t = Guest(vmm, "t").boot(spec)
    mount = " ".join(t.console.check("findmnt -n -o SOURCE,FSTYPE,OPTIONS /").split())
    expect(mount.startswith("/dev/vda ext4 rw"), "root is %s" % mount)
    shared["t"] = t


def fstrim_shrinks_the_layer(vmm, shared):
    console = shared["t"].console
    expect(granularity(console) == TOP_GRANULARITY, "the guest discards in units of %d" % granularity(console))
    console.check("sync")
    before = disk_bytes(TOP)
    console.check(FILL % FILL_MIB, 60)
    full = disk_bytes(TOP)
    expect(full - before >= FILL_MIB * MIB * 9 // 10, "%d MiB made the file grow by %d bytes" % (FILL_MIB, full - before))
    console.check("rm /srv/big; sync", 60)
    trimmed = console.check("fstrim -v /", 60)
    after = disk_bytes(TOP)
    note("layer: %.1f MiB, with the file %.1f, after %s %.1f" % (before / MIB, full / MIB, trimmed, after / MIB))
    expect(full - after >= FILL_MIB * MIB * 9 // 10, "of %d MiB fstrim gave back %d bytes" % (FILL_MIB, full - after))


def snapshot_while_a_writer_runs(vmm, shared):
    t = shared["t"]
    console = t.console
    console.put("/root/writer", WRITER)
    console.check("cp /root/debs/bash_*.deb /srv/kept; sync")
    facts = {"identity": plant_nonce(console), "kept": console.check("sha256sum /srv/kept")}
    console.start("exec /root/writer blocks")
    wait_for_rounds(console, 5)
    facts["acked"] = rounds_done(console)
    t.snapshot("first")
    facts["frozen"] = version_of(TOP)
    console.attach()
    check_image(TOP)
    head = vmm.newest_disk("t")["file"]
    # What lies below the new layer is discarded, too: there it stays, here it reads as zeros and takes no room.
    first, count = first_blocks(console, "/srv/kept")
    console.check("pkill -STOP writer && rm /srv/kept && sync && fstrim /", 60)
    left = int(console.check("dd if=/dev/vda bs=4096 skip=%d count=%d iflag=direct 2>/dev/null | tr -d '\\0' | wc -c" % (first, count)))
    console.check("pkill -CONT writer")
    expect(left == 0, "of %d blocks that were discarded %d bytes are not zero" % (count, left))
    wait_for_rounds(console, len(facts["acked"]) + 3)
    note("above the snapshot: %.1f MiB in %s" % (disk_bytes(head) / MIB, os.path.basename(head)))
    expect(disk_bytes(head) < FILL_MIB * MIB // 2, "the new layer takes %d bytes" % disk_bytes(head))
    expect(version_of(TOP) == facts["frozen"], "the frozen file was written")
    shared["facts"] = facts


def check_rounds(console, acked):
    """The writer's files up to the last of `acked`, and it goes on."""
    done = rounds_done(console)
    expect(done[:len(acked)] == acked, "the writer's list of fsynced files differs")
    console.check("cd /srv/w && cp /run/w/done /run/w/copy && sha256sum --quiet -c /run/w/copy", 60)
    wait_for_rounds(console, len(done) + 1)


def revert_brings_back_what_was_discarded(vmm, shared):
    t, facts = shared["t"], shared["facts"]
    console = t.console
    t.revert("first")
    check_same_run(console, facts["identity"])
    console.check("echo 3 >/proc/sys/vm/drop_caches")
    expect(console.check("sha256sum /srv/kept") == facts["kept"], "a file that was discarded after the snapshot is another one")
    check_rounds(console, facts["acked"])
    expect(version_of(TOP) == facts["frozen"], "the frozen file was written")


def check_chain(vmm, files):
    """The names in the images lead from the newest one to the lowest, as QEMU follows them; it reads the disk through them."""
    listed = json.loads(command("qemu-img", "info", "--backing-chain", "--output=json", "-f", "qcow2", files[0]))
    found = [os.path.realpath(image["filename"]) for image in listed]
    expect(found == [os.path.realpath(file) for file in files], "the chain is %s, not %s" % (found, files))
    for image in listed[:-1]:
        expect(image.get("backing-filename-format") == "qcow2", "no format of what lies below in " + image["filename"])
    command("qemu-io", "-r", "-f", "qcow2", "-c", "read 0 1M", files[0])


def kill_nine_while_it_writes(vmm, shared):
    t, facts = shared["t"], shared["facts"]
    console = t.console
    facts["acked"] = rounds_done(console)
    second = t.snapshot("second")
    console.attach()
    console.check("echo later >/srv/later; sync")
    console.start(CHURN)
    start = console.mark()
    console.check("touch /run/w/loud")
    acked = rounds_done(console)
    wait_until(lambda: len(rounds_on_console(console.text(start))) >= 8, 60, "eight rounds of the writer")
    time.sleep(random.random())
    vmm.kill_nine("t")
    console.close()
    acked += [line for line in rounds_on_console(console.text(start)) if line not in acked]
    note("killed after %d rounds" % len(acked))

    head = vmm.newest_disk("t")["file"]
    wait_until(lambda: subprocess.run(["qemu-img", "info", head], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0,
               20, "the end of the lock on " + head)
    check_image(head, (0, 3))
    check_image(object_file(vmm, second))
    check_chain(vmm, [head, object_file(vmm, second), TOP, BASE])
    expect(version_of(TOP) == facts["frozen"], "the frozen file was written")
    # For check_persist.py: the chain as the kill left it.
    os.makedirs(RESULTS + "/disk", exist_ok=True)
    for number, file in enumerate((TOP, object_file(vmm, second), head)):
        command("cp", "--sparse=always", file, "%s/disk/layer-%d.qcow2" % (RESULTS, number))
    with open(RESULTS + "/disk/acked", "w") as listing:
        listing.write("\n".join(acked) + "\n")
    shared["killed"] = acked


def restores_to_the_snapshot(vmm, shared):
    facts = shared["facts"]
    other = shared["t"].restored("second", "restored")
    check_same_run(other.console, facts["identity"])
    expect(other.console.run("test -e /srv/later").status != 0, "a file written after the snapshot is there")
    expect(other.console.check("sha256sum /srv/kept") == facts["kept"], "a file is another one")
    check_rounds(other.console, facts["acked"])
    other.stop()


def goes_on_where_it_was_killed(vmm, shared):
    """A VM on the newest state, as `inspect` says: the journal is replayed and every fsynced file is there."""
    disk = vmm.newest_disk("t")
    spec = busybox("cloud", memory=256, cpus=1)
    spec.disk_argument = disk["disk_argument"]
    guest = Guest(vmm, "next").boot(spec, 120)
    console = guest.console
    expect(granularity(console) == HEAD_GRANULARITY, "the guest discards in units of %d" % granularity(console))
    console.check("mount -t ext4 /dev/vda /mnt && dmesg | grep 'EXT4-fs.*recovery complete'")
    console.put("/tmp/acked", "\n".join(shared["killed"]) + "\n")
    console.check("cd /mnt/srv/w && sha256sum -c /tmp/acked >/tmp/result || { grep -v OK /tmp/result; false; }", 60)
    expect(console.check("cat /mnt/srv/later") == "later", "a file that was synced has another content")
    console.check("rm -r /mnt/srv/w; umount /mnt")
    console.send("\x15\n poweroff -f\n")
    vmm.wait_off("next", 60)
    guest.stop()
    check_image(disk["file"], (0, 3))


if __name__ == "__main__":
    sys.exit(run_all([
        ("persist.boots_on_an_overlay", boots),
        ("persist.fstrim_shrinks_the_layer", fstrim_shrinks_the_layer),
        ("persist.snapshot_while_a_writer_runs", snapshot_while_a_writer_runs),
        ("persist.revert_brings_back_what_was_discarded", revert_brings_back_what_was_discarded),
        ("persist.kill_nine_while_it_writes", kill_nine_while_it_writes),
        ("persist.restores_to_the_snapshot", restores_to_the_snapshot),
        ("persist.goes_on_where_it_was_killed", goes_on_where_it_was_killed),
    ]))
