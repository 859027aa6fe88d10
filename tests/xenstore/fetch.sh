#!/bin/sh
# Fetches Debian 12's daemons and tools of XenStore and unpacks them, for tests. Nothing is installed, and no Xen is needed.
#
#     tests/xenstore/fetch.sh [DIR]
#
# DIR (build/xen) then has usr/lib/xen-4.17/bin/xenstored and oxenstored, usr/bin/xenstore-*, their libraries, and xen_shim.so, which
# stands in for the hypervisor. What is there already is kept. Needs cc.
set -eu

say() { echo "fetch: $*" >&2; }
fail() { say "$*"; exit 1; }

root=$(cd "$(dirname "$0")/../.." && pwd)
directory=${1:-$root/build/xen}
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)

packages="xen-utils-4.17 xenstore-utils libxencall1 libxendevicemodel1 libxenevtchn1 libxenforeignmemory1 libxengnttab1
    libxenmisc4.17 libxenstore4 libxentoolcore1 libxentoollog1"

# Unpacked beside its place, so that an interrupted run leaves no half of it.
work=$(mktemp -d "$directory/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

if ! [ -x "$directory/usr/bin/xenstore-read" ]; then
    for tool in apt-get dpkg; do
        command -v "$tool" >/dev/null || fail "$tool not found: this needs Debian 12 or a system derived from it"
    done
    cd "$work"
    say "downloading the packages of Xen's store"
    # Root would make apt switch to its own user, who cannot write here.
    # shellcheck disable=SC2086 # One word a package.
    apt-get download -q -o APT::Sandbox::User="$(id -un)" $packages >&2 ||
        fail "apt-get did not work (Debian 12 has them all; try: apt-get update)"
    for package in ./*.deb; do
        dpkg -x "$package" tree
    done
    rm -rf "$directory/usr"
    mv tree/usr "$directory/usr"
fi
shim=$root/tests/xenstore/xen_shim.c
if ! [ "$directory/xen_shim.so" -nt "$shim" ]; then
    cc -Wall -Wextra -shared -fPIC -O2 -o "$work/xen_shim.so" "$shim" -ldl
    mv "$work/xen_shim.so" "$directory/xen_shim.so"
fi
