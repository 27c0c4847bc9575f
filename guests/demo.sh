#!/bin/sh
# The demonstration: on a fresh Debian 12, as root, without questions:  sh guests/demo.sh
#
# Installs what is missing, builds the program and the guest, then runs the main job on a stock Debian guest with an
# ext4 disk: snapshot, destruction, revert in place, restore as a second VM, and the race against QEMU's loadvm.
# Where this host's KVM runs stock Linux, directly on it; elsewhere inside a machine that QEMU emulates, AMD
# virtualisation included (guests/nested). Last, the speed of this host itself.
set -eu
. "$(dirname -- "$0")/lib.sh"
. "$project_dir/tests/packages.sh"
cd "$project_dir"
program=$project_dir/build/release/quicksave
logs=$project_dir/build/demo
# Nothing of the user's is touched, nor needed.
export QUICKSAVE_HOME=$logs/home
started=$(date +%s)
mkdir -p "$logs"

if [ -t 1 ]; then NESTED_COLOUR=yes bold=$(printf '\033[1m') plain=$(printf '\033[0m'); else NESTED_COLOUR=no bold='' plain=''; fi
export NESTED_COLOUR
step() { printf '\n%s== %s%s  (%s s)\n' "$bold" "$*" "$plain" "$(($(date +%s) - started))"; }

step "What this needs from Debian's packages"
install_packages $BUILD_PACKAGES $TEST_PACKAGES
echo "   all there"

# The guest's images are made while the compiler runs. Which ones depends on the host; the program itself has the last word below.
if [ -e /dev/kvm ] && grep -qwE 'svm|vmx' /proc/cpuinfo; then images=$guests_dir/debian.sh; else images=$guests_dir/nested/rival.sh; fi
# Groups of their own, so that an interrupted demonstration ends what they have started, too.
setsid sh "$images" >"$logs/images.log" 2>&1 &
builder=$! racer=
trap 'kill -- "-$builder" ${racer:+"-$racer"} 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM HUP

step "Building Quicksave (and, behind it, a stock Debian guest)"
cmake --preset release >"$logs/cmake.log" || { cat "$logs/cmake.log"; exit 1; }
cmake --build --preset release --target quicksave
"$program" --version

# wait_for_images: shows each new line of the builder's log.
wait_for_images() {
  shown=0
  while :; do
    lines=$(wc -l <"$logs/images.log")
    [ "$lines" -le "$shown" ] || { sed -n "$((shown + 1)),${lines}p" "$logs/images.log" | sed 's/^/   /'; shown=$lines; }
    kill -0 "$builder" 2>/dev/null || break
    sleep 1
  done
  wait "$builder" || die "the guest's images could not be made; the whole log is $logs/images.log"
}
step "The guest: Debian 12 from Debian's archive, with Debian's kernel and initrd"
wait_for_images

step "What this host offers"
"$program" doctor || true
if "$program" doctor | grep -qE '^ok +KVM +(AMD-V|Intel VT-x)'; then
  echo "Its KVM runs stock Linux: what follows runs directly on it."
  sh "$guests_dir/debian.sh"
  run() { # run SCRIPT: with a home and a work directory that nothing was left in
    rm -rf "$logs/work" "$logs/home"
    env PATH="$(dirname -- "$program"):$PATH" NESTED_GUESTS="$guest_cache/debian" NESTED_WORK="$logs/work" \
      NESTED_RESULTS="$logs/work" NESTED_PATIENCE=1 PYTHONDONTWRITEBYTECODE=1 python3 "tests/nested/$1.py"
  }
  status=0
  run demo && run race || status=$?
  rm -rf "$logs/work" "$logs/home"
else
  echo "Its KVM does not run stock Linux to the end (or there is none), so what follows runs inside machines that QEMU emulates,"
  echo "AMD virtualisation included: right in every detail, and some hundred times slower than a real one. Compare ratios, not times."
  echo "The story is told in one of them; the race of part 7 is run in another at the same time."
  sh "$guests_dir/nested/rival.sh" 2>&1 | sed 's/^/   /'
  export QUICKSAVE_GUESTS_READY=yes
  rival=$guest_cache/outer/rival
  rm -rf "$logs/results"
  setsid sh "$guests_dir/nested/run.sh" -t 1200 -b "$program" -p "$rival.qcow2" -p "$rival.json" -o "$logs/results" \
    tests/nested/race.py >"$logs/race.log" 2>&1 &
  racer=$!
  status=0
  sh "$guests_dir/nested/run.sh" -t 1200 -b "$program" tests/nested/demo.py || status=$?
  if [ "$status" = 0 ]; then
    wait "$racer" || status=$?
    cat "$logs/race.log"
    [ "$status" != 0 ] || mv "$logs/results/rival.qcow2" "$logs/results/rival.json" "$guest_cache/outer/"
  fi
fi
[ "$status" = 0 ] || die "the demonstration failed (status $status)"

if [ -r /dev/kvm ] && [ -w /dev/kvm ]; then
  step "The speed of this host itself, with small guests: quicksave bench revert --quick"
  "$program" bench revert --quick || echo "   (no table: the benchmark returned $?)"
else
  step "No speed table: /dev/kvm cannot be used here (quicksave doctor says why)"
fi
step "Done"
