//! The file that an image is written to: its compression and how it comes into its place.

use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;

use ruzstd::encoding::{CompressionLevel, compress};

use crate::mkinitramfs::gzip::Gzip;
use crate::mkinitramfs::{Error, Image};

impl Image {
    /// Writes the archive to a file, compressed as its name says: `.gz`, `.zst`, otherwise not. A regular file appears under its
    /// name when it is whole; to anything else (a pipe, a device) the archive is written directly.
    pub fn write_file(&self, path: &Path) -> Result<(), Error> {
        // A device must not be replaced by a file.
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            let file = File::options().write(true).open(path).map_err(Error::file("open", path))?;
            return self.write_as(path, file);
        }
        // A link to a file stays a link.
        let target = fs::canonicalize(path).unwrap_or(path.to_owned());
        let temporary = temporary_name(&target);
        let file = File::create(&temporary).map_err(Error::file("create", &temporary))?;
        let written = self
            .write_as(path, file)
            .and_then(|()| fs::rename(&temporary, &target).map_err(Error::file("rename", &temporary)));
        if written.is_err() {
            // The first error is the one to report.
            _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Compresses as the path's ending says, into a file that is open already.
    fn write_as(&self, path: &Path, file: File) -> Result<(), Error> {
        let mut output = Output { file, error: None };
        let written = match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => self.write_gzip(path, &mut output),
            Some("zst") => self.write_zstd(path, &mut output),
            _ => self.write(&mut output),
        };
        output.error.map_or(written, |error| Err(Error::file("write", path)(error)))
    }

    fn write_gzip(&self, path: &Path, output: &mut Output) -> Result<(), Error> {
        let mut gzip = Gzip::new(output).map_err(Error::file("write", path))?;
        self.write(&mut gzip)?;
        gzip.finish().map_err(Error::file("write", path))
    }

    /// The compressor takes its input from a reader, so it runs at the other end of a pipe. It makes one frame: the kernel takes the
    /// end of a frame for the end of the archive.
    fn write_zstd(&self, path: &Path, output: &mut Output) -> Result<(), Error> {
        let (from, to) = io::pipe().map_err(Error::file("write", path))?;
        thread::scope(|scope| {
            scope.spawn(move || compress(Input(from), output, CompressionLevel::Fastest));
            // The pipe's end closes with this, so the compressor comes to its end in any case.
            self.write(to)
        })
    }
}

/// The file, for compressors that panic on an error and for an archive that could not tell its errors from those of the files it
/// reads: the first error is kept, and the rest goes nowhere.
struct Output {
    file: File,
    error: Option<io::Error>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.error.is_none() {
            self.error = self.file.write_all(bytes).err();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A pipe's end whose reads a signal does not end: the compressor would panic.
struct Input(PipeReader);

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                length => return length,
            }
        }
    }
}

/// A name beside the file, so that the rename stays on one file system.
fn temporary_name(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}
