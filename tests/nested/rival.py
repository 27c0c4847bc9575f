#!/usr/bin/env python3
"""QEMU with the demonstration's guest, booted and at its snapshot, for the race at the demonstration's end. Started by guests/nested/rival.sh."""

import os
import sys

import harness
from demo import Rival
from vmm import WORK


def main():
    os.makedirs(WORK, exist_ok=True)
    os.makedirs(harness.RESULTS, exist_ok=True)
    rival = Rival()
    rival.ready().guest.stop()
    rival.keep()
    return 0


if __name__ == "__main__":
    sys.exit(main())
