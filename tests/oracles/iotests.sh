#!/bin/bash
# Runs those of QEMU's own iotests that drive an image over NBD, with our engine as the server:
#
#   tests/oracles/iotests.sh QEMU_SOURCE_TREE [NUMBER...]
#
# Fetches nothing and leaves the tree as it is; QEMU 7.2 is the version the list was made for. In the
# tests' nbd mode only the server touches the qcow2 image, and iotests_nbd.sh, which takes qemu-nbd's
# place, makes `quicksave image serve --mode persist` that server. Whenever a server ends, qemu-img
# check looks at what it leaves. $QUICKSAVE names the program, by default build/release/quicksave.
#
# Prints a table; fails if a test or a check failed. $KEEP names a directory for the logs of what failed.
# Takes about three minutes.
set -u

here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '2,4s/^# \?//p' "$0" >&2; exit 2; }
tree=$(cd "$1" 2>/dev/null && pwd) && [ -x "$tree/tests/qemu-iotests/check" ] || {
  echo "error: \"$1\" is no QEMU source tree: tests/qemu-iotests/check is missing" >&2
  exit 1
}
shift
export QUICKSAVE=${QUICKSAVE:-$here/../../build/release/quicksave}
[ -x "$QUICKSAVE" ] || { echo "error: $QUICKSAVE is not built" >&2; exit 1; }
for program in qemu-img qemu-io qemu-nbd nbdkit python3; do
  command -v $program >/dev/null || { echo "error: $program is not installed" >&2; exit 1; }
done

# Generic or qcow2, over NBD, without an emulator. Not among them: 015, 022, 029, 062 and 066, which
# make internal snapshots (such images are only read here); 073, which writes a backing file while it
# is served (refused, by the lock); 114, which changes the header behind the server's back.
numbers=${*:-001 002 003 004 005 008 009 010 011 017 021 027 032 033 035 047 104 105}

work=$(mktemp -d /var/tmp/quicksave-iotests-XXXXXX)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/tests" "$work/images" "$work/sockets" "$work/home"
cp -r "$tree/tests/qemu-iotests" "$work/tests/"
# What the tests' nbd mode does not know: backing files are files beside the image that is served.
sed -i '/^_test_img_to_test_img_file()/,/^}/ s|^        ssh)|        nbd)\
            echo "${1/#*socket=$SOCK_DIR\\/nbd/$TEST_DIR/t.$IMGFMT}"\
            ;;\
        ssh)|' "$work/tests/qemu-iotests/common.rc"
for name in python scripts; do ln -s "$tree/$name" "$work/$name"; done
export TEST_DIR=$work/images SOCK_DIR=$work/sockets QUICKSAVE_HOME=$work/home
for name in qemu-io qemu-img; do ln -s "$here/iotests_tool.sh" "$work/$name"; done
export QEMU_PROG=/bin/true QSD_PROG=/bin/true QEMU_NBD_PROG=$here/iotests_nbd.sh
export QEMU_IO_PROG=$work/qemu-io QEMU_IMG_PROG=$work/qemu-img
export IOTESTS_CHECKS=$work/checks

failed=0
printf '%-6s %-8s %-22s %s\n' test result 'qemu-img check' remark
for number in $numbers; do
  : >"$IOTESTS_CHECKS"
  (cd "$work/tests/qemu-iotests" && timeout 120 ./check -qcow2 -nbd "$number") \
    >"$work/log" 2>&1 </dev/null
  flock "$TEST_DIR/nbd.lock" true  # until the last server has ended
  remark=
  if grep -q '^Passed all 1' "$work/log"; then
    result=pass
  elif grep -q '^Not run:' "$work/log"; then
    result=notrun
    remark=$(sed -n "s/^$number  *not run.*\] *//p" "$work/log" | head -n 1)
  else
    result=FAIL
    remark=$(grep -m 1 '^[+-][^+-]' "$work/log")
    failed=1
    [ -z "${KEEP:-}" ] || cp "$work/log" "$KEEP/iotests-$number.log"
  fi
  bad=$(grep -cv '^0 ' "$IOTESTS_CHECKS")
  checks="$(grep -c '^0 ' "$IOTESTS_CHECKS") clean"
  if [ "$bad" != 0 ]; then
    checks="$checks, $bad BAD"
    remark="$remark [$(grep -v -m 1 '^0 ' "$IOTESTS_CHECKS")]"
    failed=1
  fi
  printf '%-6s %-8s %-22s %s\n' "$number" "$result" "$checks" "$remark"
done
exit $failed
