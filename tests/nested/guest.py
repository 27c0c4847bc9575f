"""A guest's serial console as a place to run commands.

A shell on a serial line has no framing: echo, prompts, the kernel's own messages and a console that is
detached and attached again all share it. Commands are therefore sent as one call of a function that the driver
defines in the guest's shell; it writes the command's output to a file in RAM and prints it base64-coded between marks that carry a
fresh number, the status and a hash. A frame that the hash does not confirm is asked for again, so kernel messages
in its middle and bytes lost to a detached console cost a repetition, never a wrong answer.

The shell's state (the function, its variables) lives in the guest's RAM. So it survives a revert and a restore, and a console
that is opened after either needs no new handshake: `Console.attach`.
"""

import base64
import hashlib
import os
import re
import shlex
import socket
import threading
import time

# Every time limit is for an idle machine of two cores; NESTED_PATIENCE stretches all of them.
PATIENCE = float(os.environ.get("NESTED_PATIENCE", "4"))

HELPER = r"""stty -echo 2>/dev/null; PS1=; PS2=; QF=/run/.q; [ -d /run ] || QF=/tmp/.q
q() { ( eval "$2" ) >$QF 2>&1 </dev/null; QR=$?; qs "$1"; }
qs() { set -- "$1" $(md5sum <$QF); printf '\n<<%s %s %s\n' "$1" "$QR" "$2"; base64 $QF; printf '>>%s\n' "$1"; }
"""


class GuestError(Exception):
    """The guest did not do what was asked of it; the message says what it did instead."""


class Result:
    def __init__(self, status, output):
        self.status = status
        self.output = output


