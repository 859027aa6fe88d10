//! A line's ends and what is slow beside it, on real sockets and terminals: what came before an end is still handed on, and nothing that
//! waits stops the rest, costs time or grows.

#[path = "support/client.rs"]
mod client;
#[path = "support/line.rs"]
mod line;
mod support;
#[path = "support/weather.rs"]
mod weather;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lodger::link::acceptor;
use lodger::link::console::Console;
use lodger::link::frame::{Found, Scanner};
use lodger::link::greeting::{Limits, Role};
use lodger::link::opener::{Opener, Wishes};
use lodger::link::session::Link;
use lodger::link::{FRAME_BYTES, FRAME_BYTES_CLEAN, WINDOW_BYTES};
use lodger::proto;
use lodger::server::CONNECTIONS_MAX;
use lodger::stream::Stream;
use lodger::sys::{fd, tty};

use client::{Running, lodger, noise};
use line::{Line, Weather};
use support::{Agent, Folder, PATIENCE, pause, status, wait_until};

/// How long an end of file may take that is due at once. The machine may be busy.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Bytes that a console holds for its reader (`HELD_MAX` of src/link/console.rs).
const HELD_MAX: usize = 1 << 20;

/// The accepting end of a line in this process. It ends with this, whatever the line does.
struct Acceptor {
    line: UnixStream,
    stop: Option<OwnedFd>,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    /// Gives the other end of the line, too.
    fn start(mut accept: impl FnMut(Stream) + Send + 'static) -> (Acceptor, Stream) {
        let (theirs, ours) = UnixStream::pair().expect("a socket pair");
        let (stopped, stop) = fd::pipe().expect("a pipe");
        let (tell, ended) = mpsc::channel();
        let line = ours.try_clone().expect("a descriptor");
        let work = move || {
            let stream = Stream::over(ours);
            let _ = acceptor::serve(&stream, stopped.as_fd(), false, &mut accept);
            let _ = tell.send(());
        };
        let acceptor = Acceptor { line, stop: Some(stop), ended, thread: Some(thread::spawn(work)) };
        (acceptor, Stream::over(theirs))
    }

    /// Lets it end in an orderly way: everything that was said has arrived. Then the line ends.
    fn finish(mut self) {
        drop(self.stop.take());
        self.ended.recv_timeout(PATIENCE).expect("what was said arrives");
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        let _ = self.line.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || thread::panicking(), "the acceptor failed");
        }
    }
}

fn opener(line: Stream) -> Opener {
    Opener::start(line, "the line", Wishes::default()).expect("a thread")
}

fn socket(stream: &Stream) -> UnixStream {
    let socket = UnixStream::from(stream.input().try_clone_to_owned().expect("a descriptor"));
    socket.set_read_timeout(Some(AT_ONCE)).expect("a socket");
    socket.set_write_timeout(Some(AT_ONCE)).expect("a socket");
    socket
}

/// What can be read before the end, and how that came.
fn rest(mut from: impl Read) -> (Vec<u8>, io::Result<()>) {
    let mut all = Vec::new();
    let end = from.read_to_end(&mut all);
    (all, end.map(drop))
}

/// Both directions of an end that is moved by hand; the number of bytes that came on channels.
fn exchange(link: &mut Link, line: BorrowedFd) -> usize {
    link.on_time(Instant::now());
    transmit(link, line);
    receive(link, line, Duration::from_millis(2))
}

/// The direction to that end.
fn receive(link: &mut Link, line: BorrowedFd, patience: Duration) -> usize {
    if fd::wait_for(line, fd::READ, Some(patience)).expect("a poll").readable {
        let mut buffer = [0; 64 << 10];
        let count = fd::read(line, &mut buffer).expect("the line is readable");
        link.receive(&buffer[..count], Instant::now());
    }
    let mut count = 0;
    for channel in link.mux().channels() {
        count += channel.inbound.len();
        channel.consume(channel.inbound.len());
        channel.inbound.clear();
    }
    count
}

