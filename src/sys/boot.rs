//! What only process 1 does: mounts, device nodes, modules, the host name, the end of the machine.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::ptr;

use crate::sys::file::c_string;
use crate::sys::{check, retry};

pub const NO_SET_UID: u64 = libc::MS_NOSUID;
pub const NO_DEVICES: u64 = libc::MS_NODEV;
pub const NO_PROGRAMS: u64 = libc::MS_NOEXEC;

/// Runs before Rust's own start-up, which aborts when one of the descriptors 0 to 2 is closed and /dev/null cannot be opened. So it
/// is for process 1 when the kernel has no console and /dev is still empty, and the end of process 1 is a kernel panic.
#[used]
#[unsafe(link_section = ".init_array")]
static FILL_STANDARD_DESCRIPTORS: extern "C" fn() = fill_standard_descriptors;

extern "C" fn fill_standard_descriptors() {
    // SAFETY: plain integers and one C string; nothing else runs yet. open(2) gives the lowest free number, so it stops at 3.
    unsafe {
        if libc::getpid() != 1 {
            return;
        }
        loop {
            match libc::open(c"/".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) {
                0..=2 => {}
                beyond => {
                    libc::close(beyond);
                    return;
                }
            }
        }
    }
}

/// mount(2) of a new file system. EBUSY when the same one is there already, ENODEV when the kernel does not know the kind.
pub fn mount(kind: &str, target: impl AsRef<Path>, flags: u64, data: &str) -> io::Result<()> {
    let (kind, target, data) = (c_string(kind)?, c_string(target.as_ref())?, c_string(data)?);
    // SAFETY: four C strings; the kinds of file system that take another structure as data are none of ours.
    let result = unsafe {
        libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), flags as libc::c_ulong, data.as_ptr().cast())
    };
    check(result).map(drop)
}

/// mount(2) with MS_REMOUNT and MS_RDONLY. EBUSY while a file is open for writing.
pub fn remount_read_only(target: impl AsRef<Path>) -> io::Result<()> {
    let target = c_string(target.as_ref())?;
    let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
    // SAFETY: C strings, and null where the call allows it.
    check(unsafe { libc::mount(ptr::null(), target.as_ptr(), ptr::null(), flags, ptr::null()) }).map(drop)
}

/// umount2(2). EBUSY while it is in use.
pub fn unmount(target: impl AsRef<Path>) -> io::Result<()> {
    unmount_with(target.as_ref(), libc::UMOUNT_NOFOLLOW)
}

/// umount2(2) with MNT_DETACH: out of the tree at once, unmounted when its last user is gone.
pub fn detach(target: impl AsRef<Path>) -> io::Result<()> {
    unmount_with(target.as_ref(), libc::UMOUNT_NOFOLLOW | libc::MNT_DETACH)
}

fn unmount_with(target: &Path, flags: libc::c_int) -> io::Result<()> {
    let target = c_string(target)?;
    // SAFETY: the path is a C string.
    check(unsafe { libc::umount2(target.as_ptr(), flags) }).map(drop)
}

/// mknod(2) of a character device; the umask takes from `mode`. EEXIST when the name is taken.
pub fn make_character_device(path: impl AsRef<Path>, mode: u32, major: u32, minor: u32) -> io::Result<()> {
    let path = c_string(path.as_ref())?;
    // SAFETY: the path is a C string, the rest plain integers.
    check(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | mode as libc::mode_t, libc::makedev(major, minor)) })
        .map(drop)
}

/// sethostname(2). EINVAL beyond 64 bytes.
pub fn set_host_name(name: impl AsRef<OsStr>) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: the pointer and the length are those of one string.
    check(unsafe { libc::sethostname(name.as_ptr(), name.as_bytes().len()) }).map(drop)
}

/// finit_module(2) without parameters. EEXIST when the module is loaded.
pub fn load_module(module: BorrowedFd) -> io::Result<()> {
    load_module_with(module, 0)
}

/// finit_module(2) with MODULE_INIT_COMPRESSED_FILE. EINVAL before Linux 5.17, EOPNOTSUPP where the kernel cannot unpack it.
pub fn load_compressed_module(module: BorrowedFd) -> io::Result<()> {
    const MODULE_INIT_COMPRESSED_FILE: libc::c_int = 4;
    load_module_with(module, MODULE_INIT_COMPRESSED_FILE)
}

fn load_module_with(module: BorrowedFd, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: an open descriptor, a C string and an integer.
    retry(|| unsafe {
        let result = libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), flags);
        check(result as libc::c_int).map(drop)
    })
}

/// setsid(2): leader of a new session without a terminal. EPERM for the leader of a group.
pub fn lead_session() -> io::Result<()> {
    // SAFETY: takes nothing.
    check(unsafe { libc::setsid() }).map(drop)
}

/// ioctl(2) with TIOCSCTTY: `terminal` becomes the terminal of the session that we lead, also when another session has it.
pub fn take_terminal(terminal: BorrowedFd) -> io::Result<()> {
    // SAFETY: takes plain integers.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, 1) }).map(drop)
}

