#!/usr/bin/env python3
"""In-place revert of a stock Debian guest of 256 MiB after real work, beside QEMU's `loadvm` of the same guest.

Both run in the same outer machine on the same KVM, and take turns. The work between two reverts: packages unpacked, files
written, read back and synced. Time is taken at a client that holds the control socket open, from the request to the
answer, and to the first answer of the guest's shell. Medians.

    bench_revert.py [ROUNDS]     default 7; one VMM alone where quicksave was not brought along
"""

import http.client
import json
import os
import shutil
import socket
import statistics
import sys
import time

from harness import RESULTS, Guest, check_same_run, note, plant_nonce
from vmm import WORK, Qemu, Quicksave, debian

WORKLOAD = r"""
set -e
mkdir -p /srv/unpacked
for package in /root/debs/*.deb; do dpkg-deb -x $package /srv/unpacked; done
dd if=/dev/urandom of=/srv/file bs=64k count=64 2>/dev/null
tar -cf /srv/archive.tar -C /srv/unpacked .
sync
sha256sum /srv/archive.tar >/srv/sum
"""


class UnixHttp(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


class QuicksaveClient:
    def __init__(self, vmm, name):
        self._http = UnixHttp("%s/run/%s/api.sock" % (vmm.home, name))

    def revert(self, snapshot):
        self._http.request("POST", "/v1/revert", json.dumps({"snapshot": snapshot}), {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        body = answer.read().decode()
        if answer.status >= 300:
            raise SystemExit("revert was refused: %d %s" % (answer.status, body))
        return json.loads(body) if body else {}


class QemuClient:
    def __init__(self, vmm, name):
        self._vmm, self._name = vmm, name

    def revert(self, snapshot):
        self._vmm.monitor(self._name, "loadvm " + snapshot)
        return {}


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else int(os.environ.get("NESTED_ROUNDS", "7"))
    os.makedirs(WORK, exist_ok=True)
    os.makedirs(RESULTS, exist_ok=True)
    machines = []
    for kind, client in ((Quicksave, QuicksaveClient), (Qemu, QemuClient)):
        if kind is Quicksave and not shutil.which("quicksave"):
            note("no quicksave here: QEMU alone")
            continue
        vmm = kind()
        guest = Guest(vmm, "bench-" + kind.kind).boot(debian(memory=256, cpus=1))
        planted = plant_nonce(guest.console)
        # The guest is in the middle of its life at T: the work was done once before.
        guest.console.check(WORKLOAD, 240)
        guest.console.check("rm -rf /srv/unpacked /srv/file /srv/archive.tar /srv/sum; sync", 60)
        guest.snapshot("clean")
        guest.console.attach()
        machines.append((guest, client(vmm, guest.name), planted, [], [], []))
    for _ in range(rounds):
        for guest, client, planted, answered, alive, own in machines:
            guest.console.check(WORKLOAD, 240)
            started = time.monotonic()
            answer = client.revert("clean")
            answered.append(time.monotonic() - started)
            guest.console.attach()
            alive.append(time.monotonic() - started)
            own.append((answer.get("total_us", 0), answer.get("dirty_pages", 0), answer.get("clusters", 0)))
            check_same_run(guest.console, planted)
            if guest.console.run("test -e /srv/archive.tar").status == 0:
                raise SystemExit("not ok bench.revert: %s left a file of the abandoned run" % guest.name)
    table = {}
    for guest, _, _, answered, alive, own in machines:
        table[guest.vmm.kind] = statistics.median(answered)
        print("%-10s revert, median of %d: %8.1f ms   to the shell's answer %8.1f ms%s" % (
            guest.vmm.kind, rounds, 1e3 * statistics.median(answered), 1e3 * statistics.median(alive),
            "   (its own figure %.1f ms, %d dirty pages, %d clusters)" % (
                statistics.median(o[0] for o in own) / 1e3, statistics.median(o[1] for o in own),
                statistics.median(o[2] for o in own)) if guest.vmm.kind == "quicksave" else ""), flush=True)
        guest.stop()
    if len(table) < 2:
        print("ok bench.revert (no ratio: one VMM)")
        return 0
    ratio = table["qemu"] / table["quicksave"]
    print("ratio: quicksave reverts %.1f times faster than QEMU's loadvm" % ratio, flush=True)
    wanted = float(os.environ.get("NESTED_WANTED_RATIO", "20"))
    print(("ok bench.revert" if ratio >= wanted else "not ok bench.revert: less than %.0f times" % wanted), flush=True)
    return 0 if ratio >= wanted else 1


if __name__ == "__main__":
    sys.exit(main())