fn transmit(link: &mut Link, line: BorrowedFd) {
    let mut out = Vec::new();
    while link.transmit(Instant::now(), &mut out) {}
    let mut left = &out[..];
    while !left.is_empty() {
        assert!(fd::wait_for(line, fd::WRITE, Some(PATIENCE)).expect("a poll").writable);
        left = &left[fd::write(line, left).expect("the line takes it")..];
    }
}

/// Processor time of this thread.
fn thread_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("this kernel counts it");
    let first = stat.split(' ').next().and_then(|number| number.parse().ok());
    Duration::from_nanos(first.expect("nanoseconds"))
}

/// Processor time of the threads of this name, in ticks of 10 ms.
fn ticks_of(name: &str) -> u64 {
    let tasks = fs::read_dir("/proc/self/task").expect("threads").flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let own = stats.filter_map(|stat| stat.split_once(&format!("({name}) ")).map(|(_, rest)| rest.to_owned()));
    own.map(|rest| rest.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>()).sum()
}

#[test]
fn a_stream_opened_on_a_line_that_has_ended_reads_an_end_of_file() {
    for round in 0..100 {
        let (line, other) = UnixStream::pair().expect("a socket pair");
        drop(other);
        let opener = opener(Stream::over(line));
        // At once, and when the end is known.
        for number in 0..2 {
            let stream = opener.open().expect("a local end");
            let (bytes, end) = rest(socket(&stream));
            assert!(bytes.is_empty() && end.is_ok(), "round {round}, stream {number}: {end:?}");
        }
    }
}

#[test]
fn a_command_on_a_socket_that_accepts_and_closes_fails_with_one_line() {
    let folder = Folder::new();
    let path = folder.path("chardev");
    let listener = UnixListener::bind(&path).expect("a socket");
    // It waits for connections for as long as this process lives: the line may end before the command has a channel, or after.
    thread::spawn(move || listener.incoming().for_each(drop));
    let address = format!("serial:{}", path.display());
    for round in 0..10 {
        let start = Instant::now();
        let done = Running::start(lodger(["exec", "--to", &address, "--", "true"])).finish();
        done.bad(125, &["chardev: the line ended"]);
        assert_eq!(done.stderr().lines().count(), 1, "round {round}: {}", done.stderr());
        // A silent agent is given up behind 5 s.
        assert!(start.elapsed() < Duration::from_secs(4), "round {round}: {:?}", start.elapsed());
    }
}

#[test]
fn the_last_words_on_a_line_that_ends_reach_their_reader() {
    for round in 0..20 {
        let (line, other) = UnixStream::pair().expect("a socket pair");
        let opener = opener(Stream::over(line));
        let stream = opener.open().expect("a local end");
        let limits = Limits { frame: FRAME_BYTES, window: WINDOW_BYTES };
        let mut link = Link::new(Role::Acceptor, limits, round, Instant::now());
        let mut id = None;
        wait_until("the channel is open", || {
            exchange(&mut link, other.as_fd());
            id = id.or(link.take_opened());
            id.is_some()
        });
        let channels = link.mux().channels();
        let channel = channels.iter_mut().find(|channel| Some(channel.id) == id).expect("it is open");
        channel.outbound.push(b"the last words");
        channel.end();
        transmit(&mut link, other.as_fd());
        // What the opener says now nobody hears: it may learn of the end by writing.
        drop(other);
        let (bytes, _) = rest(socket(&stream));
        assert_eq!(String::from_utf8_lossy(&bytes), "the last words", "round {round}");
    }
}

#[test]
fn a_slow_reader_gets_all_that_came_before_the_line_ended() {
    let (send, accepted) = mpsc::channel();
    let (acceptor, line) = Acceptor::start(move |stream| send.send(stream).expect("the test waits for it"));
    let opener = opener(line);
    let stream = opener.open().expect("a local end");
    let theirs = accepted.recv_timeout(PATIENCE).expect("it is accepted");
    // More than a socket holds; the rest waits in the opener.
    let sent = noise(1, 360_000);
    socket(&theirs).write_all(&sent).expect("the channel takes it");
    drop(theirs);
    acceptor.finish();
    pause(Duration::from_millis(100));
    let (mut socket, mut got, mut piece) = (socket(&stream), Vec::new(), [0; 8 << 10]);
    loop {
        let count = socket.read(&mut piece).expect("no more than an end");
        if count == 0 {
            break;
        }
        got.extend_from_slice(&piece[..count]);
        thread::sleep(Duration::from_millis(2));
    }
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
}

