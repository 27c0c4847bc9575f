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
fuzzers=${*:-kernel_fuzz qcow2_fuzz durable_fuzz virtio_fuzz}

install_packages $BUILD_PACKAGES qemu-utils clang-16 libclang-rt-16-dev
cmake --preset fuzz >/dev/null
cmake --build --preset fuzz --target $fuzzers

corpus=$PWD/build/fuzz/corpus
found=$PWD/build/fuzz/found
mkdir -p "$found"
for fuzzer in $fuzzers; do mkdir -p "$corpus/$fuzzer"; done

# Small images of every kind that qemu-img makes, for the reader; and for the writer, with room for
# its requests (the last 64 bytes of an input), the same whole and with a damaged table.
make_seeds() {
  seed=$corpus/$1
  for options in compat=0.10 compat=1.1 cluster_size=512 cluster_size=4096,extended_l2=off \
    extended_l2=on,cluster_size=16384 compression_type=zstd refcount_bits=1,cluster_size=512 \
    refcount_bits=64,cluster_size=4096 lazy_refcounts=on; do
    [ ! -e "$seed/$options" ] || continue
    qemu-img create -q -f qcow2 -o "$options" "$seed/$options" 1M
    qemu-io -f qcow2 -c 'write -P 1 64k 8k' -c 'write -z 256k 64k' -c 'discard 128k 4k' \
      "$seed/$options" >/dev/null
  done
}
add_requests() {
  seed=$corpus/durable_fuzz
  for image in "$seed"/*=*; do
    [ ! -e "$seed/damaged-${image##*/}" ] || continue
    printf '\0\1\7\20\3\0\0\0\4\2\10\77\5\1\0\100\2\3\4\10\3\0\0\0\201\0\0\377\0\0\3\5' >>"$image"
    printf '\0\7\0\20\3\0\0\0\4\0\10\77\205\1\0\100\2\3\4\10\0\4\0\40\3\0\0\377\0\0\3\5' >>"$image"
    cp "$image" "$seed/damaged-${image##*/}"
    # The first entry of what the header calls the L1 table.
    at=$(od -An -tu1 -j40 -N8 "$image" | awk '{ n = 0; for (i = 1; i <= 8; ++i) n = n * 256 + $i; print n }')
    printf '\200\0\0\0\0\0\2\0' | dd of="$seed/damaged-${image##*/}" bs=1 seek="$at" conv=notrunc status=none
  done
}
case " $fuzzers " in *" qcow2_fuzz "*) make_seeds qcow2_fuzz ;; esac
case " $fuzzers " in *" durable_fuzz "*) make_seeds durable_fuzz; add_requests ;; esac

status=0
for fuzzer in $fuzzers; do
  printf '== %s, %s s\n' "$fuzzer" "$seconds" >&2
  "build/fuzz/tests/$fuzzer" -max_total_time="$seconds" -max_len=262144 -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 \
    -artifact_prefix="$found/$fuzzer-" "$corpus/$fuzzer" >"build/fuzz/$fuzzer.log" 2>&1 || status=1
  grep -E '^stat::(number_of_executed_units|peak_rss_mb)|SUMMARY' "build/fuzz/$fuzzer.log" || true
done
[ "$status" = 0 ] || printf 'error: inputs that fail are in %s\n' "$found" >&2
exit "$status"
