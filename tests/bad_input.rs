//! Peers that send nonsense, ask for too much or do not listen: the agent says why, ends that connection and no other, and is afterwards
//! what it was before.

mod support;

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use ciborium::Value;
use lodger::sys::file::{O_CREAT, O_WRONLY};
use lodger::wire::ITEM_MAX;
use lodger::wire::file::{FileRequest, FileResponse, op};
use lodger::wire::frame::{Frame, Hello};
use lodger::wire::scan::{DEPTH_MAX, ELEMENTS_MAX};

use support::{Agent, Folder, PATIENCE, Peer, descriptors, status, wait_until};

const ENOENT: u32 = 2;
const EINVAL: u32 = 22;
const EMFILE: u32 = 24;
const ENOSPC: u32 = 28;
const ENAMETOOLONG: u32 = 36;

/// KiB by which a debug build may grow for good: what the allocator keeps for the threads of some connections.
const GROWTH_KIB: u64 = 3 << 10;

/// An agent, and what it held before it was treated badly.
struct Victim {
    agent: Agent,
    descriptors: usize,
    resident_kib: u64,
}

impl Victim {
    fn start() -> Victim {
        // Its directory is its own: what becomes of a garbled request must not meet a file of anybody.
        let away = std::env::temp_dir();
        // Pinned: noise may begin as other protocols do.
        let agent = Agent::start_at(",proto=agentproto", |command| {
            command.current_dir(away).env("LODGER_LOG", "off");
            // The GNU C library would learn from large buffers to keep the next ones; musl, which is shipped, does not learn.
            command.env("MALLOC_MMAP_THRESHOLD_", "131072");
        });
        let victim = Victim { agent, descriptors: 0, resident_kib: 0 };
        (0..10).for_each(|_| victim.still_serves());
        // The connections of the starting up have gone when nothing but the listener and the signals are left.
        let mut held = descriptors(victim.agent.pid());
        wait_until("the agent is at rest", || {
            std::thread::sleep(Duration::from_millis(20));
            let before = std::mem::replace(&mut held, descriptors(victim.agent.pid()));
            before == held && status(victim.agent.pid(), "Threads") == 1
        });
        Victim { descriptors: held, resident_kib: status(victim.agent.pid(), "VmRSS"), ..victim }
    }

    fn still_serves(&self) {
        let mut peer = self.agent.connect();
        assert_eq!(ask(&mut peer, stat("/")).errno, 0);
    }

    fn is_as_before(&self) {
        self.still_serves();
        let pid = self.agent.pid();
        wait_until("all connections have ended", || status(pid, "Threads") == 1);
        assert_eq!(descriptors(pid), self.descriptors);
        let resident = status(pid, "VmRSS");
        assert!(resident < self.resident_kib + GROWTH_KIB, "from {} to {resident} KiB", self.resident_kib);
    }

    /// Sends bytes on a connection that has come so far, ends that direction, and gives all items until the agent has closed.
    fn reaction(&self, stage: Stage, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut peer = match stage {
            Stage::First => self.agent.connect(),
            Stage::Files => {
                let mut peer = self.agent.connect();
                assert_eq!(ask(&mut peer, stat("/")).errno, 0);
                peer
            }
            Stage::Mixed => self.agent.hello(),
        };
        let mut socket = peer.socket.try_clone().expect("another handle");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // The agent may have closed by then.
                let _ = socket.write_all(bytes);
                let _ = socket.shutdown(Shutdown::Write);
            });
            std::iter::from_fn(|| peer.receive()).collect()
        })
    }

    /// The text of the one Error frame that bytes are answered with.
    fn refusal(&self, stage: Stage, bytes: &[u8]) -> String {
        let items = self.reaction(stage, bytes);
        match items.iter().map(|item| Frame::decode(item)).collect::<Vec<_>>().as_slice() {
            [Ok(Frame::Error { error })] => error.clone(),
            other => panic!("no single Error frame but {other:?}"),
        }
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug)]
enum Stage {
    First,
    Files,
    Mixed,
}

const STAGES: [Stage; 3] = [Stage::First, Stage::Files, Stage::Mixed];

fn stat(path: &str) -> FileRequest<'static> {
    FileRequest { id: 1, op: op::STAT, path: path.as_bytes().to_vec(), ..FileRequest::default() }
}

fn ask(peer: &mut Peer, request: FileRequest) -> FileResponse<'static> {
    answer(peer.ask(&Frame::FileOp(request)))
}

