//! Descriptors: reading, writing, pipes, socket pairs, poll.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::sys::{check, check_size, retry};

/// read(2) into a slice. 0 is the end of the file.
pub fn read(fd: BorrowedFd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of one exclusive slice.
    retry(|| check_size(unsafe { libc::read(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) }))
}

/// read(2) of at most `limit` bytes behind what `into` holds. 0 is the end of the file.
pub fn read_append(fd: BorrowedFd, into: &mut Vec<u8>, limit: usize) -> io::Result<usize> {
    into.reserve(limit);
    let held = into.len();
    // SAFETY: `reserve` made `limit` bytes of room behind `held`, and the kernel writes only there.
    let count = retry(|| unsafe {
        check_size(libc::read(fd.as_raw_fd(), into.spare_capacity_mut().as_mut_ptr().cast(), limit))
    })?;
    // SAFETY: the kernel has just written `count` bytes behind `held`.
    unsafe { into.set_len(held + count) };
    Ok(count)
}

/// pread(2) of at most `limit` bytes from `offset_bytes` on, behind what `into` holds. 0 is the end of the file.
pub fn pread_append(fd: BorrowedFd, into: &mut Vec<u8>, limit: usize, offset_bytes: i64) -> io::Result<usize> {
    into.reserve(limit);
    let held = into.len();
    // SAFETY: as in `read_append`.
    let count = retry(|| unsafe {
        let room = into.spare_capacity_mut().as_mut_ptr().cast();
        check_size(libc::pread64(fd.as_raw_fd(), room, limit, offset_bytes))
    })?;
    // SAFETY: the kernel has just written `count` bytes behind `held`.
    unsafe { into.set_len(held + count) };
    Ok(count)
}

/// write(2). On a descriptor that does not block, `WouldBlock` when not one byte fits.
pub fn write(fd: BorrowedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of one slice.
    retry(|| check_size(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) }))
}

/// pwrite(2).
pub fn pwrite(fd: BorrowedFd, bytes: &[u8], offset_bytes: i64) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of one slice.
    retry(|| check_size(unsafe { libc::pwrite64(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), offset_bytes) }))
}

/// send(2) with MSG_DONTWAIT and MSG_NOSIGNAL: as `write`, and it never blocks. ENOTSOCK for anything but a socket.
pub fn send_now(fd: BorrowedFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointer and the length are those of one slice.
    retry(|| check_size(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) }))
}

/// recv(2) with MSG_DONTWAIT: as `read`, and it never blocks. ENOTSOCK for anything but a socket.
pub fn receive_now(fd: BorrowedFd, into: &mut [u8]) -> io::Result<usize> {
    let (start, length) = (into.as_mut_ptr().cast(), into.len());
    // SAFETY: the pointer and the length are those of one exclusive slice.
    retry(|| check_size(unsafe { libc::recv(fd.as_raw_fd(), start, length, libc::MSG_DONTWAIT) }))
}

/// Most slices that one `write_vectored` takes; the kernel's own limit is 1,024.
pub const VECTORS_MAX: usize = 16;

/// writev(2) of the first `VECTORS_MAX` slices.
pub fn write_vectored(fd: BorrowedFd, parts: &[io::IoSlice]) -> io::Result<usize> {
    let count = parts.len().min(VECTORS_MAX) as libc::c_int;
    // SAFETY: `IoSlice` is guaranteed to have the layout of `iovec`, and `count` of them are there.
    retry(|| check_size(unsafe { libc::writev(fd.as_raw_fd(), parts.as_ptr().cast(), count) }))
}

/// pipe2(2), both ends close-on-exec and blocking: (read end, write end).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the kernel fills an array of two.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok(own_both(ends))
}

/// socketpair(2): two connected unix stream sockets, close-on-exec and blocking.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the kernel fills an array of two.
    check(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) })?;
    Ok(own_both(ends))
}

fn own_both(ends: [RawFd; 2]) -> (OwnedFd, OwnedFd) {
    // SAFETY: both descriptors have just been made by the kernel and belong to nobody else.
    unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) }
}

/// fcntl(2) with F_SETFL: sets or clears O_NONBLOCK. The flag belongs to the open file, so everybody who shares it sees the change.
pub fn set_nonblocking(fd: BorrowedFd, nonblocking: bool) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take and give plain integers.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        let wanted = if nonblocking { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
        if wanted != flags {
            check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, wanted))?;
        }
    }
    Ok(())
}

/// fcntl(2) with F_SETFL: sets O_NONBLOCK on a pipe end or socket that was just made, and has no other flag that could be lost.
pub fn never_block(fd: BorrowedFd) -> io::Result<()> {
    // SAFETY: takes plain integers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
}

/// fcntl(2) with F_GETFL: whether the open file has O_NONBLOCK.
pub fn is_nonblocking(fd: BorrowedFd) -> io::Result<bool> {
    // SAFETY: F_GETFL takes no argument.
    Ok(check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })? & libc::O_NONBLOCK != 0)
}

/// flock(2) with LOCK_EX and LOCK_NB: the lock goes with the open file. `WouldBlock` when somebody else has it.
pub fn lock(fd: BorrowedFd) -> io::Result<()> {
    // SAFETY: takes plain integers.
    retry(|| check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })).map(drop)
}

/// fcntl(2) with F_SETPIPE_SZ: asks for a larger pipe. EPERM above /proc/sys/fs/pipe-max-size or over the user's soft limit.
pub fn set_pipe_size(fd: BorrowedFd, size_bytes: usize) -> io::Result<()> {
    // SAFETY: F_SETPIPE_SZ takes a plain integer.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, size_bytes as libc::c_int) }).map(drop)
}

