"""What the nested scenarios share: a guest that is booted and driven, and results as `ok NAME` / `not ok NAME: why`."""

import os
import sys
import time
import traceback

import guest
import vmm as vmm_module
from guest import Console, GuestError

RESULTS = os.environ.get("NESTED_RESULTS", "/payload/results")


class Failure(Exception):
    """A scenario's expectation did not hold."""


def expect(condition, why):
    if not condition:
        raise Failure(why)


class Guest:
    """One VM with its console. The name is the VMM's name for it."""

    def __init__(self, vmm, name):
        self.vmm = vmm
        self.name = name
        self.console = None

    def boot(self, spec, timeout=150):
        started = time.monotonic()
        self.vmm.start(self.name, spec)
        self.open()
        self.console.handshake(timeout)
        note("%s: shell after %.1f s" % (self.name, time.monotonic() - started))
        return self

    def open(self):
        self.console = Console(self.vmm.console_path(self.name), "%s/console-%s.log" % (RESULTS, self.name))
        return self.console

    def snapshot(self, snapshot):
        started = time.monotonic()
        answer = self.vmm.snapshot(self.name, snapshot)
        note("%s: snapshot %s in %.2f s %s" % (self.name, snapshot, time.monotonic() - started, answer))
        return answer

    def revert(self, snapshot):
        started = time.monotonic()
        answer = self.vmm.revert(self.name, snapshot)
        note("%s: revert to %s in %.2f s %s" % (self.name, snapshot, time.monotonic() - started, answer))
        self.console.attach()
        return answer

    def restored(self, snapshot, new_name):
        """A second VM from this one's snapshot."""
        started = time.monotonic()
        self.vmm.restore(self.name, snapshot, new_name)
        other = Guest(self.vmm, new_name)
        other.open()
        other.console.attach()
        note("%s: restored from %s@%s, answers after %.2f s" % (new_name, self.name, snapshot, time.monotonic() - started))
        return other

    def stop(self):
        if self.console:
            self.console.close()
        self.vmm.stop(self.name)


def note(text):
    print("# %7.1f %s" % (time.monotonic() - STARTED, text), flush=True)


STARTED = time.monotonic()


def run_all(scenarios):
    """Runs (name, function) pairs in order; each result is one line. A function gets the VMM and the dictionary that
    passes guests from one scenario to the next. NESTED_ONLY=a,b leaves the others out."""
    vmm = vmm_module.chosen()
    os.makedirs(RESULTS, exist_ok=True)
    note("VMM: " + vmm.kind)
    only = [word for word in os.environ.get("NESTED_ONLY", "").split(",") if word]
    shared = {}
    passed = failed = 0
    for name, function in scenarios:
        if only and name not in only:
            continue
        started = time.monotonic()
        try:
            function(vmm, shared)
            passed += 1
            print("ok %s (%.1f s)" % (name, time.monotonic() - started), flush=True)
        except KeyError as error:
            failed += 1
            if error.args and error.args[0] in ("t", "t2", "planted", "debian", "facts", "killed"):
                print("not ok %s: no guest: an earlier scenario failed" % name, flush=True)
            else:
                print("not ok %s: missing field %s" % (name, error), flush=True)
                traceback.print_exc(file=sys.stdout)
        except (Failure, GuestError, vmm_module.VmmError) as error:
            failed += 1
            print("not ok %s: %s" % (name, error), flush=True)
        except Exception as error:  # A mistake in the scenario: its place is what helps.
            failed += 1
            print("not ok %s: %s" % (name, error), flush=True)
            traceback.print_exc(file=sys.stdout)
    print("%d passed, %d failed" % (passed, failed), flush=True)
    return 1 if failed or not passed else 0


# -- what several scenarios ask of a guest ---------------------------------------------------------

def plant_nonce(console):
    """A random number that exists in the guest's RAM alone, twice: in a tmpfs and in the shell's memory."""
    console.check("head -c 16 /dev/urandom | base64 >/run/nonce 2>/dev/null || head -c 16 /dev/urandom | base64 >/tmp/nonce")
    nonce = console.check("cat /run/nonce 2>/dev/null || cat /tmp/nonce")
    console.send("\x15\n QN=%s\n" % nonce)
    return identity(console)


def identity(console):
    """What changes when the guest boots anew, and stays when it was taken back."""
    return console.check('cat /run/nonce 2>/dev/null || cat /tmp/nonce; echo "$QN"; cat /proc/sys/kernel/random/boot_id')


def check_same_run(console, planted):
    found = identity(console)
    expect(found == planted, "the guest booted anew instead of going on: nonce was %r, is %r" % (planted, found))


def check_timers(console, cpus):
    """Each vCPU's local timer interrupts it, and a sleep that is bound to it ends."""
    read = "grep LOC: /proc/interrupts"
    before = [int(word) for word in console.check(read).split()[1:cpus + 1]]
    for cpu in range(cpus):
        console.check("taskset -c %d sleep 0.2 2>/dev/null || taskset %x sleep 0.2" % (cpu, 1 << cpu), 20)
    after = [int(word) for word in console.check(read).split()[1:cpus + 1]]
    expect(len(before) == cpus, "the guest counts timer interrupts of %d CPUs, not %d" % (len(before), cpus))
    for cpu in range(cpus):
        expect(after[cpu] > before[cpu], "CPU %d had no timer interrupt: %s then %s" % (cpu, before, after))
