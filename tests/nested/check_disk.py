#!/usr/bin/env python3
"""The disk of a snapshot, judged outside the emulated machine by other people's tools.

    check_disk.py RESULTS BASE      RESULTS/disk is what snapshot.py left, BASE the guest's image

The journal is replayed, then the file system is clean, then every file that had been fsynced before T is there with
its hash. Without the replay first a clean check would prove nothing: `e2fsck -n` skips the journal.
"""

import glob
import json
import os
import re
import subprocess
import sys


class Wrong(Exception):
    pass


def run(*words, allowed=(0,), where=None):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=where,
                          env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
    if done.returncode not in allowed:
        raise Wrong("%s returned %d: %s" % (" ".join(words), done.returncode, done.stdout.strip()[-500:]))
    return done.stdout


def raw_disk(directory, base, allowed=(0,)):
    """One raw file out of the layers, bottom first, by qemu-img alone. What lies below is said on our copies. A check of a
    layer may end with a status in `allowed` (3: there are leaks)."""
    below = os.path.abspath(base)
    for layer in layers(directory):
        # As the snapshot wrote it: the name of what lies below is one of the emulated machine.
        run("qemu-img", "check", "-q", "json:" + json.dumps(
            {"driver": "qcow2", "file": {"driver": "file", "filename": layer}, "backing": None}), allowed=allowed)
        run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", layer)
        below = os.path.abspath(layer)
    raw = directory + "/disk.raw"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", below, raw)
    return raw


def layers(directory):
    found = sorted(glob.glob(directory + "/layer-*.qcow2"))
    if not found:
        raise Wrong("no layers in " + directory)
    return found


def check(directory, raw):
    """The file system and the files of the writer (writer.py); how many there are."""
    replayed = run("e2fsck", "-fy", raw, allowed=(0, 1))
    if "recovering journal" not in replayed:
        raise Wrong("there was no journal to replay: the disk is not the one of a running guest")
    damage = [line for line in replayed.splitlines() if re.search(r"corrupt|bad magic|illegal block|multiply", line, re.I)]
    if damage:
        raise Wrong("e2fsck repaired damage: %s" % damage[:3])
    run("e2fsck", "-fn", raw)
    run("debugfs", "-R", "rdump /srv/w " + directory, raw)
    run("sha256sum", "--quiet", "-c", "../acked", where=directory + "/w")
    # The log on the disk may know of files that were fsynced after the list was read; those count too.
    run("sha256sum", "--quiet", "-c", "log", where=directory + "/w")
    acked = len(open(directory + "/acked").readlines())
    logged = len(open(directory + "/w/log").readlines())
    if logged < acked:
        raise Wrong("the log on the disk has %d lines, %d were fsynced" % (logged, acked))
    return logged


def main():
    directory = sys.argv[1] + "/disk"
    try:
        raw = raw_disk(directory, sys.argv[2])
        print("ok snapshot.disk_holds_what_was_fsynced (%d files)" % check(directory, raw))
        os.unlink(raw)
    except (Wrong, OSError) as error:
        print("not ok snapshot.disk_holds_what_was_fsynced: %s" % error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
