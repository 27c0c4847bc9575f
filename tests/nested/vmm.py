"""The VMM under a nested test: quicksave, or QEMU as its peer and as the proof that the tests themselves are right.

Both offer the same few verbs, so that a scenario is written once. Everything that depends on quicksave's command line
and on the field names of its JSON is in `Quicksave`; nothing outside this file knows them.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time

from guest import PATIENCE

# Inside the outer machine; the demonstration runs on a host of its own, too.
GUESTS = os.environ.get("NESTED_GUESTS", "/guests")
WORK = os.environ.get("NESTED_WORK", "/payload/work")


class VmmError(Exception):
    """A VMM's command failed; the message holds what it printed."""


def command(*words, timeout=300):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, timeout=timeout * PATIENCE)
    if done.returncode != 0:
        raise VmmError("%s returned %d: %s" % (
            " ".join(words), done.returncode, (done.stderr or done.stdout).strip()[-1500:]))
    return done.stdout


def wait_until(condition, timeout, what):
    deadline = time.monotonic() + timeout * PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise VmmError("%s did not happen within %d s" % (what, timeout))
        time.sleep(0.05)


class Spec:
    """What to boot. `disk` is a qcow2 image that stays unchanged; `disk_argument` says in Quicksave's words what to do with
    another one instead."""

    def __init__(self, kernel="cloud", initrd=None, disk=None, append="", memory=512, cpus=2):
        self.kernel = "%s/vmlinuz-%s" % (GUESTS, kernel)
        self.initrd = initrd
        self.disk = disk
        self.disk_argument = disk + ",format=qcow2" if disk else None
        self.append = append
        self.memory = memory
        self.cpus = cpus


def debian(kernel="cloud", memory=512, cpus=2, append=""):
    return Spec(kernel, "%s/initrd-%s.img" % (GUESTS, kernel), "%s/debian.qcow2" % GUESTS,
                "root=/dev/vda rw console=ttyS0 quiet " + append, memory, cpus)


def busybox(kernel="cloud", memory=256, cpus=8):
    return Spec(kernel, "%s/busybox-%s.img" % (GUESTS, kernel), None, "console=ttyS0 quiet", memory, cpus)


