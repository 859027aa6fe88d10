#!/bin/sh
# Fetches Debian's kernel for cloud guests and unpacks it, for guests that are booted for tests. Nothing is installed.
#
#     initramfs/fetch-kernel.sh [DIR]
#
# DIR (build/kernel beside this script's directory) then has boot/vmlinuz-RELEASE and lib/modules/RELEASE. The last line on standard
# output is the path of the kernel. A kernel that is there already is kept.
set -eu

say() { echo "fetch-kernel: $*" >&2; }
fail() { say "$*"; exit 1; }

root=$(cd "$(dirname "$0")/.." && pwd)
directory=${1:-$root/build/kernel}
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)

# The newest kernel of the directory that has its modules.
kernel() {
    for found in $(ls "$directory"/boot/vmlinuz-* 2>/dev/null | sort -rV); do
        if [ -d "$directory/lib/modules/${found##*/vmlinuz-}" ]; then
            echo "$found"
            return
        fi
    done
}

if [ -n "$(kernel)" ]; then
    say "${directory} has $(basename "$(kernel)")"
    kernel
    exit
fi

for tool in apt-cache apt-get dpkg; do
    command -v "$tool" >/dev/null || fail "$tool not found: this needs Debian or a system derived from it"
done

# The package of that name is empty and depends on the one with the kernel.
package=linux-image-cloud-$(dpkg --print-architecture)
real=$(apt-cache depends --important --no-recommends "$package" 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
[ -n "$real" ] || fail "apt knows no package $package (try: apt-get update)"

# Unpacked beside its place, so that an interrupted run leaves no half of a kernel.
work=$(mktemp -d "$directory/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work"

say "downloading $real"
# Root would make apt switch to its own user, who cannot write here.
apt-get download -q -o APT::Sandbox::User="$(id -un)" "$real" >&2 ||
    fail "download $real: apt-get did not work (try: apt-get update)"
say "unpacking $real"
dpkg -x ./*.deb tree
[ -d tree/lib/modules ] || mv tree/usr/lib tree/lib
# The modules come last, in one step: the kernel counts as there only with them.
for part in boot lib/modules; do
    mkdir -p "$directory/$part"
    for file in tree/"$part"/*; do
        rm -rf "$directory/$part/$(basename "$file")"
        mv "$file" "$directory/$part/"
    done
done

[ -n "$(kernel)" ] || fail "$real has no kernel with modules"
say "unpacked $(basename "$(kernel)")"
kernel
