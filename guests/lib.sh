# Shared by the guest builders: progress lines, a cache keyed by content, and Debian packages fetched
# by their exact name. Sourced, never run; expects `set -eu` in the caller.
#
# Every builder makes its output in a directory beside the final one and renames it when it is
# complete, together with a `.key` file that says what it was made from. So a builder that was killed
# leaves nothing that a later run would believe, and an unchanged one costs milliseconds.

guests_dir=$(CDPATH='' cd -- "$(dirname -- "${QS_GUESTS_DIR:-$0}")" && pwd)
# Scripts in guests/nested/ source this file too.
[ -f "$guests_dir/lib.sh" ] || guests_dir=$(dirname -- "$guests_dir")
project_dir=$(dirname -- "$guests_dir")
guest_cache=${QUICKSAVE_GUEST_CACHE:-$project_dir/build/guests}

# What the builders and the nested machine need from Debian 12, for whoever installs it.
guest_packages="mmdebstrap qemu-system-x86 qemu-utils e2fsprogs kmod cpio zstd python3-minimal"

say() { printf '%s: %s\n' "$(basename -- "$0" .sh)" "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

# need TOOL...: every tool is there, or one message that says what to install.
need() {
  for tool in "$@"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null 2>&1 ||
      die "$tool is missing; install what the guests need: apt-get install $guest_packages"
  done
}

# key_of WORD... : one hash over words and, where a word names a file, the file's content.
key_of() {
  for word in "$@"; do
    if [ -f "$word" ]; then sha256sum <"$word"; else printf '%s\n' "$word"; fi
  done | sha256sum | cut -d' ' -f1
}

# text_of FUNCTION...: the text of functions of this file, for a key: a builder depends on those, not on the rest.
text_of() {
  for function in "$@"; do sed -n "/^$function() {/,/^}/p" "$guests_dir/lib.sh"; done
}

# is_current DIR KEY: DIR was completed from exactly this key.
is_current() { [ -f "$1/.key" ] && [ "$(cat "$1/.key")" = "$2" ]; }

# begin DIR: makes an empty work directory `$work` beside DIR; it is removed if the builder fails.
begin() {
  mkdir -p "$(dirname -- "$1")"
  work=$(mktemp -d "$1.tmp.XXXXXX")
  trap 'rm -rf --one-file-system "$work"' EXIT
  trap 'exit 130' INT TERM HUP
  chmod 755 "$work"
}

# finish DIR KEY: `$work` becomes DIR. The only step that is not atomic (the old directory goes first)
# leaves DIR missing, never half full.
finish() {
  printf '%s\n' "$2" >"$work/.key"
  sync -f "$work"
  rm -rf --one-file-system "$1"
  mv -T "$work" "$1"
  trap - EXIT INT TERM HUP
}

# with_lock NAME: at most one builder of a kind at a time; a second one waits and then finds the cache full.
with_lock() {
  mkdir -p "$guest_cache"
  exec 9>"$guest_cache/.lock-$1"
  flock 9
}

refresh_lists() {
  say "refreshing the package lists"
  apt-get update -qq >&2
}

# The machine's lists are enough unless there are none (a fresh container).
# apt parses its lists anew on every call where a container's settings keep its index off the disk: a second a call.
apt_cache() {
  mkdir -p "$guest_cache"
  apt-cache -o "Dir::Cache::pkgcache=$guest_cache/.apt-packages.bin" -o "Dir::Cache::srcpkgcache=$guest_cache/.apt-sources.bin" "$@"
}

# An installed package has a candidate without any list, so the lists must name an archive for this one.
have_lists() { apt_cache madison "$1" 2>/dev/null | grep -q '|'; }

# depends_of META: the exact package that a meta package stands for.
depends_of() {
  have_lists "$1" || refresh_lists
  apt_cache depends --important "$1" | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1
}

# version_of PACKAGE: the version that fetch would get.
version_of() {
  have_lists "$1" || refresh_lists
  apt_cache policy "$1" | sed -n 's/^ *Candidate: //p'
}

# fetch PACKAGE: downloads one package by its exact name and prints the file's path. Kept in the cache by
# name and version. Lists that are older than the mirror give one 404: refreshed and tried once more.
fetch() {
  fetch_version=$(version_of "$1")
  fetch_kept=$guest_cache/debs/$1_$(printf %s "$fetch_version" | tr : _).deb
  if [ ! -f "$fetch_kept" ]; then
    mkdir -p "$guest_cache/debs"
    fetch_tmp=$(mktemp -d "$guest_cache/debs/.tmp.XXXXXX")
    say "downloading $1 $fetch_version"
    (cd "$fetch_tmp" && apt-get download -qq -o APT::Sandbox::User=root "$1=$fetch_version" >&2) || {
      refresh_lists
      (cd "$fetch_tmp" && apt-get download -qq -o APT::Sandbox::User=root "$1" >&2) ||
        die "cannot download $1: is the package mirror reachable?"
    }
    mv "$fetch_tmp"/*.deb "$fetch_kept"
    rmdir "$fetch_tmp"
  fi
  printf '%s\n' "$fetch_kept"
}

# debian_sources: the Debian archives this machine itself uses, as one-line sources; third-party ones left out.
debian_sources() {
  have_lists base-files || refresh_lists
  apt-get indextargets --format '$(SIGNED_BY)|$(REPO_URI)|$(CODENAME)|$(COMPONENT)|$(ORIGIN)|$(CREATED_BY)|$(SUITE)|$(RELEASE)' |
    awk -F'|' '$5 == "Debian" && $6 == "Packages" && $4 == "main" {
      suite = ($8 != "") ? $8 : $3; sub(/\/$/, "", suite)
      sub(/\/$/, "", $2)
      print "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] " $2 " " suite " main" }' | sort -u
}

# bootstrap DIR SUITE-PACKAGES...: an installed Debian tree, by mmdebstrap with this machine's own archives.
# $bootstrap_hooks may hold further options, one word each.
bootstrap() {
  bootstrap_dir=$1
  shift
  bootstrap_include=$(printf '%s,' "$@")
  debian_sources >"$work/sources.list"
  [ -s "$work/sources.list" ] || die "apt knows no Debian archive on this machine: check /etc/apt/sources.list"
  mkdir -p "$guest_cache/debs/archive"
  # shellcheck disable=SC2086
  SOURCE_DATE_EPOCH=1700000000 mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
    --include="${bootstrap_include%,}" \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --aptopt='Acquire::Retries "3"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/lintian/*' --dpkgopt='force-unsafe-io' \
    --skip=essential/unlink \
    --setup-hook='mkdir -p "$1"/var/cache/apt/archives/' \
    --setup-hook="sync-in '$guest_cache/debs/archive' /var/cache/apt/archives/" \
    --customize-hook="sync-out /var/cache/apt/archives '$guest_cache/debs/archive'" \
    ${bootstrap_hooks:-} bookworm "$bootstrap_dir" "$work/sources.list" >&2
}

# ext4_image TREE FILE SIZE-MIB LABEL: the tree as an ext4 file system. Nothing is left to lazy
# initialisation, which would keep writing to the disk behind the guest's back; UUID, seed and times are
# fixed, so that the same tree gives the same image.
ext4_image() {
  E2FSPROGS_FAKE_TIME=1700000000 /sbin/mke2fs -q -t ext4 -L "$4" -d "$1" -N "${ext4_inodes:-65536}" -m 0 \
    -U 3f2c9f5e-0d5f-4c5e-9d0e-51c5a5e00001 \
    -E hash_seed=3f2c9f5e-0d5f-4c5e-9d0e-51c5a5e00002,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0 \
    "$2" "$3M" >&2
}

# copy_modules TREE VERSION DEST MODULE...: the modules and all they need, and DEST/modules.list in load order.
copy_modules() {
  modules_tree=$1 modules_version=$2 modules_dest=$3
  shift 3
  mkdir -p "$modules_dest"
  touch "$modules_dest/modules.list"
  for module in "$@"; do
    # Built into this kernel: nothing to load. `modprobe` prints "builtin NAME" for those.
    /sbin/modprobe -d "$modules_tree" -S "$modules_version" --show-depends "$module" |
      sed -n 's/^insmod \([^ ]*\).*/\1/p' | while read -r path; do
      cp -n "$path" "$modules_dest/"
      grep -qxF "$(basename "$path")" "$modules_dest/modules.list" ||
        basename "$path" >>"$modules_dest/modules.list"
    done
  done
}
