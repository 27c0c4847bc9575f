# The Debian 12 packages that building, testing and the demonstration need, and how they get here.
# Sourced by tests/run.sh and guests/demo.sh.

# The program and its unit tests.
BUILD_PACKAGES="g++ cmake ninja-build pkg-config acpica-tools liburing-dev nlohmann-json3-dev
  libcli11-dev libfmt-dev libexpected-dev zlib1g-dev libzstd-dev libxxhash-dev libboost-dev
  libgtest-dev libgmock-dev nbdkit-plugin-dev"
# Judges and peers: qemu-img, qemu-io, QEMU itself; NBD clients for our images; stock guests.
TEST_PACKAGES="python3-minimal qemu-utils qemu-system-x86 nbdkit libnbd-bin fio e2fsprogs mmdebstrap
  busybox-static cpio socat kmod"

# install_packages NAME...: installs those that are missing, with apt-get's output in a log.
install_packages() {
  missing=
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
      missing="$missing $package"
  done
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" != 0 ]; then
    printf 'error: these packages are missing:%s\nhint: sudo apt-get install%s\n' \
      "$missing" "$missing" >&2
    exit 1
  fi
  printf '== install:%s\n' "$missing" >&2
  log=$(mktemp)
  if ! { apt-get update && DEBIAN_FRONTEND=noninteractive \
           apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    printf 'error: apt-get could not install them; its whole output is in %s\n' "$log" >&2
    exit 1
  fi
  rm -f "$log"
}