#[test]
fn all_text_before_the_end_of_a_line_reaches_a_slow_console() {
    let (line, mut other) = UnixStream::pair().expect("a socket pair");
    let (read, write) = fd::pipe().expect("a pipe");
    let wishes = Wishes { console: Some(write), starts: false };
    let opener = Opener::start(Stream::over(line), "the line", wishes).expect("a thread");
    // More than a pipe holds. Its end is the beginning of a frame that never comes.
    let text = [&b"a line of text\r\n".repeat(10_000)[..], b"\0\x09"].concat();
    other.write_all(&text).expect("the line takes it");
    drop(other);
    pause(Duration::from_millis(100));
    drop(opener);
    let (bytes, end) = rest(File::from(read));
    assert!(end.is_ok(), "{end:?}");
    let wanted: Vec<u8> = text.iter().copied().filter(|byte| *byte != 0).collect();
    assert!(bytes == wanted, "{} of {} bytes", bytes.len(), wanted.len());
}

#[test]
fn what_was_said_before_closing_with_unread_input_reaches_the_peer() {
    let (answered, wait) = mpsc::channel();
    let answer = noise(2, 100_000);
    let said = answer.clone();
    let (_acceptor, line) = Acceptor::start(move |stream| {
        let (said, answered) = (said.clone(), answered.clone());
        thread::spawn(move || {
            let mut socket = socket(&stream);
            socket.read_exact(&mut [0]).expect("a byte comes");
            socket.write_all(&said).expect("the channel takes it");
            // Something is left unread.
            let ready = fd::wait_for(stream.input(), fd::READ, Some(AT_ONCE));
            assert!(ready.is_ok_and(|ready| ready.readable));
            drop((socket, stream));
            let _ = answered.send(());
        });
    });
    let opener = opener(line);
    let stream = opener.open().expect("a local end");
    let mut socket = socket(&stream);
    socket.write_all(&[1; 60_000]).expect("the channel takes it");
    wait.recv_timeout(PATIENCE).expect("it is answered");
    // Nobody reads yet, so the news of the closing may overtake.
    pause(Duration::from_millis(100));
    let (bytes, end) = rest(&mut socket);
    assert!(bytes == answer, "{} of {} bytes, then {end:?}", bytes.len(), answer.len());
}

#[test]
fn a_refusal_reaches_a_client_that_has_spoken_already() {
    for round in 0..20 {
        let (_acceptor, line) = Acceptor::start(|stream| proto::refuse(&stream, None, "no place"));
        let opener = opener(line);
        let stream = opener.open().expect("a local end");
        let mut socket = socket(&stream);
        socket.write_all(b"a greeting that travels with the first request").expect("the channel takes it");
        let (bytes, end) = rest(&mut socket);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("no place"), "round {round}: {text:?}, then {end:?}");
    }
}

#[test]
fn a_command_over_a_line_learns_that_the_agent_is_full() {
    let line = Line::start(Weather::clear());
    let agent = Agent::start_with(|command| _ = command.args(["--listen", &line.guest_address()]));
    let mut clients = Vec::new();
    wait_until("there is no place", || {
        let mut client = UnixStream::connect(&agent.socket).expect("the agent accepts");
        // The beginning of a frame. Whoever says no more is told something only if there is no place.
        client.write_all(b"\xa1").expect("the agent reads");
        let patience = if clients.len() < CONNECTIONS_MAX { Duration::ZERO } else { Duration::from_millis(200) };
        let ready = fd::wait_for(client.as_fd(), fd::READ, Some(patience)).expect("a poll");
        clients.push(client);
        ready.readable
    });
    for _ in 0..5 {
        let mut command = lodger(["exec", "--", "true"]);
        command.env("LODGER_TO", line.host_address());
        Running::start(command).finish().bad(125, &["more connections than the limit"]);
    }
}

