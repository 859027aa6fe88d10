//! Terminals: pairs, window sizes and raw mode.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::sys::check;

/// Rows and columns of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    pub rows: u16,
    pub columns: u16,
}

/// A new pseudo-terminal: (master, slave). The slave is opened through the master (TIOCGPTPEER), so that no devpts needs to be
/// mounted at /dev/pts; /dev/ptmx must be there.
pub fn open_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: every descriptor is new and owned here at once; the ioctls take and give plain integers.
    unsafe {
        let master = OwnedFd::from_raw_fd(check(libc::open(c"/dev/ptmx".as_ptr(), flags))?);
        let unlocked: libc::c_int = 0;
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlocked))?;
        let slave = OwnedFd::from_raw_fd(check(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags))?);
        Ok((master, slave))
    }
}

/// ioctl(2) with TIOCGWINSZ. ENOTTY on anything but a terminal.
pub fn window(fd: BorrowedFd) -> io::Result<Window> {
    // SAFETY: the kernel fills the structure.
    unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        check(libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ as _, &raw mut size))?;
        Ok(Window { rows: size.ws_row, columns: size.ws_col })
    }
}

/// ioctl(2) with TIOCSWINSZ: the foreground group gets SIGWINCH when the size changes.
pub fn set_window(fd: BorrowedFd, window: Window) -> io::Result<()> {
    let size = libc::winsize { ws_row: window.rows, ws_col: window.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads the structure.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) }).map(drop)
}

/// Settings of a terminal, as tcgetattr(3) found them.
#[derive(Clone)]
pub struct Settings(libc::termios);

/// tcgetattr(3). ENOTTY on anything but a terminal.
pub fn settings(fd: BorrowedFd) -> io::Result<Settings> {
    // SAFETY: the C library fills the structure.
    unsafe {
        let mut found: libc::termios = std::mem::zeroed();
        check(libc::tcgetattr(fd.as_raw_fd(), &mut found))?;
        Ok(Settings(found))
    }
}

/// tcsetattr(3), at once.
pub fn apply(fd: BorrowedFd, settings: &Settings) -> io::Result<()> {
    // SAFETY: the C library reads the structure.
    check(unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, &settings.0) }).map(drop)
}

impl Settings {
    /// cfmakeraw(3): every byte passes as it is in both directions, and no key makes a signal.
    pub fn raw(&self) -> Settings {
        let mut raw = self.clone();
        // SAFETY: changes the members of a valid structure.
        unsafe { libc::cfmakeraw(&mut raw.0) };
        raw
    }

    /// CLOCAL set, HUPCL and CRTSCTS cleared: modem lines neither end the line nor hold it up, nor are dropped when it is closed.
    pub fn without_modem_lines(&self) -> Settings {
        let mut settings = self.clone();
        settings.0.c_cflag |= libc::CLOCAL | libc::CREAD;
        settings.0.c_cflag &= !(libc::HUPCL | libc::CRTSCTS);
        settings
    }

    /// cfsetspeed(3): the same speed in both directions.
    pub fn with_speed(&self, speed: Speed) -> Settings {
        let mut settings = self.clone();
        // SAFETY: changes the members of a valid structure; every `Speed` is one of the constants that the call knows.
        unsafe { libc::cfsetspeed(&mut settings.0, speed.0) };
        settings
    }

    /// CRTSCTS set: flow control by modem lines.
    pub fn with_rts_cts(&self) -> Settings {
        let mut settings = self.clone();
        settings.0.c_cflag |= libc::CRTSCTS;
        settings
    }
}

/// The speed of a UART.
#[derive(Clone, Copy, Debug)]
pub struct Speed(libc::speed_t);

/// So many bits a second, if terminals have that speed.
pub fn speed(bits_per_second: u32) -> Option<Speed> {
    let constant = match bits_per_second {
        4800 => libc::B4800,
        9600 => libc::B9600,
        19_200 => libc::B19200,
        38_400 => libc::B38400,
        57_600 => libc::B57600,
        115_200 => libc::B115200,
        230_400 => libc::B230400,
        460_800 => libc::B460800,
        500_000 => libc::B500000,
        576_000 => libc::B576000,
        921_600 => libc::B921600,
        1_000_000 => libc::B1000000,
        1_152_000 => libc::B1152000,
        1_500_000 => libc::B1500000,
        2_000_000 => libc::B2000000,
        2_500_000 => libc::B2500000,
        3_000_000 => libc::B3000000,
        3_500_000 => libc::B3500000,
        4_000_000 => libc::B4000000,
        _ => return None,
    };
    Some(Speed(constant))
}
