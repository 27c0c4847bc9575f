#!/usr/bin/env python3
"""Checks who includes whom: includes point downwards only.

    tests/includes_test.py [ROOT]

Prints one line for each include that breaks a rule, and fails if there is one.
"""

import os
import re
import sys

# Folder -> what it may include of ours besides itself. A single header may stand for a folder.
ALLOWED = {
    "vmm/base": [],
    "vmm/memory": ["vmm/base"],
    "vmm/kvm": ["vmm/base", "vmm/memory"],
    "vmm/boot": ["vmm/base", "vmm/memory", "vmm/kvm"],
    "blockdev": ["vmm/base"],
    "devices": ["vmm/base", "vmm/memory", "blockdev/block_backend.h"],
    "snapshot": ["vmm/base", "vmm/memory", "blockdev"],
    "vmm/control": ["vmm/base", "snapshot", "blockdev/disk_spec.h"],
    "vmm/bench": ["vmm/base", "vmm/kvm", "vmm/control", "blockdev"],
    "vmm/image": ["vmm/base", "vmm/control", "blockdev", "snapshot"],
    "vmm": ["vmm/base", "vmm/memory", "vmm/kvm", "vmm/boot", "vmm/control", "vmm/bench",
            "vmm/image", "blockdev", "devices", "snapshot"],
}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def folder_of(path):
    """The folder of the table that a file belongs to: the longest that is a prefix."""
    matches = [f for f in ALLOWED if path.startswith(f + "/")]
    return max(matches, key=len) if matches else None


def is_allowed(folder, included):
    if included.startswith("generated/"):
        return True
    target = folder_of(included)
    return target == folder or target in ALLOWED[folder] or included in ALLOWED[folder]


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..")
    wrong = 0
    for folder in ("vmm", "devices", "blockdev", "snapshot"):
        for directory, _, names in os.walk(os.path.join(root, folder)):
            for name in sorted(names):
                if not name.endswith((".h", ".cc")):
                    continue
                path = os.path.relpath(os.path.join(directory, name), root)
                with open(os.path.join(root, path), encoding="utf-8") as file:
                    for number, line in enumerate(file, 1):
                        match = INCLUDE.match(line)
                        if match and not is_allowed(folder_of(path), match.group(1)):
                            print(f"{path}:{number}: may not include {match.group(1)}")
                            wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
