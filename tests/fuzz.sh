#!/bin/sh
# Runs each fuzzer for a while. Needs clang 16, which it installs with what else is missing.
#
#   sh tests/fuzz.sh [SECONDS [FUZZER...]]      default: 60 seconds each of all
#
# Inputs that were found worth keeping are in build/fuzz/corpus, those that failed in build/fuzz/found. Fails if one does.
set -eu
cd "$(dirname "$0")/.."
. tests/packages.sh
seconds=${1:-60}
[ $# = 0 ] || shift
fuzzers=${*:-kernel_fuzz qcow2_fuzz virtio_fuzz}

install_packages $BUILD_PACKAGES qemu-utils clang-16 libclang-rt-16-dev
cmake --preset fuzz >/dev/null
cmake --build --preset fuzz --target $fuzzers

corpus=$PWD/build/fuzz/corpus
found=$PWD/build/fuzz/found
mkdir -p "$found"
for fuzzer in $fuzzers; do mkdir -p "$corpus/$fuzzer"; done

# Small images of every kind that qemu-img makes.
seed=$corpus/qcow2_fuzz
for options in compat=0.10 compat=1.1 cluster_size=512 cluster_size=4096,extended_l2=off extended_l2=on,cluster_size=16384 \
  compression_type=zstd; do
  [ -e "$seed/$options" ] || {
    qemu-img create -q -f qcow2 -o "$options" "$seed/$options" 1M
    qemu-io -f qcow2 -c 'write -P 1 64k 8k' -c 'write -z 256k 64k' -c 'discard 128k 4k' "$seed/$options" >/dev/null
  }
done

status=0
for fuzzer in $fuzzers; do
  printf '== %s, %s s\n' "$fuzzer" "$seconds" >&2
  "build/fuzz/tests/$fuzzer" -max_total_time="$seconds" -max_len=262144 -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 \
    -artifact_prefix="$found/$fuzzer-" "$corpus/$fuzzer" >"build/fuzz/$fuzzer.log" 2>&1 || status=1
  grep -E '^stat::(number_of_executed_units|peak_rss_mb)|SUMMARY' "build/fuzz/$fuzzer.log" || true
done
[ "$status" = 0 ] || printf 'error: inputs that fail are in %s\n' "$found" >&2
exit "$status"
