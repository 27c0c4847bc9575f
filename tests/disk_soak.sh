#!/bin/sh
# The disk engine's random tests for hours instead of seconds: the three-way differential, the crash
# replay, the schedules and the killed writer, each for its share of the time, from seeds of their own.
#
#   sh tests/disk_soak.sh [SECONDS [SEED]]     3600 seconds from a seed of the clock
#
# Needs the release build and qemu-storage-daemon. The seed is printed; give it to see a run again.
set -euf
cd "$(dirname "$0")/.."

seconds=${1:-3600}
seed=${2:-$(date +%s)}
tests=$(build/release/tests/blockdev_tests --gtest_list_tests \
  --gtest_filter='*DifferentialFuzz.*:*Crashes.*:DurableSchedule.RandomSchedules*:DurableKill.*' |
  awk '/^[^ ]/ { suite = $1; next } { print suite $1 }')

count=$(printf '%s\n' "$tests" | wc -l)
export QUICKSAVE_SOAK_SECONDS=$((seconds / count)) QUICKSAVE_SOAK_SEED="$seed"
echo "== seed $seed, $QUICKSAVE_SOAK_SECONDS seconds for each of $count tests" >&2
for test in $tests; do
  build/release/tests/blockdev_tests --gtest_brief=1 --gtest_filter="$test"
done
