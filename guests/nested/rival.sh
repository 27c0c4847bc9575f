#!/bin/sh
# What the demonstration races against: QEMU with the same guest, booted and at its snapshot. It is made in an outer machine
# of its own, while the compiler runs, and kept beside that machine's images (rival.qcow2, rival.json), with which it goes.
#
#   rival.sh
set -eu
QS_GUESTS_DIR=$0 . "$(dirname -- "$0")/../lib.sh"
sh "$guests_dir/nested/outer.sh"
outer=$guest_cache/outer
if [ -f "$outer/rival.json" ]; then
  say "up to date: $outer/rival.qcow2"
  exit 0
fi
say "booting QEMU's guest for the race"
made=$(mktemp -d "${TMPDIR:-/var/tmp}/quicksave-rival.XXXXXX")
trap 'rm -rf "$made"' EXIT
QUICKSAVE_GUESTS_READY=yes sh "$guests_dir/nested/run.sh" -t 900 -o "$made" "$project_dir/tests/nested/race.py" prepare
mv "$made/rival.qcow2" "$outer/"
mv "$made/rival.json" "$outer/"
