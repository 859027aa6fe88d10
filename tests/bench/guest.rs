//! The row that boots guests: how much later than the smallest possible process 1 our agent answers.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lodger::mkinitramfs::Image;
use lodger::vm::kernel;

use crate::agent::Agent;
use crate::{Measured, Skipped};

const ROUNDS: usize = 9;

/// How long a guest may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process 1 that writes one line to its console and then waits for ever: one segment, write(1, "up\n", 3) and pause() in a loop.
const ONE_LINE: [&[u8]; 6] = [
    b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0\x78\0\x40\0\0\0\0\0\x40\0\0\0\0\0\0\0",
    b"\0\0\0\0\0\0\0\0\0\0\0\0\x40\0\x38\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0",
    b"\0\0\x40\0\0\0\0\0\0\0\x40\0\0\0\0\0\x9c\0\0\0\0\0\0\0\x9c\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0",
    b"\xb8\x01\0\0\0\xbf\x01\0\0\0\x48\x8d\x35\x10\0\0\0\xba\x03\0\0\0\x0f\x05",
    b"\xb8\x22\0\0\0\x0f\x05\xeb\xf7",
    b"up\n",
];

/// A guest, and its folder; both end with this.
struct Guest {
    qemu: Child,
    folder: PathBuf,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// From the start of QEMU until `mark` has come on the guest's serial line `line`. Both lines are there in both guests.
fn until(kernel: &Path, archive: &Path, (line, mark): (&str, &[u8]), words: &str) -> Result<Duration, Skipped> {
    let folder = std::env::temp_dir().join(format!("lodger-bench-{}-guest", std::process::id()));
    fs::create_dir(&folder).map_err(|error| Skipped(format!("{}: {error}", folder.display())))?;
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-M",
        "q35",
        "-m",
        "256",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-accel",
        "tcg",
        "-cpu",
        "max",
    ]);
    for name in ["ttyS0", "ttyS1"] {
        let path = folder.join(name);
        qemu.arg("-chardev").arg(format!("socket,id={name},server=on,wait=off,path={}", path.display()));
        qemu.arg("-serial").arg(format!("chardev:{name}"));
    }
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(archive);
    qemu.args(["-append", &format!("console=ttyS0 quiet panic=-1 cryptomgr.notests {words}")]);
    let start = Instant::now();
    let qemu = qemu.stdin(Stdio::null()).spawn().map_err(|error| Skipped(format!("qemu-system-x86_64: {error}")))?;
    let guest = Guest { qemu, folder };
    let socket = guest.folder.join(line);
    let mut stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(_) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(Skipped(format!("{}: {error}", socket.display()))),
        }
    };
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| Skipped(error.to_string()))?;
    let mut said = Vec::new();
    while !said.windows(mark.len()).any(|window| window == mark) {
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(|error| Skipped(format!("the guest did not answer: {error}")))?;
        said.extend(byte);
    }
    Ok(start.elapsed())
}

/// The agent greets on ttyS1 as soon as it has opened it, which needs no driver that would have to be loaded.
pub fn until_the_agent_answers(agent: &Agent) -> Result<Measured, Skipped> {
    let kernel = kernel::find(None, None).map_err(|error| Skipped(error.to_string()))?.image;
    let folder = std::env::temp_dir().join(format!("lodger-bench-{}-archives", std::process::id()));
    fs::create_dir_all(&folder).map_err(|error| Skipped(error.to_string()))?;
    let archive = |name: &str, init: Option<Vec<u8>>| {
        let mut image = Image::new();
        image.init(&agent.binary);
        let path = folder.join(name);
        let added = init.map_or(Ok(()), |bytes| image.file("/init", bytes, 0o755));
        added.and_then(|()| image.write_file(&path)).map(|()| path).map_err(|error| Skipped(error.to_string()))
    };
    let (ours, floor) = (archive("ours.cpio", None)?, archive("floor.cpio", Some(ONE_LINE.concat()))?);
    let (mut our_times, mut floor_times) = (Vec::new(), Vec::new());
    let mut measure = || {
        for _ in 0..ROUNDS {
            our_times.push(until(&kernel, &ours, ("ttyS1", b"lodger"), "lodger.listen=port:/dev/ttyS1")?);
            floor_times.push(until(&kernel, &floor, ("ttyS0", b"up"), "")?);
        }
        Ok(())
    };
    let measured = measure();
    let _ = fs::remove_dir_all(&folder);
    measured?;
    our_times.sort_unstable();
    floor_times.sort_unstable();
    let (ours, floor) = (our_times[ROUNDS / 2].as_secs_f64() * 1e3, floor_times[ROUNDS / 2].as_secs_f64() * 1e3);
    Ok(Measured { ours: format!("{ours:.0} ms"), floor: format!("{floor:.0} ms"), value: ours - floor })
}
