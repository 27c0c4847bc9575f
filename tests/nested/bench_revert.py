#!/usr/bin/env python3
"""In-place revert of a stock Debian guest of 256 MiB after real work, beside QEMU's `loadvm` of the same guest.

Both run in the same outer machine on the same KVM, one after the other, so that neither takes the other's time. The work between two reverts: a package unpacked, files
written, read back and synced. Time is taken at a client that holds the control socket open, from the request to the
answer, and to the first answer of the guest's shell. Medians.

    bench_revert.py [ROUNDS]     default 5; QEMU alone where quicksave was not brought along
"""

import http.client
import json
import os
import shutil
import socket
import statistics
import sys
import time

from harness import RESULTS, Failure, Guest, check_same_run, note, plant_nonce
from vmm import WORK, Qemu, Quicksave, debian

WORKLOAD = r"""
set -e
mkdir -p /srv/unpacked
dpkg-deb -x /root/debs/bash_*.deb /srv/unpacked
dd if=/dev/urandom of=/srv/file bs=64k count=32 2>/dev/null
sync
md5sum /srv/file >/srv/sum
"""
CLEAN_UP = "rm -rf /srv/unpacked /srv/file /srv/sum; sync"


class UnixHttp(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


class QuicksaveClient:
    """Reverts over the VM's own socket, held open."""

    def __init__(self, vmm, name):
        self._http = UnixHttp("%s/run/%s/api.sock" % (vmm.home, name))
        # Connected, and used once, before the first time that counts: as QEMU's monitor is.
        self._http.request("GET", "/v1/vm")
        self._http.getresponse().read()

    def revert(self, snapshot):
        self._http.request("POST", "/v1/revert", json.dumps({"snapshot": snapshot}), {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        body = answer.read().decode()
        if answer.status >= 300:
            raise Failure("revert was refused: %d %s" % (answer.status, body))
        return json.loads(body) if body else {}


class QemuClient:
    def __init__(self, vmm, name):
        self._vmm, self._name = vmm, name

    def revert(self, snapshot):
        self._vmm.monitor(self._name, "loadvm " + snapshot)
        return {}


class Contestant:
    """One VMM with its guest, and what was measured of it."""

    def __init__(self, vmm, client, guest=None):
        self.vmm = vmm
        self.guest = guest or Guest(vmm, "bench-" + vmm.kind).boot(debian(memory=256, cpus=1))
        self.client = client(vmm, self.guest.name)
        self.snapshot_name = "bench"
        self.answered, self.alive, self.own = [], [], []

    def snapshot(self):
        self.planted = plant_nonce(self.guest.console)
        self.guest.snapshot(self.snapshot_name)
        self.guest.console.attach()
        return self

    def work(self):
        self.guest.console.check(WORKLOAD, 240)

    def revert(self):
        started = time.monotonic()
        answer = self.client.revert(self.snapshot_name)
        self.answered.append(time.monotonic() - started)
        self.guest.console.attach()
        self.alive.append(time.monotonic() - started)
        self.own.append((answer.get("total_us", 0), answer.get("dirty_pages", 0), answer.get("clusters", 0)))
        check_same_run(self.guest.console, self.planted)
        if self.guest.console.run("test -e /srv/sum").status == 0:
            raise Failure("%s left a file of the abandoned run" % self.guest.name)

    def race(self, rounds):
        """REQUIRES: snapshot()."""
        for _ in range(rounds):
            self.work()
            self.revert()
        self.guest.stop()
        return self

    def seconds(self):
        return statistics.median(self.answered)

    def line(self):
        text = "%-10s %8.1f ms to the answer, %8.1f ms to the shell's answer" % (
            self.vmm.kind, 1e3 * self.seconds(), 1e3 * statistics.median(self.alive))
        if self.vmm.kind == "quicksave":
            text += "  (its own figure %.1f ms; %d dirty pages, %d clusters)" % (
                statistics.median(o[0] for o in self.own) / 1e3, statistics.median(o[1] for o in self.own),
                statistics.median(o[2] for o in self.own))
        return text


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else int(os.environ.get("NESTED_ROUNDS", "5"))
    os.makedirs(WORK, exist_ok=True)
    os.makedirs(RESULTS, exist_ok=True)
    kinds = [(Quicksave, QuicksaveClient), (Qemu, QemuClient)]
    if not shutil.which("quicksave"):
        note("no quicksave here: QEMU alone")
        kinds = kinds[1:]
    contestants = []
    try:
        for kind, client in kinds:
            contestant = Contestant(kind(), client)
            # In the middle of its life at T: the work was done once before.
            contestant.work()
            contestant.guest.console.check(CLEAN_UP, 60)
            contestants.append(contestant.snapshot().race(rounds))
    except Exception as error:
        print("not ok bench.revert: %s" % error, flush=True)
        return 1
    for contestant in contestants:
        print(contestant.line(), flush=True)
    if len(contestants) < 2:
        print("ok bench.revert (no ratio: one VMM)")
        return 0
    ratio = contestants[1].seconds() / contestants[0].seconds()
    print("ratio: quicksave reverts %.1f times faster than QEMU's loadvm" % ratio, flush=True)
    wanted = float(os.environ.get("NESTED_WANTED_RATIO", "20"))
    print(("ok bench.revert" if ratio >= wanted else "not ok bench.revert: less than %.0f times" % wanted), flush=True)
    return 0 if ratio >= wanted else 1


if __name__ == "__main__":
    sys.exit(main())
