#!/bin/sh
# Shows the main job from nothing: a Linux guest whose process 1 is lodger, a program in it, files in and out of it.
#
#     initramfs/demo.sh [-y]
#
# Does all the set-up first: the Rust target, the Debian packages that are missing (asks before; -y does not ask), a kernel that is
# unpacked into build/, the static binary. Needs Rust.
set -eu
cd "$(dirname "$0")/.."

yes=
[ -z "${CI:-}" ] || yes=1
case ${1:-} in
    "") ;;
    -y) yes=1 ;;
    *) echo "usage: initramfs/demo.sh [-y]" >&2; exit 2 ;;
esac
. initramfs/setup.sh

add_target
add_packages qemu-system-x86_64:qemu-system-x86 busybox:busybox-static
add_kernel
build_static

# Shows a command, runs it, and says how it ended.
show() {
    printf '\n$ %s\n' "$*"
    code=0
    "$@" || code=$?
    [ "$code" = 0 ] || echo "[exit status $code]"
}

work=$(mktemp -d)
pid=
trap 'if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || :; fi; rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
PATH=$PWD/target/$target/release:$PATH

echo
echo "One command: boot a guest, run a program in it, have its exit status, power off."
show lodger vm --busybox -- sh -c 'echo "hello from $(uname -sr)"; exit 7'

echo
echo "A guest that stays, and what can be done in it from here."
printf '\n$ lodger vm --busybox --keep\n'
lodger vm --busybox --keep 2>&1 | tee "$work/said"
LODGER_TO=$(sed -n 's/.*reach it by --to //p' "$work/said")
pid=$(sed -n 's/.*the guest stays, as process \([0-9]*\);.*/\1/p' "$work/said")
folder=$(dirname "${LODGER_TO#*:}")
[ -n "$LODGER_TO" ] || fail "the guest did not start"
export LODGER_TO
printf '\n$ export LODGER_TO=%s\n' "$LODGER_TO"

show lodger ping -c 1
show lodger exec -- sh -c 'echo to stdout; echo to stderr >&2; kill -TERM $$'
mkdir -p "$work/tree/deep"
seq 1 100000 > "$work/tree/numbers"
echo "a small file" > "$work/tree/deep/small"
ln -s deep/small "$work/tree/link"
show lodger cp -r "$work/tree" guest:/root
show lodger ls -l /root/tree
show lodger exec -- sh -c 'rev /root/tree/numbers | sha256sum'
show lodger cp -r guest:/root/tree "$work/back"
show diff -r "$work/tree" "$work/back"
printf '\n$ seq 5 | lodger exec tac\n'
seq 5 | lodger exec tac
show lodger exec /bin/lodger poweroff
i=0
while kill -0 "$pid" 2>/dev/null && [ $i -lt 100 ]; do sleep 0.1; i=$((i + 1)); done
pid=
rm -rf "$folder"

echo
echo "Without any guest: --to local: starts an agent of its own for one command."
show lodger exec --to local: -- sh -c 'echo "agent on this machine, as process $PPID"'
