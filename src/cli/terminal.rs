//! Our own terminal while a program runs on one in the guest.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use crate::sys::tty::{self, Settings, Window};

/// Size that a program's terminal gets where there is none to take it from: the classic one.
const NO_TERMINAL: Window = Window { rows: 24, columns: 80 };

/// The size of our terminal.
pub fn window() -> Window {
    tty::window(io::stdout().as_fd()).or_else(|_| tty::window(io::stdin().as_fd())).unwrap_or(NO_TERMINAL)
}

/// Our terminal in raw mode, until it is dropped.
#[derive(Debug)]
pub struct Raw {
    before: Settings,
}

impl Raw {
    /// `None` when stdin is no terminal.
    pub fn enter() -> io::Result<Option<Raw>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tty::settings(stdin.as_fd())?;
        tty::apply(stdin.as_fd(), &before.raw())?;
        Ok(Some(Raw { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tty::apply(io::stdin().as_fd(), &self.before);
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("Settings")
    }
}
