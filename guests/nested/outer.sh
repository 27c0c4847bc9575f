#!/bin/sh
# The outer machine of the nested tests: a stock Debian kernel that QEMU runs on an emulated AMD processor with
# SVM, so that its kvm-amd is a real hardware KVM to what runs inside.
#
#   outer.sh [OUTDIR]      OUTDIR/vmlinuz  OUTDIR/initrd.img   stock kernel; busybox that loads modules and goes on to the disk
#                          OUTDIR/root.ext4                     small Debian with QEMU, e2fsprogs, Python: the tools of the tests
#                          OUTDIR/guests.ext4                   the guests' kernels, initrds and disk, read-only at /guests
#
# run.sh boots it. Both disks are shared by all runs and never written (a run's writes go to a temporary file).
set -eu
QS_GUESTS_DIR=$0 . "$(dirname -- "$0")/../lib.sh"
out=${1:-$guest_cache/outer}
kernels=$guest_cache/kernels
need mmdebstrap qemu-system-x86_64 mke2fs cpio flock
[ "$(id -u)" = 0 ] || die "must run as root (the image's files belong to root)"
sh "$guests_dir/kernels.sh"
sh "$guests_dir/debian.sh"
for kind in cloud generic; do sh "$guests_dir/busybox_initrd.sh" "$kind"; done
with_lock outer

root_key=$(key_of "$(text_of bootstrap ext4_image copy_modules)" "$0" "$kernels/.key" "qemu=$(version_of qemu-system-x86)" "$guests_dir/nested/init")
guest_key=$(key_of "$guests_dir/debian.sh" "$guest_cache/debian/.key" "$guest_cache/busybox-cloud.img.key" \
  "$guest_cache/busybox-generic.img.key")
key=$(key_of "$root_key" "$guest_key")
if is_current "$out" "$key"; then
  say "up to date: $out"
  exit 0
fi

begin "$out"
if [ -f "$out/root.ext4" ] && [ "$(cat "$out/root.key")" = "$root_key" ]; then
  # Only the guests changed.
  cp --reflink=auto "$out/vmlinuz" "$out/initrd.img" "$out/root.ext4" "$work/"
else
  version=$(cat "$kernels/version-cloud")
  say "installing the tools (mmdebstrap)"
  bootstrap "$work/root" qemu-system-x86 qemu-utils e2fsprogs procps python3 socat xxd jq strace
  cp "$guests_dir/nested/init" "$work/root/sbin/nested-init"
  chmod 755 "$work/root/sbin/nested-init"
  # Firmware, keymaps and icons for machines nobody emulates here.
  rm -rf "$work/root"/var/lib/apt/lists/* "$work/root"/var/cache/apt/* "$work/root"/usr/share/icons \
    "$work/root"/usr/share/qemu/*aarch64* "$work/root"/usr/share/qemu/*arm* "$work/root"/usr/lib/ipxe "$work/root"/usr/share/qemu/edk2* \
    "$work/root"/etc/apt/sources.list*
  mkdir -p "$work/root/guests" "$work/root/payload"
  ext4_image "$work/root" "$work/root.ext4" 1024 outer-root
  rm -rf --one-file-system "$work/root" "$work/sources.list"

  say "making the initramfs"
  mkdir -p "$work/initrd/bin" "$work/initrd/proc" "$work/initrd/sys" "$work/initrd/dev" "$work/initrd/new"
  cp "$kernels/busybox" "$work/initrd/bin/busybox"
  cp "$kernels/vmlinuz-cloud" "$work/vmlinuz"
  copy_modules "$kernels/tree-cloud" "$version" "$work/initrd/modules" \
    virtio_pci virtio_blk ext4 virtio_rng irqbypass kvm kvm-amd
  cat >"$work/initrd/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
# A halted guest's CPU must not spin: here it would take the time from the one that has work.
parameters() { if [ "$1" = kvm.ko ]; then echo halt_poll_ns=0; fi; }
while read -r module; do /bin/busybox insmod "/modules/$module" $(parameters $module); done </modules/modules.list
/bin/busybox mount -t ext4 -o noatime /dev/vda /new && exec /bin/busybox switch_root /new /sbin/nested-init
echo "outer machine: no root disk"
INIT
  chmod 755 "$work/initrd/init"
  (cd "$work/initrd" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 --reproducible) |
    gzip -1 -n >"$work/initrd.img"
  rm -rf "$work/initrd"
fi
printf '%s\n' "$root_key" >"$work/root.key"

say "making the disk with the guests"
mkdir "$work/guests"
for kind in cloud generic; do
  ln "$guest_cache/debian/vmlinuz-$kind" "$guest_cache/debian/initrd-$kind.img" "$guest_cache/busybox-$kind.img" "$work/guests/" 2>/dev/null ||
    cp "$guest_cache/debian/vmlinuz-$kind" "$guest_cache/debian/initrd-$kind.img" "$guest_cache/busybox-$kind.img" "$work/guests/"
done
ln "$guest_cache/debian/debian.qcow2" "$work/guests/" 2>/dev/null || cp "$guest_cache/debian/debian.qcow2" "$work/guests/"
mib=$(($(du -sm "$work/guests" | cut -f1) + 64))
ext4_inodes=1024 ext4_image "$work/guests" "$work/guests.ext4" "$mib" guests
rm -rf "$work/guests"
finish "$out" "$key"
say "made $out"