class Quicksave:
    kind = "quicksave"

    def __init__(self):
        self.home = os.environ.setdefault("QUICKSAVE_HOME", "/payload/home")

    def start(self, name, spec):
        words = ["quicksave", "run", "--name", name, "--kernel", spec.kernel, "--append", spec.append,
                 "-m", "%dM" % spec.memory, "--cpus", str(spec.cpus), "-d"]
        if spec.initrd:
            words += ["--initrd", spec.initrd]
        if spec.disk_argument:
            words += ["--disk", spec.disk_argument]
        command(*words)

    def console_path(self, name):
        return "%s/run/%s/console.sock" % (self.home, name)

    def logs(self, name):
        return command("quicksave", "logs", name)

    def _listed(self):
        return json.loads(command("quicksave", "ps", "--json"))

    def alive(self, name):
        return any(vm["name"] == name and vm.get("pid") for vm in self._listed()
                   if vm.get("state") not in ("stopped", "exited", "off", "dead"))

    def kill_nine(self, name):
        """The process is gone when this returns. Its image may stay locked for a moment: the kernel takes the rings of a killed
        process apart behind its back."""
        pid = next(vm["pid"] for vm in self._listed() if vm["name"] == name)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.alive(name), 20, "the end of " + name)

    def newest_disk(self, name):
        """Where the newest state of the first persistent disk is: its `file`, and the `disk_argument` that goes on from it."""
        return json.loads(command("quicksave", "inspect", name))["newest_disks"][0]

    def snapshot(self, name, snapshot):
        return json.loads(command("quicksave", "snapshot", "create", name, snapshot, "--json"))

    def revert(self, name, snapshot):
        return json.loads(command("quicksave", "revert", name, snapshot, "--json"))

    def restore(self, name, snapshot, new_name):
        command("quicksave", "restore", "%s@%s" % (name, snapshot), "--name", new_name, "-d")

    def snapshots(self, name):
        return [entry["name"] for entry in json.loads(command("quicksave", "snapshot", "list", name, "--json"))]

    def snapshot_layers(self, name, snapshot, out):
        """Copies of the first disk's layers, as OUT/layer-N.qcow2, the lowest first; below them lies the guest's image."""
        disk = json.loads(command("quicksave", "snapshot", "show", "%s@%s" % (name, snapshot), "--json"))["disks"][0]
        for number, layer in enumerate(disk["layers"]):
            shutil.copyfile("%s/snapshots/%s/%s" % (self.home, layer["owner"], layer["file"]), "%s/layer-%d.qcow2" % (out, number))

    def stop(self, name):
        """Ends the VM whatever its guest does, and takes its name away."""
        subprocess.run(["quicksave", "kill", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: not self.alive(name), 20, "the end of " + name)

    def wait_off(self, name, timeout):
        wait_until(lambda: not self.alive(name), timeout, "power-off of " + name)


class Qemu:
    """QEMU's microvm on the same KVM: internal snapshots of a qcow2 overlay."""
    kind = "qemu"

    def __init__(self):
        self.machines = {}
        self.specs = {}

    def _dir(self, name):
        return "%s/qemu/%s" % (WORK, name)

    def disk(self, name):
        return self._dir(name) + "/disk.qcow2"

    def start(self, name, spec, snapshot=None):
        where = self._dir(name)
        os.makedirs(where, exist_ok=True)
        # A snapshot needs one writable disk that can hold it; a guest without a disk gets an empty one.
        disk = self.disk(name)
        if not os.path.exists(disk):
            words = ["-b", spec.disk, "-F", "qcow2", disk] if spec.disk else [disk, "1G"]
            command("qemu-img", "create", "-q", "-f", "qcow2", *words)
        words = ["qemu-system-x86_64", "-M", "microvm,acpi=on,rtc=on,pit=on,pic=on", "-accel", "kvm", "-cpu", "host", "-smp", str(spec.cpus),
                 "-m", str(spec.memory), "-nodefaults", "-display", "none", "-kernel", spec.kernel,
                 "-append", spec.append + " reboot=t",
                 "-drive", "file=%s,format=qcow2,if=none,id=d,discard=unmap" % disk, "-device", "virtio-blk-device,drive=d",
                 "-device", "virtio-rng-device",
                 "-chardev", "socket,id=c,path=%s/console.sock,server=on,wait=off,logfile=%s/log" % (where, where),
                 "-serial", "chardev:c", "-qmp", "unix:%s/qmp.sock,server=on,wait=off" % where]
        if spec.initrd:
            words += ["-initrd", spec.initrd]
        if snapshot:
            words += ["-loadvm", snapshot]
        errors = open(where + "/errors", "wb")
        self.machines[name] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        self.specs[name] = spec
        wait_until(lambda: os.path.exists(where + "/qmp.sock") or not self.alive(name), 30, "QEMU's start")
        if not self.alive(name):
            raise VmmError("QEMU ended at once: " + open(where + "/errors").read()[-800:])
        self._connections = getattr(self, "_connections", {})
        self._connections[name] = None

    def console_path(self, name):
        return self._dir(name) + "/console.sock"

    def logs(self, name):
        return open(self._dir(name) + "/log", errors="replace").read()

    def alive(self, name):
        return name in self.machines and self.machines[name].poll() is None

    def _qmp(self, name):
        if self._connections.get(name) is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(self._dir(name) + "/qmp.sock")
            stream = connection.makefile("rw")
            stream.readline()
            self._connections[name] = stream
            self._execute(name, {"execute": "qmp_capabilities"})
        return self._connections[name]

    def _execute(self, name, request):
        stream = self._qmp(name)
        stream.write(json.dumps(request) + "\n")
        stream.flush()
        while True:
            line = stream.readline()
            if not line:
                raise VmmError("QEMU closed its control socket")
            answer = json.loads(line)
            if "error" in answer:
                raise VmmError(answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]

    def monitor(self, name, line):
        answer = self._execute(name, {"execute": "human-monitor-command", "arguments": {"command-line": line}})
        if answer.strip():
            raise VmmError("QEMU: %s: %s" % (line, answer.strip()))

    def snapshot(self, name, snapshot):
        started = time.monotonic()
        self.monitor(name, "savevm " + snapshot)
        return {"total_us": int((time.monotonic() - started) * 1e6)}

    def revert(self, name, snapshot):
        started = time.monotonic()
        self.monitor(name, "loadvm " + snapshot)
        return {"total_us": int((time.monotonic() - started) * 1e6)}

    def restore(self, name, snapshot, new_name):
        os.makedirs(self._dir(new_name), exist_ok=True)
        shutil.copyfile(self.disk(name), self.disk(new_name))
        self.start(new_name, self.specs[name], snapshot)

    def snapshot_layers(self, name, snapshot, out):
        # An internal snapshot as a layer of its own.
        command("qemu-img", "convert", "-U", "-f", "qcow2", "-l", snapshot, "-B", self.specs[name].disk, "-F", "qcow2", "-O", "qcow2",
                self.disk(name), out + "/layer-0.qcow2")

    def stop(self, name):
        machine = self.machines.pop(name, None)
        if machine and machine.poll() is None:
            machine.send_signal(signal.SIGKILL)
            machine.wait()

    def wait_off(self, name, timeout):
        try:
            self.machines[name].wait(timeout * PATIENCE)
        except subprocess.TimeoutExpired:
            raise VmmError("the guest did not power off within %d s" % timeout)


def chosen():
    """The VMM that NESTED_VMM names; without it quicksave where it was brought along, else QEMU."""
    kind = os.environ.get("NESTED_VMM") or ("quicksave" if shutil.which("quicksave") else "qemu")
    os.makedirs(WORK, exist_ok=True)
    return {"quicksave": Quicksave, "qemu": Qemu}[kind]()
