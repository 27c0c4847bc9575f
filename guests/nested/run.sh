#!/bin/sh
# Runs a script inside the outer machine (stock Debian on an emulated AMD processor with SVM).
#
#   run.sh [-t SECONDS] [-b QUICKSAVE] [-p FILE|DIR]... [-o DIR] [-m MIB] SCRIPT [ARG...]
#
#   -t   the whole run may take this long (default 600)
#   -b   the quicksave binary to take along (static); it is /payload/bin/quicksave inside, and in PATH
#   -p   a file or directory to take along, as /payload/NAME
#   -o   what the script leaves in /payload/results is copied here when the machine is off
#   -m   memory of the outer machine in MiB (default 3072)
#
# QUICKSAVE_OUTER_CPUS=2 gives it two processors (see below), QUICKSAVE_OUTER_APPEND more words for its kernel. Variables named
# NESTED_* are passed on. SCRIPT is a file on this side; it and the other files of its directory are at /payload/NAME inside.
# Its standard output and error appear on standard output while it runs; progress of the machine itself on standard error.
# The exit status is the script's own. 124: time was up. 125: the machine failed (no boot, kernel panic, ended without a status). 77: this host lacks what it takes.
set -eu
QS_GUESTS_DIR=$0 . "$(dirname -- "$0")/../lib.sh"
seconds=600 binary='' results='' memory=3072 extra=''
while getopts t:b:p:o:m: option; do
  case $option in
  t) seconds=$OPTARG ;;
  b) binary=$OPTARG ;;
  p) extra="$extra
$OPTARG" ;;
  o) results=$OPTARG ;;
  m) memory=$OPTARG ;;
  *) exit 125 ;;
  esac
done
shift $((OPTIND - 1))
script=${1:?usage: run.sh [-t SECONDS] [-b QUICKSAVE] [-p FILE]... [-o DIR] SCRIPT [ARG...]}
shift
[ -f "$script" ] || { say "error: no such script: $script"; exit 125; }
[ -z "$binary" ] || [ -x "$binary" ] || { say "error: no such program: $binary"; exit 125; }
for tool in qemu-system-x86_64 mke2fs debugfs; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null 2>&1 || {
    say "skipped: no $tool on this machine (apt-get install $guest_packages)"
    exit 77
  }
done
outer=$guest_cache/outer
# Whoever runs several machines one after the other checks the images once.
[ -n "${QUICKSAVE_GUESTS_READY:-}" ] && [ -f "$outer/.key" ] || sh "$guests_dir/nested/outer.sh" || exit 125

# quote WORD...: the words so that a shell reads them back.
quote() { for word in "$@"; do printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")"; done; }

run=$(mktemp -d "${TMPDIR:-/var/tmp}/quicksave-nested.XXXXXX")
machine=''
cleanup() {
  [ -z "$machine" ] || kill -KILL "$machine" 2>/dev/null || true
  rm -rf "$run"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

mkdir -p "$run/payload/bin" "$run/payload/results"
cp -L "$(dirname -- "$script")"/* "$run/payload/" 2>/dev/null || true
[ -z "$binary" ] || cp -L "$binary" "$run/payload/bin/quicksave"
printf '%s\n' "$extra" | while read -r item; do [ -z "$item" ] || cp -RL "$item" "$run/payload/"; done
{
  echo 'export PATH=/payload/bin:$PATH'
  echo 'export QUICKSAVE_HOME=/payload/home PYTHONDONTWRITEBYTECODE=1'
  env | sed -n 's/^\(NESTED_[A-Z_]*\)=.*/\1/p' | while read -r name; do
    eval "value=\$$name"
    printf 'export %s=%s\n' "$name" "$(quote "$value")"
  done
  printf 'exec %s\n' "$(quote "/payload/$(basename -- "$script")" "$@")"
} >"$run/payload/command"
chmod +x "$run/payload/$(basename -- "$script")"
/sbin/mke2fs -q -t ext4 -d "$run/payload" -N 16384 -m 0 "$run/payload.ext4" 12G 2>"$run/mke2fs" >&2 ||
  { cat "$run/mke2fs" >&2; exit 125; }
rm -rf "$run/payload"

