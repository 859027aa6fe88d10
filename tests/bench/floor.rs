//! What the kernel alone would take: the other process of each comparison, which is this program again in another role.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

#[cfg(feature = "metadata")]
use crate::metadata;
use crate::{link, monitor};

/// Bytes of one read or write.
pub const CHUNK: usize = 256 << 10;

/// First argument of a process that plays a role; the second one names it.
pub const ROLE_OPTION: &str = "--role";

/// A process with one end of a socket pair as its stdin, and our end.
pub struct Partner {
    child: Child,
    pub socket: UnixStream,
}

impl Partner {
    /// Starts this program in a role: `echo`, `send:PATH`, `receive:PATH`, `accept:PATH`, `close:PATH`, `write:PATH`, or `tcp:` and one of
    /// `send:PATH`, `receive:PATH` and `cat`.
    pub fn start(role: &str) -> Partner {
        let (socket, theirs) = UnixStream::pair().expect("a socket pair");
        let own = std::env::current_exe().expect("the path of this program");
        let mut command = Command::new(own);
        let child = command.args([ROLE_OPTION, role]).stdin(OwnedFd::from(theirs)).spawn().expect("it starts again");
        Partner { child, socket }
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Plays a role on stdin until the other side closes.
pub fn play(role: &str) {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().expect("stdin is open"));
    match role.split_once(':') {
        Some(("send", path)) => send(socket, Path::new(path)),
        Some(("receive", path)) => receive(socket, Path::new(path)),
        Some(("accept", path)) => link::accept(Path::new(path)),
        Some(("close", path)) => monitor::accept_and_close(Path::new(path)),
        Some(("write", path)) => link::write_bare(Path::new(path)),
        #[cfg(feature = "metadata")]
        Some(("tcp", role)) => play_over_tcp(role, metadata::accept_one(socket)),
        #[cfg(feature = "metadata")]
        Some(("lines", bytes)) => metadata::say_lines(bytes.parse().expect("a number")),
        _ => echo(socket),
    }
}

#[cfg(feature = "metadata")]
fn play_over_tcp(role: &str, socket: std::net::TcpStream) {
    match role.split_once(':') {
        Some(("send", path)) => send(socket, Path::new(path)),
        Some(("receive", path)) => receive(socket, Path::new(path)),
        _ => metadata::cat(socket),
    }
}

fn echo(mut socket: UnixStream) {
    let mut byte = [0];
    while socket.read(&mut byte).is_ok_and(|count| count == 1) && socket.write_all(&byte).is_ok() {}
}

/// For each byte: the whole file, by pread and write.
fn send(mut socket: impl Read + Write, path: &Path) {
    let (mut buffer, mut byte) = (vec![0; CHUNK], [0]);
    let file = File::open(path).expect("the file to send");
    while socket.read(&mut byte).is_ok_and(|count| count == 1) {
        let mut offset = 0;
        loop {
            let count = file.read_at(&mut buffer, offset).expect("the file can be read");
            if count == 0 {
                break;
            }
            if socket.write_all(&buffer[..count]).is_err() {
                return;
            }
            offset += count as u64;
        }
    }
}

/// For each 8 bytes, a length: so many bytes by read and pwrite, and one byte back.
fn receive(mut socket: impl Read + Write, path: &Path) {
    let (mut buffer, mut length) = (vec![0; CHUNK], [0; 8]);
    let file = File::options().write(true).open(path).expect("the file to write");
    while socket.read_exact(&mut length).is_ok() {
        let (mut offset, end) = (0, u64::from_ne_bytes(length));
        while offset < end {
            let Ok(count @ 1..) = socket.read(&mut buffer) else { return };
            file.write_all_at(&buffer[..count], offset).expect("the file can be written");
            offset += count as u64;
        }
        if socket.write_all(&[0]).is_err() {
            return;
        }
    }
}

unsafe extern "C" {
    /// The environment of this process, which programs of the agent get too: it is the agent's own.
    static environ: *const *mut std::ffi::c_char;
}

/// Runs a program by posix_spawn(3) and waits for its end.
#[allow(unsafe_code)]
pub fn spawn_and_wait(program: &std::ffi::CStr) {
    let argv = [program.as_ptr().cast_mut(), std::ptr::null_mut()];
    let (mut pid, mut status) = (0, 0);
    // SAFETY: both lists end with a null pointer and live longer than the call, for nobody here changes the environment; the call fills the numbers.
    unsafe {
        let (none, plain) = (std::ptr::null(), std::ptr::null());
        let result = libc::posix_spawn(&mut pid, program.as_ptr(), none, plain, argv.as_ptr(), environ);
        assert_eq!(result, 0, "the program starts");
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
    }
    assert_eq!(status, 0, "the program ends with 0");
}

/// Pipes a program's output through cat into a socket pair, and reads it to its end.
pub fn through_cat(program: &str, arguments: &[&str], expected_bytes: u64, buffer: &mut [u8]) {
    let (mut socket, theirs) = UnixStream::pair().expect("a socket pair");
    let mut producer = Command::new(program).args(arguments).stdout(Stdio::piped()).spawn().expect("it starts");
    let piped = producer.stdout.take().expect("it was asked for");
    let mut cat = Command::new("cat").stdin(piped).stdout(OwnedFd::from(theirs)).spawn().expect("cat starts");
    let mut total = 0;
    loop {
        match socket.read(buffer).expect("the socket can be read") {
            0 => break,
            count => total += count as u64,
        }
    }
    assert_eq!(total, expected_bytes);
    assert!(producer.wait().is_ok_and(|status| status.success()) && cat.wait().is_ok_and(|status| status.success()));
}

/// Keeps this process, and all that it starts meanwhile, on one processor until it is dropped. Whether two processes share a processor or
/// wake each other across two makes a wake-up cost 4 us or 30, and the scheduler would choose otherwise for ours than for the floor.
pub struct OneProcessor(libc::cpu_set_t);

impl OneProcessor {
    #[allow(unsafe_code)]
    pub fn choose() -> OneProcessor {
        // SAFETY: the kernel fills and reads sets of the size that it is told.
        unsafe {
            let size = size_of::<libc::cpu_set_t>();
            let (mut before, mut one): (libc::cpu_set_t, libc::cpu_set_t) = (std::mem::zeroed(), std::mem::zeroed());
            assert_eq!(libc::sched_getaffinity(0, size, &mut before), 0);
            let last = (0..libc::CPU_SETSIZE as usize).rfind(|number| libc::CPU_ISSET(*number, &before));
            libc::CPU_SET(last.expect("we run on some processor"), &mut one);
            assert_eq!(libc::sched_setaffinity(0, size, &one), 0);
            OneProcessor(before)
        }
    }
}

impl Drop for OneProcessor {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: as above; the set is the one that the kernel gave.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.0) };
    }
}
