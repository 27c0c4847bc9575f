#!/usr/bin/env python3
"""Snapshot, destruction, revert and restore of a stock Debian guest, judged from inside the guest by hashes.

The guest writes while the snapshot is taken. What must come back is at every distance from the disk: files that were
fsynced, data still dirty in the page cache, a tmpfs, variables of running processes, characters on their way
to the console.
"""

import os
import sys
import time

from guest import PATIENCE
from harness import RESULTS, Guest, check_same_run, check_timers, expect, note, plant_nonce, run_all
from vmm import debian
from writer import WRITER

CPUS = 2

# The same content at three places; dirty must still be dirty at T, so write-back is off from here on.
PLANT = r"""
set -e
echo 0 >/proc/sys/vm/dirty_writeback_centisecs
echo 60000 >/proc/sys/vm/dirty_expire_centisecs
head -c 6000000 /dev/urandom >/dev/shm/data
mkdir -p /srv/dirty
cp /dev/shm/data /srv/dirty/data
( cd / && sha256sum dev/shm/data srv/dirty/data usr/bin/perl usr/bin/bash usr/lib/systemd/systemd etc/passwd ) >/run/hashes
cat /run/hashes
"""


def count_of(console):
    return int(console.check("wc -l </run/w/done"))


def dirty_kib(console):
    return int(console.check("awk '/^Dirty:/ { print $2 }' /proc/meminfo"))


def verify(t, facts, writer=True):
    """Everything that `prepare` knows of the guest at T holds, and the guest goes on."""
    console = t.console
    check_same_run(console, facts["identity"])
    expect(console.check("cat /run/hashes") == facts["hashes"], "the list of hashes differs")
    console.check("cd / && sha256sum --quiet -c /run/hashes", 90)
    expect(console.check("cat /proc/%s/comm" % facts["sleeper"]) == "sleep", "a process of T is gone")
    if not writer:
        return
    done = console.check("head -n %d /run/w/done" % len(facts["acked"])).split("\n")
    expect(done == facts["acked"], "the writer's list of fsynced files differs from T's")
    # A copy: the writer appends to the list while it is read.
    console.check("cd /srv/w && cp /run/w/done /run/w/copy && sha256sum --quiet -c /run/w/copy", 120)
    before = after = count_of(console)
    deadline = time.monotonic() + 10 * PATIENCE
    while after == before and time.monotonic() < deadline:
        time.sleep(1)
        after = count_of(console)
    expect(after > before, "the writer does not go on: %d files, then %d" % (before, after))
    note("writer: %d fsynced before T, %d now" % (len(facts["acked"]), after))


def check_calm(console):
    """The guest's watchdogs know nothing of the minutes between T and now, nor its kernel of a damaged disk."""
    console.check("dmesg | grep -iE 'EXT4-fs error|I/O error|BUG:|soft lockup|rcu.*stall|blocked for more than' && exit 1 || true")


def prepare(vmm, shared):
    t = Guest(vmm, "t").boot(debian(memory=256, cpus=CPUS))
    console = t.console
    console.check("sha256sum /usr/bin/perl >/dev/null; modprobe -n ext4 || true")
    console.put("/root/writer", WRITER)
    facts = {"identity": plant_nonce(console), "hashes": console.check(PLANT, 60)}
    facts["sleeper"] = console.check("sleep 100000 >/dev/null 2>&1 & echo $!")
    console.start("exec /root/writer")
    deadline = time.monotonic() + 60 * PATIENCE
    while console.run("test -s /run/w/done && test $(wc -l </run/w/done) -ge 10").status != 0:
        expect(time.monotonic() < deadline, "the writer wrote nothing: " + console.run("ls -l /srv/w; ps aux | tail -5").output)
        time.sleep(1)
    if dirty_kib(console) <= 3000:
        # Something in the guest has called sync() meanwhile. In place: ext4 writes out what replaces a file that was cut off.
        console.check("dd if=/dev/shm/data of=/srv/dirty/data bs=1M conv=notrunc 2>/dev/null")
    dirty = dirty_kib(console)
    expect(dirty > 3000, "only %d KiB are dirty in the page cache: nothing to prove there" % dirty)
    facts["acked"] = console.check("cat /run/w/done").split("\n")
    t.snapshot("clean")
    console.attach()
    # The snapshot itself must not disturb the guest.
    verify(t, facts)
    shared["t"], shared["facts"] = t, facts


def revert_after_files_are_gone(vmm, shared):
    t, facts = shared["t"], shared["facts"]
    t.console.check("rm -rf --one-file-system /srv/w/* /srv/dirty; echo broken >/etc/passwd; echo x >/dev/shm/data; sync", 60)
    # Without /usr nothing answers any more but the shell itself.
    start = t.console.mark()
    t.console.send("\x15\n rm -rf /usr; ls / || echo USR\"\"GONE\n")
    t.console.wait_for("USRGONE", start, 90)
    t.revert("clean")
    verify(t, facts)


def revert_after_memory_is_full(vmm, shared):
    t, facts = shared["t"], shared["facts"]
    t.console.start("exec tail -c 2G /dev/zero")
    t.console.start("exec head -c 110M /dev/urandom >/dev/shm/fill")
    time.sleep(6)
    t.revert("clean")
    expect(t.console.run("test -e /dev/shm/fill").status != 0, "a file written after T is still there")
    verify(t, facts)


def revert_after_a_panic(vmm, shared):
    t, facts = shared["t"], shared["facts"]
    start = t.console.mark()
    t.console.send("\x15\n dmesg -n 8; echo c >/proc/sysrq-trigger\n")
    t.console.wait_for("Kernel panic", start, 60)
    time.sleep(1)
    t.revert("clean")
    verify(t, facts)