mkfifo "$run/console"
: >"$run/protocol"
started=$(date +%s.%N)
# cache=unsafe: what a test calls durable is about the emulated machine's view; the host need not pay for it.
# No KVM of the host is involved.
# Without 5-level paging a nested page walk is 24 steps instead of 35; a write of PKRU flushes TCG's whole TLB.
# TCG runs `rep movsb` byte by byte: nobody shall take it for the fast way to copy.
# One processor: guests have as many as they like, and two such machines side by side use two cores better than one machine
# with two. nohz=off highres=off: QEMU 7.2 changes interrupt_request around vmrun and vmexit without its lock; should an interrupt
# be lost there, the next tick brings it back. Who stops QEMU (SIGSTOP) for 20 s sees soft lockups: its clock goes on.
TMPDIR=$run qemu-system-x86_64 -name quicksave-outer -machine q35,vmport=off -accel tcg,tb-size=512 -cpu "${QUICKSAVE_OUTER_CPU:-max,+svm,-la57,-pku,-pks,-erms,-fsrm}" \
  -smp "${QUICKSAVE_OUTER_CPUS:-1}" -m "$memory" -nodefaults -display none -no-reboot \
  -kernel "$outer/vmlinuz" -initrd "$outer/initrd.img" \
  -append "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nokaslr tsc=reliable audit=0 transparent_hugepage=always nohz=off highres=off ${QUICKSAVE_OUTER_APPEND:-}" \
  -drive "file=$outer/root.ext4,format=raw,if=virtio,snapshot=on,cache=unsafe" \
  -drive "file=$outer/guests.ext4,format=raw,if=virtio,readonly=on,cache=unsafe" \
  -drive "file=$run/payload.ext4,format=raw,if=virtio,cache=unsafe" \
  -device virtio-rng-pci \
  -chardev "file,id=console,path=$run/console" -serial chardev:console \
  -chardev "file,id=protocol,path=$run/protocol" -serial chardev:protocol \
  -monitor "unix:$run/monitor,server=on,wait=off" </dev/null 2>"$run/qemu-errors" &
machine=$!
# tee keeps the console for the diagnosis and passes it on as it comes.
tee "$run/console.log" <"$run/console" &
reader=$!

timed_out='' used='' clock_ticks=$(getconf CLK_TCK)
deadline=$(($(date +%s) + seconds))
while kill -0 "$machine" 2>/dev/null; do
  ticks=$(cut -d' ' -f14,15 "/proc/$machine/stat" 2>/dev/null) && used=$(((${ticks% *} + ${ticks#* }) / clock_ticks))
  [ "$(date +%s)" -lt "$deadline" ] || { timed_out=yes; break; }
  # After a panic the machine reboots at once and -no-reboot ends it; one that hangs in a panic ends here.
  if grep -aq 'end Kernel panic' "$run/console.log" 2>/dev/null; then sleep 1; break; fi
  sleep 0.5
done
if [ -n "$timed_out" ] && [ -n "$results" ]; then
  # Where it stands, for whoever has to find out why.
  mkdir -p "$results"
  { grep State: "/proc/$machine/status"; printf 'info registers -a\ninfo lapic\n' | timeout 5 socat -t 2 - "unix-connect:$run/monitor" |
    tr -d '\r' | grep -av '(qemu)'; } >"$results/outer-state" 2>&1 || true
fi
kill -KILL "$machine" 2>/dev/null || true
wait "$machine" 2>/dev/null || true
machine=''
wait "$reader" || true
took=$(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
status=$(sed -n 's/^NESTED-EXIT \([0-9]*\)\r*$/\1/p' "$run/protocol" | tail -n 1)
booted=$(sed -n 's/^NESTED-BOOT \([0-9.]*\)\r*$/\1/p' "$run/protocol" | tail -n 1)

if [ -n "$results" ]; then
  mkdir -p "$results"
  debugfs -R "rdump /results $run" "$run/payload.ext4" >/dev/null 2>&1 || true
  cp -R "$run/results/." "$results/" 2>/dev/null || true
  cp "$run/console.log" "$results/outer-console.log"
fi
if [ -n "$status" ]; then
  say "the machine ran ${took} s, ${used:-?} s on a processor (booted in ${booted:-?} s); $(basename -- "$script") returned $status"
  exit "$status"
fi
if [ -n "$timed_out" ]; then
  say "error: time was up after $seconds s (booted: ${booted:-no}); last lines of its console:"
  tail -n 15 "$run/console.log" >&2
  exit 124
fi
if grep -aq 'Kernel panic' "$run/console.log"; then
  say "error: the outer machine's kernel panicked after $took s:"
  grep -a -A 12 'Kernel panic' "$run/console.log" | head -n 20 >&2
else
  say "error: the outer machine ended after $took s without a status (booted: ${booted:-no}):"
  cat "$run/qemu-errors" >&2
  tail -n 15 "$run/console.log" >&2
fi
exit 125
