//! Rows about files: bulk both ways, and the smallest request.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
#[cfg(feature = "metadata")]
use std::path::Path;
use std::path::PathBuf;

use crate::agent::Agent;
use crate::floor::{CHUNK, OneProcessor, Partner};
use crate::{Measured, Skipped, alternate, latency, throughput};

const FILE_BYTES: u64 = 256 << 20;
const BULK_ROUNDS: usize = 9;

const STATS: u32 = 200;
const STAT_ROUNDS: usize = 50;

/// Linux's numbers, as they travel.
const O_RDONLY: i32 = 0;
const O_WRONLY: i32 = 1;

/// A file in memory that goes with this.
pub struct MemoryFile(PathBuf);

impl MemoryFile {
    pub fn new(name: &str) -> Result<MemoryFile, Skipped> {
        let path = PathBuf::from(format!("/dev/shm/lodger-bench-{}-{name}", std::process::id()));
        let file = MemoryFile(path);
        File::create(&file.0).map_err(|error| Skipped(format!("/dev/shm: {error}")))?;
        Ok(file)
    }

    /// Where it is.
    #[cfg(feature = "metadata")]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Fills it, so that it has its pages: a file that grows costs both sides the same, and much.
    pub fn fill(&self) -> Result<(), Skipped> {
        let mut file = File::create(&self.0).map_err(|error| Skipped(format!("/dev/shm: {error}")))?;
        let chunk = vec![7; CHUNK];
        for _ in 0..FILE_BYTES / CHUNK as u64 {
            file.write_all(&chunk).map_err(|error| Skipped(format!("/dev/shm: {error}")))?;
        }
        Ok(())
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

pub fn read(agent: &Agent) -> Result<Measured, Skipped> {
    let file = MemoryFile::new("read")?;
    file.fill()?;
    let mut connection = agent.connect();
    let handle = connection.open_file(file.0.as_os_str().as_bytes(), O_RDONLY, 0).expect("the file is there");
    let mut partner = Partner::start(&format!("send:{}", file.0.display()));
    let mut buffer = vec![0; CHUNK];
    let ours = || {
        let mut total = 0;
        let taken = connection.download(handle, 0, FILE_BYTES as i64, |_, data| {
            total += data.len() as u64;
            Ok(())
        });
        assert!(taken.is_ok() && total == FILE_BYTES);
    };
    let floor = || {
        partner.socket.write_all(&[0]).expect("the partner reads");
        let mut total = 0;
        while total < FILE_BYTES {
            total += partner.socket.read(&mut buffer).expect("the partner writes") as u64;
        }
    };
    Ok(throughput(alternate(BULK_ROUNDS, ours, floor), FILE_BYTES))
}

pub fn write(agent: &Agent) -> Result<Measured, Skipped> {
    let file = MemoryFile::new("write")?;
    file.fill()?;
    let mut connection = agent.connect();
    let handle = connection.open_file(file.0.as_os_str().as_bytes(), O_WRONLY, 0).expect("the file is there");
    let mut partner = Partner::start(&format!("receive:{}", file.0.display()));
    let chunk = vec![9; CHUNK];
    let ours = || {
        let sent = connection.upload(handle, 0, FILE_BYTES as i64, |bytes, _, limit| {
            bytes.extend_from_slice(&chunk[..limit]);
            Ok(limit)
        });
        assert_eq!(sent.ok(), Some(FILE_BYTES as i64));
    };
    let floor = || {
        partner.socket.write_all(&FILE_BYTES.to_ne_bytes()).expect("the partner reads");
        for _ in 0..FILE_BYTES / CHUNK as u64 {
            partner.socket.write_all(&chunk).expect("the partner reads");
        }
        partner.socket.read_exact(&mut [0]).expect("the partner answers");
    };
    Ok(throughput(alternate(BULK_ROUNDS, ours, floor), FILE_BYTES))
}

pub fn stat(agent: &Agent) -> Result<Measured, Skipped> {
    let _one = OneProcessor::choose();
    let agent = Agent::start(agent.binary.clone(), "stat");
    let mut connection = agent.connect();
    let mut partner = Partner::start("echo");
    let ours = || {
        for _ in 0..STATS {
            connection.stat(b"/").expect("the root is there");
        }
    };
    let floor = || {
        for _ in 0..STATS {
            let mut byte = [0];
            partner.socket.write_all(&byte).and_then(|()| partner.socket.read_exact(&mut byte)).expect("an echo");
        }
    };
    Ok(latency(alternate(STAT_ROUNDS, ours, floor), STATS))
}
