#!/usr/bin/env python3
"""What a VM left that was killed on a persistent disk, judged outside the emulated machine by other people's tools.

    check_persist.py RESULTS BASE      RESULTS/disk is what persist.py left, BASE the guest's image; its kernel lies beside it

QEMU's tools find the layers sound and read them, e2fsck replays the journal and finds the file system clean, what had been
fsynced is there; and QEMU boots the guest on the same layers.
"""

import os
import subprocess
import sys
import tempfile

from check_disk import Wrong, check, layers, raw_disk, run
from guest import Console, GuestError
from writer import faults_in_blocks

# As it is after kill -9: there may be leaks, and no other fault.
LEAKS_ALLOWED = (0, 3)


def check_blocks(directory, raw):
    run("debugfs", "-R", "dump /srv/blocks %s/blocks" % directory, raw)
    with open(directory + "/blocks", "rb") as blocks, open(directory + "/acked") as acked:
        faults = faults_in_blocks(blocks.read(), acked.readlines())
    if faults:
        raise Wrong("%d blocks are wrong: %s" % (len(faults), faults[:3]))


def boot_in_qemu(directory, base):
    """Debian's own kernel and initrd on the uppermost layer, without KVM and without us, to a shell that finds the files."""
    top, images = layers(directory)[-1], os.path.dirname(base)
    with tempfile.TemporaryDirectory() as place:
        with open(directory + "/qemu-errors", "wb") as errors:
            machine = subprocess.Popen([
                "qemu-system-x86_64", "-machine", "q35,vmport=off", "-accel", "tcg", "-cpu", "max,-la57,-pku,-pks", "-m", "512", "-nodefaults",
                "-display", "none", "-no-reboot", "-kernel", images + "/vmlinuz-cloud", "-initrd", images + "/initrd-cloud.img",
                "-append", "root=/dev/vda rw console=ttyS0 quiet", "-drive", "file=%s,format=qcow2,if=virtio,discard=unmap" % top,
                "-device", "virtio-rng-pci", "-chardev", "socket,id=c,path=%s/console,server=on,wait=off" % place, "-serial", "chardev:c"],
                stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        try:
            console = Console(place + "/console", directory + "/../console-qemu.log")
            console.handshake(60)
            with open(directory + "/acked") as acked:
                console.put("/run/acked", acked.read())
            console.check("cd /srv/w && sha256sum --quiet -c /run/acked", 30)
            console.send("\x15\n poweroff\n")
            machine.wait(120)
        except subprocess.TimeoutExpired:
            raise Wrong("the guest in QEMU does not power off")
        except GuestError as error:
            with open(directory + "/qemu-errors", errors="replace") as errors:
                raise Wrong("in QEMU: %s %s" % (error, errors.read()[-300:]))
        finally:
            machine.kill()
            machine.wait()
    run("qemu-img", "check", "-q", "-f", "qcow2", top, allowed=LEAKS_ALLOWED)


def main():
    directory, base = sys.argv[1] + "/disk", os.path.abspath(sys.argv[2])
    name = "persist.disk_holds_what_was_fsynced"
    try:
        raw = raw_disk(directory, base, LEAKS_ALLOWED)
        count = check(directory, raw)
        check_blocks(directory, raw)
        os.unlink(raw)
        print("ok %s (%d files)" % (name, count))
        name = "persist.qemu_boots_the_disk"
        boot_in_qemu(directory, base)
        print("ok " + name)
    except (Wrong, OSError) as error:
        print("not ok %s: %s" % (name, error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
