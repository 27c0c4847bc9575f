#!/usr/bin/env python3
"""Checks the table of traps and the reasons for skips.

    tests/traps_test.py BUILD_DIRECTORY [LOG]

Fails when a trap of tests/traps.md is missing, doubled, or has neither a test nor a reason; when a
test named there is unknown to `ctest -N` in BUILD_DIRECTORY; when the source skips a test for a
reason that tests/skips.txt does not list; and, with the LOG of a run (ctest -V, or
Testing/Temporary/LastTest.log), when a test of that run did.
"""

import fnmatch
import os
import re
import subprocess
import sys

TESTS = os.path.dirname(os.path.abspath(__file__))
COUNTS = {"A": 20, "B": 26, "C": 34}
REASONS = ("Does not apply: ", "Not yet: ")
ROW = re.compile(r"^\| ([A-Z]\d+) \| (.+) \| (.+) \|$")
SKIP_IN_SOURCE = re.compile(r'GTEST_SKIP\(\) << "([^"]*)"')
SKIPPED_IN_LOG = re.compile(r"^(?:.*: )?.*:\d+: Skipped$|^Skipped$")


def plain_name(name):
    """Suite.Test of a parameterised `Prefix/Suite.Test/Value  # GetParam() = ...`."""
    name = name.split("  #")[0].strip()
    suite, _, test = name.partition(".")
    return suite.split("/")[-1] + "." + test.split("/")[0]


def known_tests(build):
    listing = subprocess.run(["ctest", "-N"], cwd=build, check=True, capture_output=True, text=True)
    return {plain_name(match) for match in re.findall(r"Test +#\d+: (.+)", listing.stdout)}


def table_errors(table, known):
    rows = {}
    for line in table.splitlines():
        match = ROW.match(line)
        if not match:
            continue
        trap, _, tests = match.groups()
        if trap in rows:
            yield f"{trap}: stands twice"
        rows[trap] = tests
        names = re.findall(r"`([^`]+)`", tests)
        if not names and not tests.startswith(REASONS):
            yield f"{trap}: neither a test nor a reason"
        for name in names:
            if name not in known:
                yield f"{trap}: no such test: {name}"
    for section, count in COUNTS.items():
        for number in range(1, count + 1):
            if f"{section}{number}" not in rows:
                yield f"{section}{number}: missing"


def allowed_skips():
    with open(os.path.join(TESTS, "skips.txt"), encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file if line.strip() and not line.startswith("#")]


def is_allowed(reason, allowed):
    return any(fnmatch.fnmatchcase(reason, pattern) for pattern in allowed)


def source_skip_errors(allowed):
    for folder, _, files in os.walk(TESTS):
        for name in files:
            if not name.endswith((".cc", ".h")):
                continue
            path = os.path.join(folder, name)
            with open(path, encoding="utf-8") as file:
                for reason in SKIP_IN_SOURCE.findall(file.read()):
                    # A literal that goes on with a value is matched by its beginning.
                    if not is_allowed(reason, allowed) and not any(
                            pattern.endswith("*") and reason.startswith(pattern[:-1])
                            for pattern in allowed):
                        yield f"{os.path.relpath(path, TESTS)}: skip not listed: {reason}"


def log_skip_errors(log, allowed):
    lines = [re.sub(r"^\d+: ", "", line.rstrip("\n")) for line in log]
    for line, following in zip(lines, lines[1:]):
        if SKIPPED_IN_LOG.match(line) and not is_allowed(following, allowed):
            yield f"skipped in the log for a reason not listed: {following}"


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with open(os.path.join(TESTS, "traps.md"), encoding="utf-8") as file:
        errors = list(table_errors(file.read(), known_tests(sys.argv[1])))
    allowed = allowed_skips()
    errors += source_skip_errors(allowed)
    if len(sys.argv) == 3:
        with open(sys.argv[2], encoding="utf-8", errors="replace") as log:
            errors += log_skip_errors(log, allowed)
    for error in errors:
        print(error)
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
