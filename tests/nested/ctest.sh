#!/bin/sh
# One group of nested scenarios as one test: one outer machine is booted for all of the group.
#
#   ctest.sh images|boot|snapshot|persist|faults|bench [QUICKSAVE]
#
# QUICKSAVE defaults to build/release/quicksave (faults: quicksave-faulty). NESTED_VMM=qemu runs the scenarios against QEMU instead, which shows that
# a scenario is right before it judges quicksave. Status 77: skipped, the reason is the last line.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
project=$(dirname -- "$(dirname -- "$here")")
group=${1:?usage: ctest.sh images|boot|snapshot|persist|faults|bench [QUICKSAVE]}
program=quicksave
[ "$group" != faults ] || program=quicksave-faulty
binary=${2:-$project/build/release/$program}

skip() {
  echo "skipped: $*"
  exit 77
}
for tool in qemu-system-x86_64 mmdebstrap mke2fs debugfs depmod cpio; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null 2>&1 || skip "no $tool on this machine"
done
[ "$(id -u)" = 0 ] || [ -f "${QUICKSAVE_GUEST_CACHE:-$project/build/guests}/outer/.key" ] ||
  skip "building the guests' images needs root"

[ "$group" != images ] || exec sh "$project/guests/nested/outer.sh"

set -- -t "${NESTED_SECONDS:-1400}" -o "$project/build/nested/$group"
if [ "${NESTED_VMM:-quicksave}" = quicksave ]; then
  [ -x "$binary" ] || skip "no program at $binary"
  set -- "$@" -b "$binary"
fi
case $group in
boot | snapshot | persist | faults) script=$here/$group.py ;;
bench) script=$here/bench_revert.py ;;
*) echo "unknown group: $group" >&2; exit 2 ;;
esac
rm -rf "$project/build/nested/$group"
status=0
sh "$project/guests/nested/run.sh" "$@" "$script" || status=$?
# What needs no emulated machine is judged outside of it, where it takes no minutes.
case $group in
snapshot) judge=check_disk.py ;;
persist) judge=check_persist.py ;;
*) judge='' ;;
esac
if [ -n "$judge" ] && [ -d "$project/build/nested/$group/disk" ]; then
  PYTHONDONTWRITEBYTECODE=1 python3 "$here/$judge" "$project/build/nested/$group" "${QUICKSAVE_GUEST_CACHE:-$project/build/guests}/debian/debian.qcow2" || status=1
fi
exit "$status"