class Console:
    """One client of one console socket. Everything received is kept (`text`, from byte `mark()` on)."""

    def __init__(self, path, transcript=None):
        self.path = path
        self._transcript = open(transcript, "ab", buffering=0) if transcript else None
        self._received = bytearray()
        self._changed = threading.Condition()
        self._closed = False
        self._socket = None
        self._serial = int(time.time() * 1000) % 1000000000
        self._reader = threading.Thread(target=self._read_forever, daemon=True)
        self._reader.start()

    # -- the byte stream ------------------------------------------------------------------------

    def _read_forever(self):
        """Reads until close(); a VMM that drops its clients (it may, on a revert) is connected to again."""
        while not self._closed:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(self.path)
            except OSError:
                connection.close()
                time.sleep(0.05)
                continue
            with self._changed:
                self._socket = connection
                self._changed.notify_all()
            while True:
                try:
                    data = connection.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    break
                if self._transcript:
                    self._transcript.write(data)
                with self._changed:
                    self._received += data
                    self._changed.notify_all()
            with self._changed:
                self._socket = None
            connection.close()

    def close(self):
        with self._changed:
            self._closed = True
            if self._socket:
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def mark(self):
        with self._changed:
            return len(self._received)

    def text(self, start=0):
        with self._changed:
            return bytes(self._received[start:]).decode("utf-8", "replace").replace("\r", "")

    def tail(self, lines=12):
        return "\n".join(self.text(max(0, self.mark() - 6000)).splitlines()[-lines:])

    def send(self, text, timeout=20):
        """Sends raw text. Waits for a connection where there is none."""
        deadline = time.monotonic() + timeout * PATIENCE
        data = text.encode()
        while data:
            with self._changed:
                while self._socket is None:
                    if self._closed or time.monotonic() > deadline:
                        raise GuestError("no console at %s" % self.path)
                    self._changed.wait(0.1)
                connection = self._socket
            try:
                # A UART takes bytes one at a time and Linux' line buffer holds 4 KiB: small steps.
                sent = connection.send(data[:512])
                data = data[sent:]
            except OSError:
                time.sleep(0.05)
                if time.monotonic() > deadline:
                    raise GuestError("the console at %s takes nothing" % self.path)

    def wait_for(self, pattern, start=0, timeout=60):
        """The first match of `pattern` in what came after byte `start`."""
        compiled = re.compile(pattern, re.M)
        deadline = time.monotonic() + timeout * PATIENCE
        while True:
            seen = self.mark()
            match = compiled.search(self.text(start))
            if match:
                return match
            left = deadline - time.monotonic()
            if left <= 0:
                raise GuestError(
                    "no %r on the console within %d s; its last lines:\n%s" % (pattern, timeout, self.tail()))
            with self._changed:
                if len(self._received) == seen:
                    self._changed.wait(min(left, 1.0))

    # -- commands ---------------------------------------------------------------------------------

    def handshake(self, timeout=120):
        """Waits for the guest's first shell and makes it answer commands. Once after each boot."""
        deadline = time.monotonic() + timeout * PATIENCE
        # A prompt at the end of what came; busybox asks the terminal for the cursor's place behind it.
        self.wait_for(r"^[^\n]{0,40}[#$] (?:\x1b\[6n)?\Z", self.mark_of_boot, timeout)
        while True:
            # `exec sh` leaves the interactive shell with its line editor, which would echo and redraw.
            self.send("\x15\nexec sh\n")
            time.sleep(0.3)
            self.send(HELPER)
            try:
                self._call("true", 15)
                self._call("dmesg -n 1", 15)
                return
            except GuestError:
                if time.monotonic() > deadline:
                    raise

    mark_of_boot = 0

    def attach(self, timeout=30):
        """The shell is already ours (a revert or a restore brought it back): proves it answers."""
        self.run("true", timeout)

    def _call(self, command, timeout):
        self._serial += 1
        number = "%d" % self._serial
        start = self.mark()
        # ^U takes away what a snapshot may have caught half typed.
        self.send("\x15\n q %s %s\n" % (number, shlex.quote(command)))
        deadline = time.monotonic() + timeout * PATIENCE
        for _ in range(6):
            try:
                self.wait_for(r"^>>%s$" % number, start, max(0.1, (deadline - time.monotonic()) / PATIENCE))
            except GuestError as error:
                raise GuestError("no answer to %r: %s" % (command[:120], error))
            result = self._parse(number, self.text(start))
            if result:
                return result
            start = self.mark()
            self.send("\x15\n qs %s\n" % number)
        raise GuestError("the answer to %r came damaged six times" % command[:120])

    @staticmethod
    def _parse(number, text):
        """The frame's status and output, or None where the hash does not confirm it."""
        frame = re.search(
            r"^<<%s (\d+) ([0-9a-f]{32})$(.*?)^>>%s$" % (number, number), text, re.S | re.M)
        if not frame:
            return None
        coded = "".join(
            line for line in frame.group(3).split("\n") if re.fullmatch(r"[A-Za-z0-9+/=]+", line))
        try:
            output = base64.b64decode(coded, validate=True)
        except ValueError:
            return None
        if hashlib.md5(output).hexdigest() != frame.group(2):
            return None
        return Result(int(frame.group(1)), output.decode("utf-8", "replace"))

    def run(self, command, timeout=60):
        """Runs `command` in the guest (a subshell, stdin empty); status and output."""
        return self._call(command, timeout)

    def check(self, command, timeout=60):
        """Like run, but a status other than 0 is an error. The output without its last newline."""
        result = self.run(command, timeout)
        if result.status != 0:
            raise GuestError("%r returned %d in the guest: %s" % (
                command[:200], result.status, result.output[-600:]))
        return result.output.rstrip("\n")

    def start(self, command):
        """Starts `command` in the background of the guest's shell, its output dropped."""
        self.check("( %s ) >/dev/null 2>&1 & :" % command)

    def put(self, path, content):
        coded = base64.encodebytes(content.encode()).decode()
        self.check("base64 -d >%s <<'E'\n%sE\nchmod 755 %s" % (path, coded, path))