fn answer(item: Vec<u8>) -> FileResponse<'static> {
    ciborium::from_reader::<Value, _>(&item[..]).expect("an independent decoder reads the item");
    match Frame::decode(item.leak()) {
        Ok(Frame::FileResp(response)) => response,
        other => panic!("no answer: {other:?}"),
    }
}

fn say(text: &str) {
    // Not eprintln!: the harness would keep it from sight.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Marsaglia's xorshift: the same numbers on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

// Bytes that are no frames

#[test]
fn random_bytes_end_their_connection_only() {
    const SEED: u64 = 0x5eed_1001;
    let victim = Victim::start();
    let mut random = Random(SEED);
    for round in 0..240 {
        let length = 1 + random.below(600);
        let bytes = random.bytes(length);
        let stage = STAGES[round % 3];
        let last = victim.reaction(stage, &bytes);
        assert!(last.len() <= 2, "seed {SEED:#x}, round {round}: {} items", last.len());
    }
    victim.is_as_before();
}

#[test]
fn garbled_requests_end_their_connection_or_are_answered() {
    const SEED: u64 = 0x5eed_1002;
    let victim = Victim::start();
    let mut random = Random(SEED);
    let request = FileRequest { offset: 70_000, size: 300, ..stat("lodger-missing/name") };
    let frame = Frame::FileOp(request).to_bytes();
    for round in 0..300 {
        let mut bytes = frame.repeat(3);
        for _ in 0..=random.below(3) {
            let place = random.below(frame.len());
            bytes[place] = random.next() as u8;
        }
        let items = victim.reaction(STAGES[round % 3], &bytes);
        assert!(items.len() <= 4, "seed {SEED:#x}, round {round}: {} items", items.len());
        for item in &items {
            ciborium::from_reader::<Value, _>(&item[..]).unwrap_or_else(|error| panic!("seed {SEED:#x}: {error}"));
        }
    }
    victim.is_as_before();
}

#[test]
fn a_frame_that_is_cut_off_gets_no_answer() {
    let victim = Victim::start();
    let frame = Frame::FileOp(stat("/")).to_bytes();
    for cut in 1..frame.len() {
        assert_eq!(victim.reaction(Stage::Files, &frame[..cut]), Vec::<Vec<u8>>::new(), "cut at {cut}");
        let items = victim.reaction(Stage::First, &frame[..cut]);
        assert!(matches!(Frame::decode(&items[0]), Ok(Frame::Log(log)) if log.level == 8), "as upstream says it");
        assert_eq!(items.len(), 1);
    }
    victim.is_as_before();
}

#[test]
fn what_is_no_cbor_is_refused_with_its_reason() {
    let victim = Victim::start();
    let rows: [(&[u8], &str); 5] = [
        (b"\xff", "break outside of an item"),
        (b"\xa1\x1c", "reserved head"),
        (b"\xa1\x5f\x61a\xff", "a string of open length holds something else than its pieces"),
        (b"\xbf\x01\xff", "map with a key and no value"),
        (b"\x81\xff", "break in an item of closed length"),
    ];
    for (bytes, why) in rows {
        let why = format!("item is not CBOR: {why}");
        for stage in STAGES.into_iter().filter(|stage| !matches!(stage, Stage::First)) {
            assert_eq!(victim.refusal(stage, bytes), why, "{stage:?}");
        }
        let items = victim.reaction(Stage::First, bytes);
        assert!(matches!(Frame::decode(&items[0]), Ok(Frame::Log(log)) if log.level == 8 && log.message == why));
        assert_eq!(items.len(), 1, "upstream says it in a Log frame");
    }
    victim.is_as_before();
}

#[test]
fn a_first_frame_that_names_no_job_gets_one_log_frame() {
    let victim = Victim::start();
    let frames: [&[u8]; 7] =
        [b"\xa0", b"\xf6", b"\x01", b"\xa1\x61t\x18\x63", b"\xa1\x61t\x08", b"\xa1\x61t\x0b", b"\xa1\x61t\x04"];
    for bytes in frames {
        let items = victim.reaction(Stage::First, &[bytes, &Frame::FileOp(stat("/")).to_bytes()].concat());
        assert_eq!(items.len(), 1, "{bytes:x?}");
        assert!(matches!(Frame::decode(&items[0]), Ok(Frame::Log(log)) if log.level == 8), "{bytes:x?}");
    }
    victim.is_as_before();
}

/// A FileOp frame with one member more, which stands before the others so that it is the one that counts.
fn request_with(key: &str, value: &Value) -> Vec<u8> {
    let members =
        [(Value::from(key), value.clone()), ("id".into(), 1.into()), ("op".into(), 7.into()), ("p".into(), "/".into())];
    let frame = Value::Map(vec![("t".into(), 11.into()), ("fop".into(), Value::Map(members.to_vec()))]);
    let mut bytes = Vec::new();
    ciborium::into_writer(&frame, &mut bytes).expect("bytes");
    bytes
}

#[test]
fn a_member_of_the_wrong_type_ends_the_connection() {
    let victim = Victim::start();
    let numbers = ["id", "op", "fl", "mo", "uid", "gid", "h", "of", "sz", "at", "mt"];
    let not_numbers =
        [Value::from("1"), Value::Bytes(vec![1]), Value::Float(1.0), Value::Bool(true), Value::Array(vec![])];
    let not_texts = [Value::from(1), Value::Bytes(vec![47]), Value::Bool(false), Value::Map(vec![])];
    let not_bytes = [Value::from("x"), Value::from(1), Value::Array(vec![256.into()]), Value::Bool(true)];
    let not_truths = [Value::from(1), Value::from("true")];
    let rows = numbers.iter().map(|key| (*key, &not_numbers[..]));
    let texts = ["p", "np"].map(|key| (key, &not_texts[..]));
    let bytes = ["d", "pb", "npb"].map(|key| (key, &not_bytes[..]));
    let truths = ["nf", "pg"].map(|key| (key, &not_truths[..]));
    for (key, values) in rows.chain(texts).chain(bytes).chain(truths) {
        for value in values {
            let why = victim.refusal(Stage::Files, &request_with(key, value));
            assert!(why.starts_with("frame cannot be read: "), "{key} as {value:?}: {why}");
        }
        let items = victim.reaction(Stage::Files, &request_with(key, &Value::Null));
        assert_eq!(items.len(), 1, "nothing is a zero in {key}");
        answer(items[0].clone());
    }
    let ranges = [("op", 256i64), ("id", 1 << 32), ("fl", 1 << 31), ("mo", -1), ("h", -1), ("uid", 1 << 32)];
    for (key, value) in ranges {
        assert_eq!(
            victim.refusal(Stage::Mixed, &request_with(key, &value.into())),
            "frame cannot be read: number out of range"
        );
    }
    // {"t": 11, "fop": {"p": "\xff"}}
    let why = victim.refusal(Stage::Files, b"\xa2\x61t\x0b\x63fop\xa1\x61p\x61\xff");
    assert_eq!(why, "frame cannot be read: text is not UTF-8");
    victim.is_as_before();
}

// Too much

#[test]
fn a_claim_of_4_gib_is_refused_before_anything_is_kept() {
    const FOUR_GIB: u64 = 1 << 32;
    let victim = Victim::start();
    let peak = status(victim.agent.pid(), "VmHWM");
    let head = |major: u8, claim: u64| [&[major << 5 | 27][..], &claim.to_be_bytes()].concat();
    for stage in STAGES {
        for claim in [FOUR_GIB, u64::MAX] {
            for string in [2, 3] {
                let end = claim.saturating_add(9);
                let expected = format!("item of {end} bytes is over the limit of {ITEM_MAX} bytes");
                assert_eq!(victim.refusal(stage, &head(string, claim)), expected);
                let end = claim.saturating_add(12);
                let expected = format!("item of {end} bytes is over the limit of {ITEM_MAX} bytes");
                assert_eq!(victim.refusal(stage, &[b"\xa1\x61d", &head(string, claim)[..]].concat()), expected);
            }
            for list in [4, 5] {
                let expected = format!("list or map of {claim} elements is over the limit of {ELEMENTS_MAX}");
                assert_eq!(victim.refusal(stage, &head(list, claim)), expected);
                assert_eq!(victim.refusal(stage, &[b"\xa1\x61d", &head(list, claim)[..]].concat()), expected);
            }
        }
    }
    let grown = status(victim.agent.pid(), "VmHWM").saturating_sub(peak);
    assert!(grown < 2 << 10, "the agent grew by {grown} KiB");
    victim.is_as_before();
}

#[test]
fn a_nested_item_at_the_depth_limit_passes_and_one_level_more_does_not() {
    let victim = Victim::start();
    // {"t": 11, "zz": [[…]], "fop": {"op": 7, "p": "/"}}; the frame itself is a level.
    let frame = |levels: usize| {
        [b"\xa3\x61t\x0b\x62zz", &vec![0x81; levels - 2][..], b"\x80\x63fop\xa2\x62op\x07\x61p\x61/"].concat()
    };
    let expected = format!("item is nested over the limit of {DEPTH_MAX} levels");
    for stage in STAGES {
        let items = victim.reaction(stage, &frame(DEPTH_MAX));
        assert_eq!(answer(items[0].clone()).errno, 0);
        assert_eq!(victim.refusal(stage, &frame(DEPTH_MAX + 1)), expected);
        for level in [&b"\x81"[..], b"\xa1\x61a", b"\xc1", b"\x9f", b"\xbf\x61a"] {
            assert_eq!(victim.refusal(stage, &level.repeat(10_000)), expected);
        }
    }
    victim.is_as_before();
}

#[test]
fn items_without_an_end_are_refused_at_the_limits() {
    let victim = Victim::start();
    let too_many = format!("list or map of {} elements is over the limit of {ELEMENTS_MAX}", ELEMENTS_MAX + 1);
    let count = ELEMENTS_MAX as usize + 1;
    for stage in STAGES {
        assert_eq!(victim.refusal(stage, &[b"\x9f", &vec![0; count][..]].concat()), too_many);
        assert_eq!(victim.refusal(stage, &[b"\xbf", &vec![0; 2 * count][..]].concat()), too_many);
        for pieces in [[&b"\x5f"[..], &[0x43, 1, 2, 3].repeat(1 << 20)], [b"\x7f", &b"\x63abc".repeat(1 << 20)]] {
            let why = victim.refusal(stage, &[b"\xa1\x61d", &pieces.concat()[..]].concat());
            assert!(why.ends_with(&format!("is over the limit of {ITEM_MAX} bytes")), "{why}");
        }
        // Empty pieces make an item long, too.
        let empty = [b"\xa1\x61d\x5f", &vec![0x40; ITEM_MAX][..]].concat();
        assert!(victim.refusal(stage, &empty).starts_with("item of 4194305 bytes"));
    }
    victim.is_as_before();
}

#[test]
fn lists_at_the_element_limit_are_read() {
    let victim = Victim::start();
    let list = |count: u64| Value::Array(vec![7.into(); count as usize]);
    // Numbers are taken for bytes, as upstream takes them.
    let items = victim.reaction(Stage::Files, &request_with("d", &list(ELEMENTS_MAX)));
    assert_eq!(answer(items[0].clone()).errno, 0);
    let why = victim.refusal(Stage::Files, &request_with("d", &list(ELEMENTS_MAX + 1)));
    assert_eq!(why, format!("list or map of {} elements is over the limit of {ELEMENTS_MAX}", ELEMENTS_MAX + 1));
    let keys = |count: u64| Value::Map((0..count).map(|key| (key.to_string().into(), Value::Null)).collect());
    let items = victim.reaction(Stage::Files, &request_with("zz", &keys(ELEMENTS_MAX)));
    assert_eq!(answer(items[0].clone()).errno, 0);
    victim.refusal(Stage::Files, &request_with("zz", &keys(ELEMENTS_MAX + 1)));
    victim.is_as_before();
}

#[test]
fn a_peer_with_much_under_way_still_reads_why_it_is_refused() {
    let victim = Victim::start();
    let claim = b"\xa1\x61d\x5a\x00\x40\x00\x00";
    let expected = format!("item of {} bytes is over the limit of {ITEM_MAX} bytes", 8 + ITEM_MAX);
    for stage in STAGES {
        for more in [0, 1 << 10, 6 << 20] {
            let bytes = [&claim[..], &vec![1; more]].concat();
            let mut peer = match stage {
                Stage::Mixed => victim.agent.hello(),
                _ => victim.agent.connect(),
            };
            let mut socket = peer.socket.try_clone().expect("another handle");
            std::thread::scope(|scope| {
                let sent = scope.spawn(move || {
                    let result = socket.write_all(&bytes);
                    let _ = socket.shutdown(Shutdown::Write);
                    result
                });
                let item = peer.receive().expect("an Error frame");
                assert_eq!(Frame::decode(&item).expect("a frame"), Frame::Error { error: expected.clone() });
                // Not with `receive`, which takes a reset for an end.
                assert_eq!(peer.socket.read(&mut [0; 16]).expect("an end and no reset"), 0);
                sent.join().expect("no panic").expect("all was taken");
            });
        }
    }
    victim.is_as_before();
}

#[test]
fn answers_to_what_came_before_the_nonsense_are_delivered() {
    let victim = Victim::start();
    let requests: Vec<u8> = (0..100).flat_map(|_| Frame::FileOp(stat("/")).to_bytes()).collect();
    let items = victim.reaction(Stage::Files, &[&requests[..], b"\xff", &requests].concat());
    assert_eq!(items.len(), 101);
    assert!(matches!(Frame::decode(&items[100]), Ok(Frame::Error { .. })), "and nothing behind the Error frame");
    victim.is_as_before();
}

// Slow and silent peers

#[test]
fn requests_may_come_byte_by_byte() {
    let victim = Victim::start();
    let mut peer = victim.agent.connect();
    peer.socket.set_write_timeout(Some(PATIENCE)).expect("a time-out");
    let hello = Frame::Hello(Hello { revision: 1, program: "slow".into(), ..Hello::default() }).to_bytes();
    let bytes =
        [&hello[..], &Frame::FileOp(stat("/")).to_bytes(), &Frame::FileOp(stat("/missing")).to_bytes()].concat();
    for byte in bytes {
        peer.send_bytes(&[byte]);
        std::thread::yield_now();
    }
    assert!(matches!(Frame::decode(&peer.receive().expect("a frame")), Ok(Frame::Hello(_))));
    assert_eq!(answer(peer.receive().expect("an answer")).errno, 0);
    assert_eq!(answer(peer.receive().expect("an answer")).errno, ENOENT);
    drop(peer);
    victim.is_as_before();
}

/// Sends the same bytes until the agent takes no more of them.
fn flood(socket: &mut UnixStream, bytes: &[u8]) {
    socket.set_write_timeout(Some(Duration::from_millis(300))).expect("a time-out");
    let piece = bytes.repeat((64 << 10) / bytes.len() + 1);
    for _ in 0..1000 {
        match socket.write_all(&piece) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the agent takes requests without end although nobody reads its answers");
}

#[test]
fn a_client_that_never_reads_costs_a_bounded_amount() {
    let victim = Victim::start();
    let pid = victim.agent.pid();
    let zeros = FileRequest { flags: 0, ..FileRequest { op: op::OPEN, ..stat("/dev/zero") } };
    let read =
        |size| Frame::FileOp(FileRequest { op: op::READ_AT, handle: 1, size, ..FileRequest::default() }).to_bytes();
    let floods = [
        read(4 << 20),
        read(1),
        Frame::FileOp(stat("/")).to_bytes(),
        Frame::FileOp(stat(&"x".repeat(3000))).to_bytes(),
        Frame::FileOp(FileRequest { op: op::READ_DIR, paged: true, ..stat("/proc") }).to_bytes(),
        Frame::FileOp(FileRequest { op: op::READ_DIR, ..stat("/proc") }).to_bytes(),
        Frame::PathQuery { paths: vec![b"/bin".to_vec()] }.to_bytes(),
    ];
    for bytes in &floods {
        let before = status(pid, "VmRSS");
        let mut peer = victim.agent.hello();
        assert_eq!(ask(&mut peer, zeros.clone()).handle, 1);
        flood(&mut peer.socket, bytes);
        let grown = status(pid, "VmRSS").saturating_sub(before);
        assert!(grown < 8 << 10, "{grown} KiB for {:x?}", &bytes[..bytes.len().min(40)]);
        victim.still_serves();
        assert!(descriptors(pid) > victim.descriptors);
        drop(peer);
        wait_until("the connection is closed", || status(pid, "Threads") == 1);
    }
    victim.is_as_before();
}

// Names and resources

#[test]
fn names_that_cannot_be_are_refused_by_every_operation() {
    let victim = Victim::start();
    let folder = Folder::new();
    std::fs::write(folder.path("there"), "text").expect("a file");
    let there = folder.path("there").as_os_str().as_bytes().to_vec();
    let mut peer = victim.agent.connect();
    let by_path = [
        op::OPEN,
        op::CREATE,
        op::OPEN_FILE,
        op::STAT,
        op::LSTAT,
        op::READ_DIR,
        op::MKDIR,
        op::MKDIR_ALL,
        op::REMOVE,
        op::CHMOD,
        op::TRUNCATE,
        op::READLINK,
        op::CHOWN,
        op::CHTIMES,
        op::STATFS,
    ];
    let inside = |name: &[u8]| [folder.0.as_os_str().as_bytes(), b"/", name].concat();
    let rows = [
        (inside(b"a\0b"), EINVAL),
        (b"\0".to_vec(), EINVAL),
        (Vec::new(), ENOENT),
        (inside(&b"x/".repeat(2500)), ENAMETOOLONG),
        (inside(&[b'x'; 256]), ENAMETOOLONG),
    ];
    for (path, errno) in &rows {
        for op in by_path {
            let answer = ask(&mut peer, FileRequest { op, path: path.clone(), ..FileRequest::default() });
            assert_eq!(answer.errno, *errno, "operation {op} of {} bytes", path.len());
        }
        for op in [op::RENAME, op::LINK] {
            for (path, new_path) in [(path, &there), (&there, path)] {
                let (path, new_path) = (path.clone(), new_path.clone());
                let answer = ask(&mut peer, FileRequest { op, path, new_path, ..FileRequest::default() });
                assert_eq!(answer.errno, *errno, "operation {op}");
            }
        }
        let new_path = path.clone();
        let symlink = FileRequest { op: op::SYMLINK, new_path, path: there.clone(), ..FileRequest::default() };
        assert_eq!(ask(&mut peer, symlink).errno, *errno);
    }
    assert_eq!(std::fs::read(folder.path("there")).expect("the file"), b"text");
    assert_eq!(std::fs::read_dir(&folder.0).expect("the folder").count(), 1);
    drop(peer);
    victim.is_as_before();
}

/// The command, run by a shell that does something first.
fn wrap(command: &mut Command, shell: &str, script: &str) {
    let words: Vec<OsString> =
        [command.get_program()].into_iter().chain(command.get_args()).map(OsString::from).collect();
    let (program, options) = shell.split_once(' ').unwrap_or((shell, ""));
    *command = Command::new(program);
    command.args(options.split_whitespace()).arg("-c").arg(format!("{script} && exec \"$@\"")).arg("sh").args(words);
    command.stdin(Stdio::null());
}

#[test]
fn as_root_a_full_file_system_tells_how_much_was_written() {
    let folder = Folder::new();
    let mount = format!("mount -t tmpfs -o size=64k lodger {}", folder.0.display());
    let tried = Command::new("unshare").args(["-m", "sh", "-c", &mount]).stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        return say("skipped: only root mounts a small file system");
    }
    let agent = Agent::start_with(|command| wrap(command, "unshare -m sh", &mount));
    let mut peer = agent.connect();
    let path = folder.path("f").as_os_str().as_bytes().to_vec();
    let create =
        FileRequest { op: op::OPEN_FILE, flags: O_CREAT | O_WRONLY, mode: 0o600, path, ..FileRequest::default() };
    let handle = ask(&mut peer, create).handle;
    let data = vec![1; 100 << 10];
    let write = FileRequest { op: op::WRITE_AT, handle, data: data.into(), ..FileRequest::default() };
    let written = ask(&mut peer, write.clone());
    assert_eq!((written.errno, written.count, written.error.as_str()), (ENOSPC, 64 << 10, "no space left on device"));
    let offset = 64 << 10;
    let written = ask(&mut peer, FileRequest { offset, ..write });
    assert_eq!((written.errno, written.count), (ENOSPC, 0));
    let fstat = ask(&mut peer, FileRequest { op: op::FSTAT, handle, ..FileRequest::default() });
    assert_eq!(fstat.stat.map(|stat| stat.size), Some(64 << 10));
}

#[test]
fn an_agent_out_of_descriptors_says_so_and_recovers() {
    let agent = Agent::start_with(|command| wrap(command, "sh", "ulimit -n 32"));
    wait_until("the first try has gone", || status(agent.pid(), "Threads") == 1);
    let mut peer = agent.connect();
    let open = || FileRequest { op: op::OPEN, ..stat("/") };
    let mut handles = 0;
    let refused = loop {
        let answer = ask(&mut peer, open());
        if answer.errno != 0 {
            break answer;
        }
        handles += 1;
        assert!(handles < 32, "the limit is not in force");
    };
    assert_eq!((refused.errno, refused.error.as_str()), (EMFILE, "open /: too many open files"));
    let listing = FileRequest { op: op::READ_DIR, ..stat("/") };
    assert_eq!(ask(&mut peer, listing.clone()).errno, EMFILE);
    assert_eq!(ask(&mut peer, stat("/")).errno, 0, "what needs no descriptor is done");
    for handle in 1..=handles {
        assert_eq!(ask(&mut peer, FileRequest { op: op::CLOSE, handle, ..FileRequest::default() }).errno, 0);
    }
    assert_eq!(ask(&mut peer, listing).errno, 0);
    assert_eq!(ask(&mut agent.connect(), stat("/")).errno, 0);
}