/// setsockopt(2) with SO_SNDBUF: asks for room for so many bytes under way. The kernel cuts it to /proc/sys/net/core/wmem_max, and
/// doubles that for its own needs. ENOTSOCK for anything but a socket.
pub fn set_send_buffer(fd: BorrowedFd, size_bytes: usize) -> io::Result<()> {
    let size = size_bytes as libc::c_int;
    // SAFETY: the kernel reads one integer of the size that is given.
    check(unsafe {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw const size).cast(), length)
    })
    .map(drop)
}

/// getsockopt(2) with SO_ERROR: fails with what has gone wrong on the socket since the last call.
pub fn take_error(fd: BorrowedFd) -> io::Result<()> {
    let mut error: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes one integer of the size that is given.
    check(unsafe {
        let to = (&raw mut error).cast();
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, to, &raw mut length)
    })?;
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// shutdown(2) with SHUT_WR: the peer reads an end of file, the other direction stays open.
pub fn shutdown_write(fd: BorrowedFd) -> io::Result<()> {
    // SAFETY: takes plain integers.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) }).map(drop)
}

/// shutdown(2) of both directions: whoever polls the socket wakes with a hang-up.
pub fn shutdown(fd: BorrowedFd) -> io::Result<()> {
    // SAFETY: takes plain integers.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) }).map(drop)
}

/// close_range(2) with CLOSE_RANGE_CLOEXEC: nothing from descriptor 3 on is inherited by a program. ENOSYS before Linux 5.11.
pub fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: changes only the flags of descriptors.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(result as libc::c_int).map(drop)
}

/// Wake when bytes, a connection or the end of the file can be read.
pub const READ: i16 = libc::POLLIN;
/// Wake when at least one byte can be written.
pub const WRITE: i16 = libc::POLLOUT;
/// Wake when the peer of a socket has shut down its writing, though unread bytes may be left.
pub const PEER_ENDED: i16 = libc::POLLRDHUP;
/// Wake only when the descriptor is dead: its other end is closed, or it is broken.
pub const HANG_UP: i16 = 0;

/// What poll(2) found about one descriptor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ready {
    /// A read will not block: bytes, a connection, the end of the file or an error.
    pub readable: bool,
    /// A write will not block, if only because it fails.
    pub writable: bool,
    /// The other end is closed as far as this descriptor can tell (POLLHUP, and POLLRDHUP where it was asked for), or it is broken.
    pub hung_up: bool,
}

/// The descriptors that one poll(2) waits for; made anew each round from what its owner wants now.
#[derive(Default)]
pub struct PollSet {
    entries: Vec<libc::pollfd>,
}

impl PollSet {
    /// Forgets all entries and keeps the memory.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Waits for `events` (`READ`, `WRITE`, `PEER_ENDED`, or-ed) on `fd`, and always for its hang-up; gives the number to ask
    /// `ready` with. The descriptor must stay open until `wait` has returned: poll(2) answers a closed one with a hang-up, and a
    /// number that was given out again with somebody else's news.
    pub fn watch(&mut self, fd: BorrowedFd, events: i16) -> usize {
        self.entries.push(libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 });
        self.entries.len() - 1
    }

    /// poll(2). `None` waits for ever; a signal ends the wait with nothing ready.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        // Rounded up: a deadline 0.3 ms away must not spin.
        let timeout_ms = timeout.map_or(-1, |t| t.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as libc::c_int);
        // SAFETY: the pointer and the count are those of the vector.
        let result = unsafe { libc::poll(self.entries.as_mut_ptr(), self.entries.len() as libc::nfds_t, timeout_ms) };
        match check(result) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.entries.iter_mut().for_each(|entry| entry.revents = 0);
                Ok(())
            }
            result => result.map(drop),
        }
    }

    /// What the last `wait` found for the entry that `watch` numbered.
    pub fn ready(&self, index: usize) -> Ready {
        let found = self.entries[index].revents;
        let broken = libc::POLLERR | libc::POLLNVAL;
        Ready {
            readable: found & (libc::POLLIN | libc::POLLHUP | broken) != 0,
            writable: found & (libc::POLLOUT | broken) != 0,
            hung_up: found & (libc::POLLHUP | libc::POLLRDHUP | broken) != 0,
        }
    }
}

/// Waits for `events` on one descriptor; nothing is ready when the time is over.
pub fn wait_for(fd: BorrowedFd, events: i16, timeout: Option<Duration>) -> io::Result<Ready> {
    let mut set = PollSet::default();
    set.watch(fd, events);
    set.wait(timeout)?;
    Ok(set.ready(0))
}

/// Tells when a descriptor changes, where poll(2) would only say again and again how it is.
#[derive(Debug)]
pub struct Changes {
    epoll: OwnedFd,
}

impl Changes {
    /// epoll_create1(2) and epoll_ctl(2) with EPOLLET: watches whether `fd` can be written to and whether it is hung up. EPERM for a
    /// regular file. `fd` must stay open as long as this.
    pub fn of(fd: BorrowedFd) -> io::Result<Changes> {
        // SAFETY: the descriptor is new and owned at once; the kernel reads one event.
        unsafe {
            let epoll = OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?);
            let mut event = libc::epoll_event { events: (libc::EPOLLOUT | libc::EPOLLET) as u32, u64: 0 };
            check(libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &mut event))?;
            Ok(Changes { epoll })
        }
    }

    /// epoll_wait(2) without waiting: forgets what has changed until now.
    pub fn forget(&self) -> io::Result<()> {
        // SAFETY: the kernel fills one event.
        retry(|| unsafe {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            check(libc::epoll_wait(self.epoll.as_raw_fd(), &mut event, 1, 0))
        })
        .map(drop)
    }

    /// Readable when something has changed.
    pub fn watch(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
