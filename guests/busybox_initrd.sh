#!/bin/sh
# A guest in one initramfs: static busybox, the virtio and ext4 modules of one stock kernel, a shell on ttyS0.
#
#   busybox_initrd.sh KIND [OUT]    KIND is cloud or generic; OUT defaults to busybox-KIND.img in the cache
#
# It boots in a fraction of a full Debian's time, so it is what many vCPUs and both kernels are tested with.
set -eu
. "$(dirname -- "$0")/lib.sh"
kind=${1:?usage: busybox_initrd.sh cloud|generic [OUT]}
out=${2:-$guest_cache/busybox-$kind.img}
kernels=$guest_cache/kernels
need cpio modprobe flock
sh "$guests_dir/kernels.sh"
with_lock "busybox-$kind"

key=$(key_of "$0" "$(text_of copy_modules)" "$kernels/.key" "$kind")
if [ -f "$out" ] && [ "$(cat "$out.key" 2>/dev/null)" = "$key" ]; then
  say "up to date: $out"
  exit 0
fi

begin "$out"
version=$(cat "$kernels/version-$kind")
mkdir -p "$work/bin" "$work/proc" "$work/sys" "$work/dev" "$work/mnt" "$work/tmp" "$work/root"
cp "$kernels/busybox" "$work/bin/busybox"
copy_modules "$kernels/tree-$kind" "$version" "$work/modules" \
  virtio_mmio virtio_pci virtio_blk virtio_rng ext4
cat >"$work/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mkdir -p /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
while read -r module; do insmod "/modules/$module"; done </modules/modules.list
# As process 1 this loop never ends: a shell that exits is replaced.
while :; do
  setsid sh -c 'exec sh -i </dev/ttyS0 >/dev/ttyS0 2>&1'
done
INIT
chmod 755 "$work/init"
(cd "$work" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 --reproducible) | gzip -1 -n >"$out.tmp"
mv "$out.tmp" "$out"
printf '%s\n' "$key" >"$out.key"
say "made $out ($(du -h "$out" | cut -f1)B)"
