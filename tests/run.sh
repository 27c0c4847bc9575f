#!/bin/sh
# Installs what is missing, builds, and runs all tests. On a fresh Debian 12:
#
#   sh tests/run.sh                 the release build and every test this machine can run
#   sh tests/run.sh --sanitizers    before that, the unit tests under ASan+UBSan and under TSan
#   sh tests/run.sh -L unit         any further arguments go to ctest
#
# Ends with ctest's summary; fails with it, or for a skip that tests/skips.txt does not allow.
set -eu
cd "$(dirname "$0")/.."
. tests/packages.sh

sanitizers=${CI:-}
if [ "${1:-}" = --sanitizers ]; then
  sanitizers=true
  shift
fi

say() { printf '== %s\n' "$*" >&2; }

install_packages $BUILD_PACKAGES $TEST_PACKAGES

# build PRESET [TARGET...]
build() {
  preset=$1
  shift
  say "build: $preset"
  cmake --preset "$preset" >/dev/null
  cmake --build --preset "$preset" ${1:+--target "$@"}
}

# sanitize PRESET LEFT_OUT TARGET...: the unit tests of these programs, without those whose names match.
sanitize() {
  preset=$1 left_out=$2
  shift 2
  build "$preset" "$@"
  say "unit tests: $preset"
  ctest --preset "$preset" -j2 -E "_NOT_BUILT|$left_out"
}

if [ -n "$sanitizers" ]; then
  # What reads hostile bytes, and what several threads touch.
  sanitize asan '^$' base_tests memory_tests boot_tests devices_tests virtio_tests blockdev_tests \
    snapshot_tests
  # The crash replays and the faults run on one thread, for a long time.
  sanitize tsan '/(Crashes|Faults)\.|RandomSchedules' memory_tests devices_tests virtio_tests blockdev_tests
fi

build release
# Some unit tests read Debian's kernels; the nested tests would fetch them too late for those.
[ "$(id -u)" != 0 ] || sh guests/kernels.sh || true
say "tests"
status=0
# A stock guest in an emulated machine, or a race that a test hopes to win, may need a second try.
ctest --preset release -j2 --repeat until-pass:2 "$@" || status=$?
# A test that skips for a reason nobody has agreed to has failed. Silent when all is well.
python3 tests/traps_test.py build/release build/release/Testing/Temporary/LastTest.log || status=1
exit $status
