//! The log on stderr: lines that say whose they are, and a stderr that nobody reads holds nobody up.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::thread;
use std::time::{Duration, Instant};

use env_logger::Target;
use log::{Level, LevelFilter};

use crate::sys::{fd, file};

/// Longest message, in bytes as it is written; the rest is replaced by its length. With what is put around it, a line stays within
/// `PIPE_BUF`, and a pipe takes it as a whole or not at all.
const MESSAGE_MAX: usize = 4000;

/// Longest wait for room on a stderr that takes nothing. The 4 KiB that the driver of a serial line holds are sent in a third of this
/// at 115,200 baud, so such a console loses nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a pipe that poll(2) calls writable takes without blocking, in bytes: POSIX has 512 as the least, Linux a page.
const PIPE_BUF: usize = 4096;

/// The same for terminals, where poll(2) promises one byte only. In practice a serial driver is called writable when at most 256 of
/// its 4,096 bytes wait, and a pseudo-terminal gets back its 64 KiB in blocks of no less than this.
const TERMINAL_PIECE: usize = 256;

/// Pause before another try where poll(2) says that there is room and there is not: for too little of it, or for somebody else.
const PAUSE: Duration = Duration::from_millis(2);

/// Sends log messages to stderr, as lines that say whose they are. That stderr is gone, or that nobody takes what is written there,
/// must not end or stop the agent.
pub fn log_to_stderr(default: &str) {
    let wanted = std::env::var("LODGER_LOG").ok().filter(|text| !text.is_empty());
    let level = wanted.as_deref().unwrap_or(default).parse::<LevelFilter>();
    let mut builder = env_logger::Builder::new();
    // What is logged the log crate alone decides, so that it can be changed later.
    builder.filter_level(LevelFilter::Trace);
    // It tells of each frame, in terms of its own.
    builder.filter_module("tungstenite", LevelFilter::Warn);
    builder.format(|out, record| out.write_all(line(record.level(), record.args()).as_bytes()));
    if let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() {
        builder.target(Target::Pipe(Box::new(Writer::new(Way::to(stderr), PATIENCE))));
    }
    builder.init();
    log::set_max_level(*level.as_ref().unwrap_or(&LevelFilter::Warn));
    if let (Err(_), Some(text)) = (level, wanted) {
        log::warn!("LODGER_LOG: {text} is no level");
    }
}

/// The line of a message, of which parts may come from a peer: nothing in it begins another line or steers a terminal.
fn line(level: Level, message: &fmt::Arguments) -> String {
    let mut text = Message::default();
    // Only a part that cannot be formatted fails, and then the others are worth a line still.
    let _ = text.write_fmt(*message);
    let level = level.as_str().to_ascii_lowercase();
    match text.left_out_bytes {
        0 => format!("lodger {level}: {}\n", text.shown),
        count => format!("lodger {level}: {}… ({count} bytes)\n", text.shown),
    }
}

/// A message as it is shown.
#[derive(Default)]
struct Message {
    shown: String,
    /// Length of what does not fit, before control characters are replaced.
    left_out_bytes: usize,
}

impl fmt::Write for Message {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        for character in piece.chars() {
            let held = self.shown.len();
            match self.left_out_bytes {
                0 if character.is_control() => self.shown.extend(character.escape_default()),
                0 => self.shown.push(character),
                _ => {}
            }
            if self.left_out_bytes > 0 || self.shown.len() > MESSAGE_MAX {
                self.shown.truncate(held);
                self.left_out_bytes += character.len_utf8();
            }
        }
        Ok(())
    }
}

/// Writes lines, each within a time; those that do not fit are lost, and counted.
struct Writer {
    way: Way,
    patience: Duration,
    /// Lines since the last one that was written whole. While there are any, nobody waits.
    lost: u64,
    /// The last line was not written to its end, and the next one must not go on in it.
    is_cut: bool,
}

impl Writer {
    fn new(way: Way, patience: Duration) -> Writer {
        Writer { way, patience, lost: 0, is_cut: false }
    }