#[test]
fn a_console_on_a_terminal_that_nobody_reads_does_not_stop_a_channel() {
    let (mut master, slave) = tty::open_pair().map(|(master, slave)| (File::from(master), slave)).expect("a pty");
    let (acceptor, line) = Acceptor::start(|stream| {
        thread::spawn(move || {
            let mut socket = socket(&stream);
            let _ = io::copy(&mut socket.try_clone().expect("a descriptor"), &mut socket);
        });
    });
    let wishes = Wishes { console: Some(slave), starts: false };
    let opener = Opener::start(line, "the line", wishes).expect("a thread");
    // Many times what a terminal holds, and less than a console. No channel is open yet, so it is between no frames.
    let text: Vec<u8> = (0..2000).flat_map(|number| [vec![b'x'; number % 300], vec![b'\n']].concat()).collect();
    assert!(text.len() < HELD_MAX);
    let mut left = &text[..];
    while !left.is_empty() {
        let ready = fd::wait_for(acceptor.line.as_fd(), fd::WRITE, Some(AT_ONCE)).expect("a poll");
        assert!(ready.writable, "the line stands still with {} bytes of text to come", left.len());
        left = &left[fd::write(acceptor.line.as_fd(), left).expect("the line takes it")..];
    }
    let stream = opener.open().expect("a local end");
    let mut socket = socket(&stream);
    for round in 0..20 {
        let sent = noise(round, 10_000);
        socket.write_all(&sent).expect("the channel takes it");
        let mut back = vec![0; sent.len()];
        socket.read_exact(&mut back).expect("an echo");
        assert!(back == sent, "round {round}");
    }
    // And none of the text is lost when somebody reads after all. The terminal puts a CR before each LF.
    let (mut seen, mut piece) = (Vec::<u8>::new(), [0; 4096]);
    while seen.len() < text.len() {
        let ready = fd::wait_for(master.as_fd(), fd::READ, Some(AT_ONCE)).expect("a poll");
        assert!(ready.readable, "{} of {} bytes of text", seen.len(), text.len());
        let count = master.read(&mut piece).expect("the terminal is there");
        seen.extend(piece[..count].iter().filter(|byte| **byte != b'\r'));
    }
    assert!(seen == text);
}

#[test]
fn a_line_that_takes_nothing_costs_no_processor_time() {
    let (master, slave) = tty::open_pair().expect("a pty");
    let settings = tty::settings(slave.as_fd()).expect("a terminal");
    tty::apply(slave.as_fd(), &settings.raw()).expect("a terminal");
    let (stopped, _stop) = fd::pipe().expect("a pipe");
    let other = slave.try_clone().expect("a descriptor");
    let name = "full line";
    let work = move || {
        let mut accept = |stream: Stream| {
            // It ends when the line does, and its local end with it.
            thread::spawn(move || UnixStream::from(stream.input().try_clone_to_owned()?).write_all(&vec![1; 64 << 20]));
        };
        let _ = acceptor::serve(&Stream::over(slave), stopped.as_fd(), false, &mut accept);
    };
    let server = thread::Builder::new().name(name.into()).spawn(work).expect("a thread");
    // A client by hand that opens a channel, reads for a while, and then no more.
    let limits = Limits { frame: FRAME_BYTES, window: WINDOW_BYTES };
    let mut client = Link::new(Role::Opener, limits, 3, Instant::now());
    client.open(Instant::now());
    let mut count = 0;
    wait_until("much has come", || {
        count += exchange(&mut client, master.as_fd());
        count > 500_000
    });
    // All that is under way comes, and then a kernel that prints makes the line full. What is acknowledged now is followed by more, which
    // finds no room.
    while receive(&mut client, master.as_fd(), Duration::from_millis(10)) > 0 {}
    while fd::write(other.as_fd(), &[b'x'; 1000]).is_ok() {}
    drop(other);
    transmit(&mut client, master.as_fd());
    // Every time-out of what is under way falls into one of these.
    for second in 0..4 {
        let before = ticks_of(name);
        pause(Duration::from_secs(1));
        let used = ticks_of(name) - before;
        assert!(used < 10, "second {second}: {used} ticks of 10 ms in 1 s");
    }
    drop(master);
    server.join().expect("it ends with its line");
}