/// ioctl(2) with TIOCOUTQ: bytes written to a terminal that its driver has not passed on. ENOTTY on anything else.
pub fn unsent(terminal: BorrowedFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the kernel fills the integer.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCOUTQ as _, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// tcdrain(3): waits until all output has left. Waits for ever on a line that takes nothing.
pub fn drain(terminal: BorrowedFd) -> io::Result<()> {
    // SAFETY: takes a plain integer.
    retry(|| check(unsafe { libc::tcdrain(terminal.as_raw_fd()) })).map(drop)
}

/// kill(2) of -1: every process but process 1 and the caller. ESRCH when there is no other.
pub fn signal_all(signal: i32) -> io::Result<()> {
    // SAFETY: takes plain integers.
    check(unsafe { libc::kill(-1, signal) }).map(drop)
}

/// madvise(2) with MADV_DONTNEED on the code and the constants of this program: each page comes back from its file when it is needed again.
/// The file must not change meanwhile, as is true of every program that runs.
pub fn release_code() -> io::Result<()> {
    // SAFETY: the kernel tells where the program headers of this program are, which are mapped as long as it runs. Only whole pages of
    // segments that are mapped from the file and never written are dropped. Nothing between two segments is: where the linker leaves a page
    // free there, the kernel puts other mappings into the hole, such as the C library's memory of the first thread.
    unsafe {
        let page = libc::getauxval(libc::AT_PAGESZ) as usize;
        let (start, count) = (libc::getauxval(libc::AT_PHDR) as usize, libc::getauxval(libc::AT_PHNUM) as usize);
        if start == 0 || !page.is_power_of_two() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let headers = std::slice::from_raw_parts(start as *const ProgramHeader, count);
        let own = headers.iter().find(|header| header.p_type == libc::PT_PHDR);
        // Without that header the program is where its addresses say.
        let base = own.map_or(0, |header| start.wrapping_sub(header.p_vaddr as usize));
        for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0)
        {
            let first = (base.wrapping_add(header.p_vaddr as usize) + page - 1) & !(page - 1);
            let end = base.wrapping_add((header.p_vaddr + header.p_filesz) as usize) & !(page - 1);
            if first < end {
                check(libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_DONTNEED))?;
            }
        }
    }
    Ok(())
}

#[cfg(target_pointer_width = "64")]
type ProgramHeader = libc::Elf64_Phdr;
#[cfg(target_pointer_width = "32")]
type ProgramHeader = libc::Elf32_Phdr;

/// sync(2).
pub fn sync() {
    // SAFETY: takes nothing.
    unsafe { libc::sync() }
}

/// reboot(2) with LINUX_REBOOT_CMD_CAD_OFF: from now on Ctrl-Alt-Del is SIGINT for process 1. EINVAL in a pid namespace, EPERM without
/// CAP_SYS_BOOT.
pub fn take_ctrl_alt_del() -> io::Result<()> {
    // SAFETY: takes a plain integer.
    check(unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_CAD_OFF) }).map(drop)
}

/// reboot(2) with LINUX_REBOOT_CMD_POWER_OFF. Returns only with an error: EPERM without CAP_SYS_BOOT.
pub fn power_off() -> io::Result<()> {
    // SAFETY: takes a plain integer.
    check(unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_POWER_OFF) }).map(drop)
}

/// reboot(2) with LINUX_REBOOT_CMD_RESTART. Returns only with an error: EPERM without CAP_SYS_BOOT.
pub fn restart() -> io::Result<()> {
    // SAFETY: takes a plain integer.
    check(unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_RESTART) }).map(drop)
}

/// reboot(2) with LINUX_REBOOT_CMD_HALT. Returns only with an error: EPERM without CAP_SYS_BOOT.
pub fn halt() -> io::Result<()> {
    // SAFETY: takes a plain integer.
    check(unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_HALT) }).map(drop)
}

/// Ends QEMU with the status `(code << 1) | 1` through its `isa-debug-exit` device at port 0xf4. Returns when there is none.
/// EPERM without CAP_SYS_RAWIO or under kernel lockdown.
#[cfg(target_arch = "x86_64")]
pub fn debug_exit(code: u32) -> io::Result<()> {
    use std::arch::asm;

    const PORT: u16 = 0xf4;
    const WIDTH_BYTES: libc::c_ulong = 4;
    // SAFETY: ioperm(2) opens exactly these ports to us, otherwise we have returned; reading and writing them touches no memory.
    unsafe {
        let result = libc::syscall(libc::SYS_ioperm, libc::c_ulong::from(PORT), WIDTH_BYTES, 1);
        check(result as libc::c_int)?;
        let found: u32;
        asm!("in eax, dx", in("dx") PORT, out("eax") found, options(nomem, nostack, preserves_flags));
        // The device reads as 0, a port without a device as all ones. Anything else is another device, not to be written to.
        if found == 0 {
            asm!("out dx, eax", in("dx") PORT, in("eax") code, options(nomem, nostack, preserves_flags));
        }
    }
    Ok(())
}

/// The device is one of x86: there is none here.
#[cfg(not(target_arch = "x86_64"))]
pub fn debug_exit(_code: u32) -> io::Result<()> {
    Ok(())
}