    fn put_line(&mut self, line: &[u8]) {
        if self.lost > 0 {
            let note = format!("lodger warn: {} lines of the log were lost\n", self.lost);
            if !self.way.has_room() || !self.put(note.as_bytes()) {
                self.lost += 1;
                return;
            }
            self.lost = 0;
        }
        if !self.put(line) {
            self.lost = 1;
        }
    }

    /// Whether all of it was written.
    fn put(&mut self, line: &[u8]) -> bool {
        let start: &[u8] = if self.is_cut { b"\n" } else { b"" };
        let whole = [start, line].concat();
        let deadline = Instant::now() + self.patience;
        let mut written = 0;
        while written < whole.len() {
            match self.way.write(&whole[written..], deadline) {
                // Whatever is wrong, there is no other place where it could be told.
                Ok(0) | Err(_) => break,
                Ok(count) => written += count,
            }
        }
        if let Some(last) = whole[..written].last() {
            self.is_cut = *last != b'\n';
        }
        written == whole.len()
    }
}

impl Write for Writer {
    /// Takes one line, and never fails.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put_line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How bytes get to stderr without blocking. It is shared with other processes, who would be surprised if it became non-blocking.
enum Way {
    /// A pipe or terminal, opened again: this open file is ours alone, and does not block.
    Own(File),
    /// The same where that cannot be done: there is no /proc, or it belongs to another user. Pieces of at most so many bytes, each
    /// when poll(2) says that there is room, do not block, unless somebody else fills it at the same moment.
    Shared(File, usize),
    /// A socket: send(2) can be told not to block.
    Socket(File),
    /// A regular file or a device, which is always writable: poll(2) is not asked, for not all devices know an answer.
    Plain(File),
}

impl Way {
    fn to(stderr: OwnedFd) -> Way {
        let is_terminal = stderr.is_terminal();
        let stderr = File::from(stderr);
        let Ok(kind) = stderr.metadata().map(|metadata| metadata.file_type()) else { return Way::Plain(stderr) };
        if kind.is_socket() {
            return Way::Socket(stderr);
        }
        if !is_terminal && !kind.is_fifo() {
            return Way::Plain(stderr);
        }
        match file::open_again(stderr.as_fd(), file::O_WRONLY | file::O_NOCTTY | file::O_NONBLOCK) {
            Ok(own) => Way::Own(File::from(own)),
            Err(_) => Way::Shared(stderr, if is_terminal { TERMINAL_PIECE } else { PIPE_BUF }),
        }
    }

