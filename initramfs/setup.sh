# Set-up that initramfs/demo.sh and tests/run.sh share; they source this file, it does nothing by itself.
#
# What is there is left alone. Debian packages are installed only after a question, or without one when $yes is set.

target=x86_64-unknown-linux-musl
lodger=target/$target/release/lodger

say() { echo "$(basename "$0"): $*" >&2; }
fail() { say "$*"; exit 1; }

# The static binary's target.
add_target() {
    command -v cargo >/dev/null || fail "cargo not found: install Rust first (https://rustup.rs)"
    if ! [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
        say "adding the Rust target $target"
        rustup target add "$target" >&2
    fi
}

# Debian packages for commands that are missing, given as command:package.
add_packages() {
    missing=
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || fail "please install:$missing"
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    if [ -z "$yes" ]; then
        printf 'Debian packages are missing:%s\nInstall them? [y/N] ' "$missing" >&2
        read -r answer || answer=n
        case $answer in y* | Y*) ;; *) fail "these packages are needed:$missing" ;; esac
    fi
    update_lists
    # shellcheck disable=SC2086 # One word a package.
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y --no-install-recommends $missing >&2
}

# apt's lists of packages, once, where there are none yet.
update_lists() {
    if ! apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1; then
        say "fetching the lists of Debian packages"
        if [ "$(id -u)" = 0 ]; then apt-get update >&2; else sudo apt-get update >&2; fi
    fi
}

# A kernel for guests.
add_kernel() {
    if [ -n "${LODGER_KERNEL:-}" ]; then return 0; fi
    [ -n "$(ls build/kernel/boot/vmlinuz-* 2>/dev/null)" ] || update_lists
    sh initramfs/fetch-kernel.sh >/dev/null
}

# The daemons and tools of XenStore, for the tests of its guests.
add_xenstore() {
    [ -x build/xen/usr/bin/xenstore-read ] || update_lists
    sh tests/xenstore/fetch.sh
}

# The vsock device of guests, once: into cargo's home where CI keeps that, else into build/. About half a minute on two cores.
add_vsock_device() {
    if [ -x build/tools/bin/vhost-device-vsock ] || command -v vhost-device-vsock >/dev/null; then return 0; fi
    say "installing vhost-device-vsock"
    root=build/tools
    [ -z "${CI:-}" ] || root=${CARGO_HOME:-$HOME/.cargo}
    # Its own target directory: that of the project stays as it is.
    CARGO_TARGET_DIR=build/tools-target cargo install vhost-device-vsock@0.3.0 --locked --root "$root" >&2
    rm -rf build/tools-target
}

build_static() {
    say "building the static binary"
    cargo build --release --target "$target" >&2
}