def timers_after_revert(vmm, shared):
    check_timers(shared["t"].console, CPUS)


def disk_of_the_snapshot(vmm, shared):
    """Leaves the snapshot's layers and the list of fsynced files to check_disk.py, which runs outside."""
    out = RESULTS + "/disk"
    os.makedirs(out, exist_ok=True)
    vmm.snapshot_layers("t", "clean", out)
    with open(out + "/acked", "w") as listing:
        listing.write("\n".join(shared["facts"]["acked"]) + "\n")


def console_in_mid_output(vmm, shared):
    """A snapshot while the guest prints: after a revert the rest comes, no byte lost and none twice."""
    t = shared["t"]
    console = t.console
    count = 200
    whole = "".join("line %d of the long output\n" % number for number in range(1, count + 1))
    start = console.mark()
    console.send("\x15\n i=0; while [ $i -lt %d ]; do i=$((i+1)); echo \"line $i of the long output\"; done\n" % count)
    console.wait_for(r"^line 20 of", start, 30)
    at_least = console.text(start).rfind("line ")
    console_before = console.text(start)
    t.vmm.snapshot(t.name, "printing")
    console_after = console.text(start)
    console.wait_for(r"^line %d of the long output$" % count, start, 120)
    expect(whole in console.text(start), "the snapshot damaged the output that was running")
    time.sleep(1)
    for _ in range(1):
        again = console.mark()
        t.vmm.revert(t.name, "printing")
        console.wait_for(r"^line %d of the long output\n" % count, again, 120)
        rest = console.text(again)
        rest = rest[:rest.rindex("line %d of" % count) + len("line %d of the long output\n" % count)]
        expect(whole.endswith(rest), "after the revert the output is not the rest of what was printed: %r ..." % rest[:120])
        printed_at_snapshot = len(whole) - len(rest)
        lines = whole[:printed_at_snapshot].count("\n")
        low = console_before.count(" of the long output\n")
        high = console_after.count(" of the long output\n") + 40
        expect(low - 1 <= lines <= high,
               "the output went on after line %d; the snapshot was taken between lines %d and %d" % (lines, low, high))
        note("mid-output: went on after line %d (snapshot between %d and %d), at byte %d" % (lines, low, high, at_least))
    console.attach()
    t.revert("clean")


def restore_into_new_process(vmm, shared):
    t, facts = shared["t"], shared["facts"]
    # It has nothing left to prove and would take the time from the other.
    t.console.check("pkill -STOP writer")
    t2 = t.restored("clean", "t2")
    shared["t2"] = t2
    verify(t2, facts)
    check_timers(t2.console, CPUS)
    check_calm(t2.console)
    # Two VMs from one snapshot do not see each other.
    t2.console.check("echo only-in-t2 >/root/mark; sync /root/mark")
    expect(t.console.run("test -e /root/mark").status != 0, "a file of the restored VM appeared in the first one")
    check_same_run(t.console, facts["identity"])
    t.stop()


def revert_in_the_restored_process(vmm, shared):
    t2, facts = shared["t2"], shared["facts"]
    t2.snapshot("second")
    t2.console.check("rm -rf /srv/w /srv/dirty /dev/shm/data; echo changed >/root/mark; sync", 60)
    t2.revert("second")
    expect(t2.console.check("cat /root/mark") == "only-in-t2", "the file of the restored VM did not come back")
    verify(t2, facts)
    check_timers(t2.console, CPUS)


def three_generations(vmm, shared):
    """restore, write, snapshot; three times, each in a new process on top of the one before."""
    current, snapshot, facts = shared["t2"], "second", shared["facts"]
    for generation in range(3, 6):
        child = current.restored(snapshot, "t%d" % generation)
        current.stop()
        for older in range(3, generation):
            expect(child.console.check("cat /root/gen%d /dev/shm/gen%d" % (older, older)) == "g%d\ng%d" % (older, older),
                   "what generation %d wrote is not there in %d" % (older, generation))
        verify(child, facts)
        check_timers(child.console, CPUS)
        child.console.check("echo g%d | tee /root/gen%d >/dev/shm/gen%d" % ((generation,) * 3))
        snapshot = "gen%d" % generation
        child.snapshot(snapshot)
        current = child
    current.console.check("rm /root/gen5; echo changed >/root/gen4")
    current.revert(snapshot)
    expect(current.console.check("cat /root/gen3 /root/gen4 /root/gen5") == "g3\ng4\ng5", "the last generation did not come back")
    verify(current, facts)
    # With every page of the last generation written and read back, its disk is still a sound file system.
    current.console.check("pkill writer; rm -rf /srv/w; sync; echo 3 >/proc/sys/vm/drop_caches; "
                          "sha256sum /usr/bin/perl /usr/bin/bash | cut -d' ' -f1", 60)
    check_calm(current.console)
    current.stop()


if __name__ == "__main__":
    sys.exit(run_all([
        ("snapshot.while_a_writer_runs", prepare),
        ("revert.after_rm_rf_usr", revert_after_files_are_gone),
        ("revert.timers_tick", timers_after_revert),
        ("revert.after_memory_is_full", revert_after_memory_is_full),
        ("revert.after_a_panic", revert_after_a_panic),
        ("snapshot.disk_is_left_for_check_disk", disk_of_the_snapshot),
        ("console.survives_a_snapshot_in_mid_output", console_in_mid_output),
        ("restore.into_a_new_process", restore_into_new_process),
        ("revert.in_the_restored_process", revert_in_the_restored_process),
        ("restore.three_generations", three_generations),
    ]))