    /// Writes a part of the bytes. `WouldBlock` when there is no room for any up to the deadline.
    fn write(&self, bytes: &[u8], deadline: Instant) -> io::Result<usize> {
        let mut was_said_to_have_room = false;
        loop {
            match self.write_now(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
                result => return result,
            }
            if was_said_to_have_room {
                thread::sleep(PAUSE);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            was_said_to_have_room = fd::wait_for(self.fd(), fd::WRITE, Some(left))?.writable;
        }
    }

    fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Way::Own(file) | Way::Plain(file) => fd::write(file.as_fd(), bytes),
            Way::Socket(file) => fd::send_now(file.as_fd(), bytes),
            Way::Shared(file, piece) if self.has_room() => fd::write(file.as_fd(), &bytes[..bytes.len().min(*piece)]),
            Way::Shared(..) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Whether a write would do something now, if only fail.
    fn has_room(&self) -> bool {
        matches!(self, Way::Plain(_))
            || fd::wait_for(self.fd(), fd::WRITE, Some(Duration::ZERO)).is_ok_and(|ready| ready.writable)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Way::Own(file) | Way::Shared(file, _) | Way::Socket(file) | Way::Plain(file) => file.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::sys::tty;

    const SHORT: Duration = Duration::from_millis(30);

    fn shown(text: &str) -> String {
        line(Level::Info, &format_args!("{text}"))
    }

    #[test]
    fn a_message_at_the_limit_is_whole_and_a_longer_one_tells_what_is_missing() {
        let full = "x".repeat(MESSAGE_MAX);
        assert_eq!(shown(&full), format!("lodger info: {full}\n"));
        assert_eq!(shown(&format!("{full}y")), format!("lodger info: {full}… (1 bytes)\n"));
        assert_eq!(shown(&format!("{full}yé\n")), format!("lodger info: {full}… (4 bytes)\n"));
        // A character is there or not, and nothing behind the first that is not.
        let almost = &full[1..];
        assert_eq!(shown(&format!("{almost}éz")), format!("lodger info: {almost}… (3 bytes)\n"));
        assert_eq!(shown(&format!("{almost}\nz")), format!("lodger info: {almost}… (2 bytes)\n"));
    }

    #[test]
    fn the_longest_line_fits_into_a_piece_of_a_pipe() {
        let mut text = Message { shown: "x".repeat(MESSAGE_MAX), left_out_bytes: usize::MAX - 1 };
        text.write_str("y").expect("no limit");
        // Behind the end of a line that was cut.
        let longest = format!("\nlodger error: {}… ({} bytes)\n", text.shown, text.left_out_bytes);
        assert!(longest.len() <= PIPE_BUF, "{}", longest.len());
    }

    #[test]
    fn what_a_peer_says_is_one_line_and_steers_no_terminal() {
        assert_eq!(
            shown("a\nlodger error: forged\r\x1b[2J\u{9b}\t\0"),
            "lodger info: a\\nlodger error: forged\\r\\u{1b}[2J\\u{9b}\\t\\u{0}\n"
        );
        assert_eq!(shown("größer 💡 \\ \"…\""), "lodger info: größer 💡 \\ \"…\"\n");
    }

    /// A pipe of one page: its reader, and its writer as this process may open it again, and as if it may not.
    fn pipe(is_shared: bool) -> (File, Way) {
        let (reader, writer) = fd::pipe().expect("a pipe");
        fd::set_pipe_size(writer.as_fd(), PIPE_BUF).expect("a small one");
        let way = if is_shared { Way::Shared(File::from(writer), PIPE_BUF) } else { Way::to(writer) };
        assert!(is_shared || matches!(way, Way::Own(_)));
        (File::from(reader), way)
    }

    fn socket() -> (File, Way) {
        let (reader, writer) = fd::socket_pair().expect("sockets");
        let way = Way::to(writer);
        assert!(matches!(way, Way::Socket(_)));
        (File::from(reader), way)
    }

    /// A terminal that nobody reads.
    fn terminal(is_shared: bool) -> (File, Way) {
        let (master, slave) = tty::open_pair().expect("a terminal");
        let raw = tty::settings(slave.as_fd()).expect("a terminal").raw();
        tty::apply(slave.as_fd(), &raw).expect("a terminal");
        let shared = File::from(slave.try_clone().expect("a descriptor"));
        let way = if is_shared { Way::Shared(shared, TERMINAL_PIECE) } else { Way::to(slave) };
        assert!(is_shared || matches!(way, Way::Own(_)));
        (File::from(master), way)
    }

    /// Everything up to the line that is `last`.
    fn read_to(reader: &mut File, last: &str) -> String {
        let mut text = Vec::new();
        let mut piece = [0; 1024];
        while !text.ends_with(last.as_bytes()) {
            let count = reader.read(&mut piece).expect("more");
            assert!(count > 0, "no end in {}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&piece[..count]);
        }
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn what_nobody_reads_is_lost_and_counted() {
        const LINES: usize = 5_000;
        for (name, (mut reader, way)) in [
            ("own pipe", pipe(false)),
            ("shared pipe", pipe(true)),
            ("socket", socket()),
            ("own terminal", terminal(false)),
            ("shared terminal", terminal(true)),
        ] {
            let began = Instant::now();
            let mut writer = Writer::new(way, SHORT);
            let whole = |number: usize| format!("lodger info: line {number} {}", "x".repeat(300));
            for number in 0..LINES {
                writer.write_all(format!("{}\n", whole(number)).as_bytes()).expect("it never fails");
            }
            assert!(began.elapsed() < Duration::from_secs(10), "{name}: only the first one that is lost is waited for");
            let lost = writer.lost;
            assert!(lost > 0, "{name}: it is full");
            let was_cut = writer.is_cut;
            // Read behind its back, or the note would have no room.
            let reading = thread::spawn(move || (read_to(&mut reader, "\nlodger info: last\n"), reader));
            while writer.lost > 0 {
                thread::sleep(PAUSE);
                if writer.way.has_room() {
                    writer.put_line(b"lodger info: last\n");
                }
            }
            let (text, _reader) = reading.join().expect("it reads");
            let mut lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.pop(), Some("lodger info: last"), "{name}");
            assert_eq!(lines.pop(), Some(&*format!("lodger warn: {lost} lines of the log were lost")), "{name}");
            if was_cut {
                let cut = lines.pop().expect("a part");
                assert!(whole(lines.len()).starts_with(cut), "{name}: {cut}");
            }
            assert_eq!(lines.len() + lost as usize, LINES, "{name}");
            assert!(lines.iter().enumerate().all(|(number, line)| **line == whole(number)), "{name}");
        }
    }

    #[test]
    fn a_slow_reader_loses_nothing_not_even_of_a_line_in_pieces() {
        for (name, (mut reader, way)) in [
            ("own pipe", pipe(false)),
            ("shared pipe", pipe(true)),
            ("socket", socket()),
            ("own terminal", terminal(false)),
            ("shared terminal", terminal(true)),
        ] {
            let mut writer = Writer::new(way, Duration::from_secs(10));
            let line = format!("{}\n", "x".repeat(500_000));
            let expected = line.clone();
            let reading = thread::spawn(move || {
                let mut text = String::new();
                while text.len() < expected.len() {
                    let mut piece = [0; 4096];
                    let count = reader.read(&mut piece).expect("more");
                    text.push_str(std::str::from_utf8(&piece[..count]).expect("text"));
                    thread::sleep(PAUSE);
                }
                (text == expected, reader)
            });
            writer.put_line(line.as_bytes());
            assert_eq!((writer.lost, writer.is_cut), (0, false), "{name}");
            assert!(reading.join().expect("it reads").0, "{name}");
        }
    }

    #[test]
    fn a_line_that_was_cut_ends_before_the_next_one() {
        let (mut reader, way) = pipe(false);
        let mut writer = Writer::new(way, SHORT);
        // Two pieces, and the pipe has room for one.
        writer.put_line(format!("{}\n", "x".repeat(PIPE_BUF)).as_bytes());
        assert_eq!((writer.lost, writer.is_cut), (1, true));
        let mut part = vec![0; PIPE_BUF];
        reader.read_exact(&mut part).expect("a part");
        writer.put_line(b"next\n");
        assert_eq!(read_to(&mut reader, "next\n"), "\nlodger warn: 1 lines of the log were lost\nnext\n");
        assert_eq!((writer.lost, writer.is_cut), (0, false));
    }

    #[test]
    fn a_stderr_that_is_gone_is_no_error_and_nothing_is_waited_for() {
        for (reader, way) in [pipe(false), pipe(true), socket(), terminal(false)] {
            drop(reader);
            let mut writer = Writer::new(way, Duration::from_secs(60));
            (0..10).for_each(|_| writer.write_all(b"line\n").expect("it never fails"));
            assert_eq!(writer.lost, 10);
        }
    }

    #[test]
    fn others_who_have_stderr_open_see_no_change_of_it() {
        let (_reader, stderr) = fd::pipe().expect("a pipe");
        let way = Way::to(stderr.try_clone().expect("a descriptor"));
        assert!(fd::is_nonblocking(way.fd()).expect("it is open"));
        assert!(!fd::is_nonblocking(stderr.as_fd()).expect("it is open"));
        let null = File::options().write(true).open("/dev/null").expect("a device");
        assert!(matches!(Way::to(null.into()), Way::Plain(_)));
    }
}