#[test]
fn a_console_whose_reader_is_always_behind_does_not_grow() {
    // In a process of its own: the other tests need memory, too.
    if std::env::var_os("LODGER_TEST_ALONE").is_none() {
        let name = "a_console_whose_reader_is_always_behind_does_not_grow";
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", name, "--nocapture"]).env("LODGER_TEST_ALONE", "1");
        let done = Running::start(command).finish();
        assert_eq!(done.code, Some(0), "{}{}", done.stdout(), done.stderr());
        return;
    }
    let (read, write) = fd::pipe().expect("a pipe");
    fd::never_block(read.as_fd()).expect("a pipe");
    let mut console = Console::new(write);
    let (piece, mut buffer) = (noise(4, 32 << 10), vec![0; 32 << 10]);
    // So much waits from now on: in the pipe, and behind it.
    (0..10).for_each(|_| console.push(&piece));
    let before = status(std::process::id(), "VmRSS");
    let (mut pushed, mut came) = (0, 0);
    while pushed < 64 << 20 {
        console.push(&piece);
        pushed += piece.len();
        while came < pushed {
            let count = fd::read(read.as_fd(), &mut buffer[..(pushed - came).min(32 << 10)]).expect("some waits");
            let at = came % piece.len();
            assert!(buffer[..count] == [&piece[at..], &piece].concat()[..count], "behind {came} bytes");
            came += count;
        }
        assert!(console.waits().is_some(), "the reader is not behind");
    }
    let grown_kb = status(std::process::id(), "VmRSS").saturating_sub(before);
    assert!(grown_kb < (4 * HELD_MAX as u64) >> 10, "{grown_kb} kB more behind {} MiB of text", pushed >> 20);
}

/// The beginning of a frame that declares so many bytes, and then this again and again.
fn hostile(declared: usize, filler: &[u8], length: usize) -> Vec<u8> {
    // COBS: its first zero byte is the sixth, behind the length. No byte of it is 0 here.
    let [low, high] = (declared as u16 | 0x0101).to_le_bytes();
    let mut segment = vec![0, 6, 0xfe, 9, low, high, 2];
    segment.extend(filler.iter().cycle().take(length));
    segment.push(0);
    segment
}

#[test]
fn a_hostile_segment_costs_little() {
    let length = FRAME_BYTES_CLEAN + 1000;
    let kernel_line = b"[    1.000000] x\n";
    let fillers: [&[u8]; 8] =
        [b"\n", b"a\n", b"\x01\n", b"[", b"[\n", b"[1.000000] ", kernel_line, b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n"];
    for filler in fillers {
        for declared in [0, 100, length / 2, length - 1100, length - 300, length - 100] {
            let bytes = hostile(declared, filler, length - 10);
            let mixed = hostile(declared, filler, length / 2);
            let mixed = [&mixed[..mixed.len() - 1], &b"\x01\n".repeat(length / 4 - 10), b"\0"].concat();
            for bytes in [bytes, mixed] {
                let what = format!("{:?}, {declared} declared", String::from_utf8_lossy(filler));
                // A shared processor is slow at times.
                let costs = [(); 3].map(|()| {
                    let mut text = 0;
                    let start = thread_time();
                    Scanner::new(FRAME_BYTES_CLEAN).scan(&bytes, &mut |found| {
                        text += if let Found::Text(bytes) = found { bytes.len() } else { 0 };
                    });
                    let cost = thread_time() - start;
                    assert_eq!(text, bytes.len() - 2, "{what}");
                    cost
                });
                let cost = costs.into_iter().min().expect("some");
                assert!(cost < Duration::from_millis(100), "{what}: {costs:?}");
            }
        }
    }
}
