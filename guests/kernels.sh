#!/bin/sh
# Stock Debian kernels, taken from their packages without installing them.
#
#   kernels.sh [OUTDIR]    OUTDIR/vmlinuz-cloud  OUTDIR/vmlinuz-generic
#                          OUTDIR/tree-cloud/    OUTDIR/tree-generic/    (lib/modules/VERSION, with modules.dep)
#                          OUTDIR/version-cloud  OUTDIR/version-generic
#                          OUTDIR/busybox        (the static one)
#
# The meta packages linux-image-cloud-amd64 and linux-image-amd64 name the exact package; only that one is asked for.
set -eu
. "$(dirname -- "$0")/lib.sh"
out=${1:-$guest_cache/kernels}
need apt-get dpkg depmod flock
with_lock kernels

cloud=$(depends_of linux-image-cloud-amd64)
generic=$(depends_of linux-image-amd64)
[ -n "$cloud" ] && [ -n "$generic" ] || die "apt knows no stock kernel: check that main and security are in its sources"
key=$(key_of "$0" "$cloud=$(version_of "$cloud")" "$generic=$(version_of "$generic")" \
  "busybox-static=$(version_of busybox-static)")
if is_current "$out" "$key"; then
  say "up to date: $out"
  exit 0
fi

begin "$out"
# unpack KIND PACKAGE
unpack() {
  deb=$(fetch "$2")
  say "unpacking $2"
  mkdir "$work/tree-$1"
  dpkg -x "$deb" "$work/tree-$1"
  version=${2#linux-image-}
  mv "$work/tree-$1/boot/vmlinuz-$version" "$work/vmlinuz-$1"
  printf '%s\n' "$version" >"$work/version-$1"
  /sbin/depmod -b "$work/tree-$1" "$version"
}
unpack cloud "$cloud"
unpack generic "$generic"
deb=$(fetch busybox-static)
mkdir "$work/busybox-tree"
dpkg -x "$deb" "$work/busybox-tree"
mv "$work/busybox-tree/bin/busybox" "$work/busybox"
rm -r "$work/busybox-tree"
finish "$out" "$key"
say "made $out ($cloud, $generic)"
