#!/bin/sh
# The whole test suite, with guests under QEMU, from nothing.
#
#     tests/run.sh [-y] [--boots N | --soak] [CARGO TEST ARGUMENTS]
#
# Does all the set-up first: the Rust target, the Debian packages that are missing (asks before; -y does not ask), a kernel and the
# daemons of XenStore, which are unpacked into build/, the vsock device of guests (a crate, built once), the static binary. --boots N
# boots a guest N times in a row (default 5), --soak 50 times. Needs Rust.
set -eu
cd "$(dirname "$0")/.."

yes=
[ -z "${CI:-}" ] || yes=1
boots=5
while [ $# -gt 0 ]; do
    case $1 in
        -y) yes=1 ;;
        --soak) boots=50 ;;
        --boots)
            [ $# -gt 1 ] || { echo "tests/run.sh: --boots needs a number" >&2; exit 2; }
            boots=$2
            shift
            ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit ;;
        *) break ;;
    esac
    shift
done
. initramfs/setup.sh

add_target
add_packages cc:gcc qemu-system-x86_64:qemu-system-x86 busybox:busybox-static script:bsdutils ip:iproute2 \
    openssl:openssl perl:perl-base strace:strace unshare:util-linux
add_kernel
add_xenstore
add_vsock_device
build_static

LODGER_REQUIRE_GUEST=1 LODGER_BOOTS=$boots cargo test --no-fail-fast "$@"
