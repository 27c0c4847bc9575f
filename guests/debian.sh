#!/bin/sh
# A stock Debian 12 guest: systemd, udev, ext4, Debian's own kernels and the initrds that Debian's own
# initramfs-tools makes for them.
#
#   debian.sh [OUTDIR]     OUTDIR/debian.qcow2
#                          OUTDIR/vmlinuz-cloud    OUTDIR/initrd-cloud.img
#                          OUTDIR/vmlinuz-generic  OUTDIR/initrd-generic.img
#
# Boot it with root=/dev/vda rw console=ttyS0: a root shell appears on ttyS0 without a login. What is
# masked below costs emulated machines seconds and shows nothing; what a snapshot must get right (systemd as init,
# udev, journald, an ext4 root with a journal) is as Debian ships it.
set -eu
. "$(dirname -- "$0")/lib.sh"
out=${1:-$guest_cache/debian}
need mmdebstrap qemu-img mke2fs flock apt-get
[ "$(id -u)" = 0 ] || die "must run as root (the image's files belong to root)"
with_lock debian

cloud=$(depends_of linux-image-cloud-amd64)
generic=$(depends_of linux-image-amd64)
key=$(key_of "$0" "$(text_of bootstrap ext4_image)" "$cloud=$(version_of "$cloud")" "$generic=$(version_of "$generic")" \
  "systemd=$(version_of systemd)" "base-files=$(version_of base-files)")
if is_current "$out" "$key"; then
  say "up to date: $out"
  exit 0
fi

# The kernels are downloaded once for every builder.
mkdir -p "$guest_cache/debs/archive"
for package in "$cloud" "$generic"; do
  deb=$(fetch "$package")
  cp -n "$deb" "$guest_cache/debs/archive/$(basename -- "$(dpkg-deb -W --showformat '${Package}_${Version}_${Architecture}.deb' "$deb")")"
done

begin "$out"
say "installing Debian 12 (mmdebstrap)"
bootstrap "$work/root" systemd-sysv udev kmod e2fsprogs procps bash coreutils util-linux \
  initramfs-tools zstd "$cloud" "$generic"
root=$work/root

say "setting up the guest"
# Real packages to unpack in a guest that has no network.
mkdir -p "$root/root/debs"
cp "$guest_cache"/debs/archive/bash_*_amd64.deb "$guest_cache"/debs/archive/coreutils_*_amd64.deb \
  "$guest_cache"/debs/archive/perl-base_*_amd64.deb "$root/root/debs/"
# What udev would load because the emulated processor can do it, and no guest here uses.
for module in kvm kvm_amd powernow_k8 aesni_intel ghash_clmulni_intel crct10dif_pclmul crc32_pclmul sha512_ssse3 psmouse; do
  echo "blacklist $module"
done >"$root/etc/modprobe.d/guest.conf"
printf 'guest\n' >"$root/etc/hostname"
printf '/dev/vda / ext4 defaults,noatime 0 1\n' >"$root/etc/fstab"
printf '%s\n' 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
passwd_file=$root/etc/shadow
sed -i 's/^root:[^:]*:/root::/' "$passwd_file"

# A root shell straight on the console: no getty, no login, no motd to wait for.
mkdir -p "$root/etc/systemd/system/serial-getty@.service.d"
cat >"$root/etc/systemd/system/serial-getty@.service.d/shell.conf" <<'UNIT'
[Unit]
ConditionPathExists=
[Service]
Type=simple
Environment=HOME=/root SHELL=/bin/bash LANG=C.UTF-8 TERM=vt220
WorkingDirectory=/root
ExecStart=
ExecStart=-/bin/bash
StandardInput=tty-force
StandardOutput=tty
StandardError=tty
Restart=always
RestartSec=0
TimeoutStopSec=2
UNIT
printf 'PS1="root@guest:\\w# "\nbind "set enable-bracketed-paste off" 2>/dev/null\n' >"$root/root/.bashrc"
mkdir -p "$root/etc/systemd/journald.conf.d" "$root/etc/systemd/system.conf.d"
printf '[Journal]\nStorage=persistent\nSystemMaxUse=16M\nForwardToConsole=no\n' >"$root/etc/systemd/journald.conf.d/guest.conf"
# systemd gives a device 90 s to appear. An emulated guest on a busy host needs more for ttyS0, and without it there is no
# shell: such a guest idles for ever and looks as if it had lost an interrupt.
printf '[Manager]\nShowStatus=no\nDefaultTimeoutStopSec=15s\nDefaultTimeoutStartSec=15min\nDefaultDeviceTimeoutSec=15min\n' >"$root/etc/systemd/system.conf.d/guest.conf"

# Costs time, shows nothing.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
  fstrim.timer systemd-tmpfiles-clean.timer getty@tty1.service systemd-binfmt.service \
  systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-pcrphase.service \
  systemd-pcrphase-sysinit.service systemd-pcrphase-initrd.service systemd-machine-id-commit.service \
  systemd-ask-password-wall.path systemd-ask-password-console.path systemd-hwdb-update.service \
  modprobe@configfs.service modprobe@drm.service modprobe@efi_pstore.service modprobe@fuse.service \
  sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount sys-fs-fuse-connections.mount \
  sys-kernel-config.mount proc-sys-fs-binfmt_misc.automount systemd-rfkill.socket \
  systemd-networkd.service systemd-resolved.service systemd-pstore.service; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# Every network, USB, graphics and sound device of the world in the hardware database: 10 MB the guest never asks.
rm -rf "$root"/usr/lib/udev/hwdb.d "$root"/etc/udev/hwdb.bin "$root"/usr/lib/udev/hwdb.bin

for kind in cloud generic; do
  eval "version=\${$kind#linux-image-}"
  [ -s "$root/boot/initrd.img-$version" ] || die "initramfs-tools made no initrd for $version"
  mv "$root/boot/vmlinuz-$version" "$work/vmlinuz-$kind"
  mv "$root/boot/initrd.img-$version" "$work/initrd-$kind.img"
  chmod 644 "$work/initrd-$kind.img"
  rm -f "$root/boot/System.map-$version"
  # The initrd is made: what it left out is hardware this guest does not have.
  (cd "$root/lib/modules/$version/kernel" && find . -name '*.ko' | grep -vE \
    'virtio|vsock|failover|/(ext4|jbd2|mbcache|overlay|fuse|loop|crc[^/]*|dm-mod|evdev|button|kvm[^/]*|ptp[^/]*|9p[^/]*)\.ko|^\./(crypto|lib|fs/nls)/' |
    xargs rm -f)
  chroot "$root" depmod "$version"
done
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/* "$root"/usr/share/bug "$root"/etc/apt/sources.list*
mkdir -p "$root/var/log/journal" "$root/var/lib/apt/lists/partial" "$root/var/cache/apt/archives/partial"
find "$root" -xdev -newermt @1700000000 -exec touch -h -d @1700000000 {} +

say "making the disk"
ext4_image "$root" "$work/debian.raw" 2048 guest-root
qemu-img convert -q -f raw -O qcow2 -o cluster_size=64k "$work/debian.raw" "$work/debian.qcow2"
rm -rf --one-file-system "$root" "$work/debian.raw" "$work/sources.list"
finish "$out" "$key"
say "made $out ($(du -h "$out/debian.qcow2" | cut -f1)B disk)"
