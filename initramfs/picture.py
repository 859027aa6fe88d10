#!/usr/bin/env python3
"""Makes demo.svg, the picture of a terminal in README.md: runs the commands below and draws them with what they really print.

    PATH=$PWD/target/x86_64-unknown-linux-musl/release:$PATH initramfs/picture.py

Needs what initramfs/demo.sh sets up.
"""

import html
import os
import shlex
import subprocess
import tempfile

COMMANDS = [
    """lodger vm -q --busybox -- sh -c 'echo "hello from $(uname -sr)"; exit 7'""",
    "echo $?",
    "lodger vm -q --busybox --keep",
    "export LODGER_TO=ADDRESS",
    "lodger cp -r tree guest:/root",
    "lodger ls -l /root/tree",
    "lodger exec sh -c 'cd /root/tree; sha256sum numbers | cut -c1-16; exit 3'; echo $?",
    "seq 100000 | lodger exec tac | head -n 2",
    "lodger exec -- sh -c 'kill -TERM $$'; echo $?",
    "lodger cp -r guest:/root/tree back && diff -r tree back && echo same",
]
COLUMNS, LINE, LETTER, EDGE, BAR = 84, 20, 8.4, 20, 36


def run(shell, command):
    """What the shell prints for a command, both streams as a terminal mixes them."""
    # The shell's own input is not for the commands, and $? is kept for the next one.
    shell.stdin.write(f"(exit ${{code:-0}}); eval {shlex.quote(command)} </dev/null; code=$?; echo; echo =end=\n")
    shell.stdin.flush()
    lines = []
    for line in shell.stdout:
        if line == "=end=\n":
            break
        lines.append(line.rstrip("\n"))
    return lines[:-1]


def session():
    """Lines of the session, with whether each was typed."""
    root = os.getcwd()
    kernels = sorted(os.listdir("build/kernel/boot"))
    kernel = next(name for name in reversed(kernels) if name.startswith("vmlinuz-"))
    environment = {**os.environ, "LODGER_KERNEL": f"{root}/build/kernel/boot/{kernel}"}
    environment.pop("LODGER_TO", None)
    with tempfile.TemporaryDirectory() as folder:
        os.makedirs(f"{folder}/tree/deep")
        with open(f"{folder}/tree/numbers", "w") as file:
            file.writelines(f"{number}\n" for number in range(1, 100001))
        os.symlink("../numbers", f"{folder}/tree/deep/link")
        shell = subprocess.Popen(
            ["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment
        )
        address = None
        for command in COMMANDS:
            command = command.replace("ADDRESS", address or "")
            yield True, command
            for line in run(shell, command):
                if "--to serial:" in line:
                    address = line.split("--to ")[1].split()[0]
                yield False, line
        run(shell, "lodger exec /bin/lodger poweroff; sleep 2; rm -r ${LODGER_TO#serial:}; rmdir $(dirname ${LODGER_TO#serial:})")
        shell.stdin.close()
        shell.wait()


def wrapped(lines):
    for typed, line in lines:
        line = f"$ {line}" if typed else line
        yield typed, line[:COLUMNS]
        for start in range(COLUMNS, len(line), COLUMNS):
            yield False, line[start : start + COLUMNS]


def picture(lines):
    width, height = COLUMNS * LETTER + 2 * EDGE, BAR + len(lines) * LINE + EDGE
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}" role="img">',
        "<title>A terminal session with lodger</title>",
        '<rect width="100%" height="100%" rx="10" fill="#1b1f27"/>',
        *(f'<circle cx="{22 + 20 * n}" cy="20" r="6" fill="{c}"/>' for n, c in enumerate(["#e0635b", "#e2b04c", "#62b45e"])),
        '<g font-family="ui-monospace,Menlo,Consolas,\'DejaVu Sans Mono\',monospace" font-size="14" xml:space="preserve">',
    ]
    for row, (typed, line) in enumerate(lines):
        color, y = "#ffffff" if typed else "#aeb8c6", BAR + (row + 1) * LINE
        if line:
            # The length is given so that it fits with any font.
            length = f'textLength="{len(line) * LETTER:.1f}" lengthAdjust="spacingAndGlyphs"'
            out.append(f'<text x="{EDGE}" y="{y}" fill="{color}" {length}>{html.escape(line, quote=False)}</text>')
    return "\n".join([*out, "</g>", "</svg>", ""])


lines = list(wrapped(session()))
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "demo.svg"), "w") as file:
    file.write(picture(lines))
