//! Error numbers as text.

use std::io;

/// The texts of the errors that file operations and starts of programs meet most, in the words that Linux users and the clients of
/// the agent protocol know; the C libraries word some of them in other ways (musl: "No file descriptors available" for EMFILE).
const TEXTS: [(i32, &str); 42] = [
    (libc::EPERM, "operation not permitted"),
    (libc::ENOENT, "no such file or directory"),
    (libc::ESRCH, "no such process"),
    (libc::EINTR, "interrupted system call"),
    (libc::EIO, "input/output error"),
    (libc::ENXIO, "no such device or address"),
    (libc::E2BIG, "argument list too long"),
    (libc::ENOEXEC, "exec format error"),
    (libc::EBADF, "bad file descriptor"),
    (libc::ECHILD, "no child processes"),
    (libc::EAGAIN, "resource temporarily unavailable"),
    (libc::ENOMEM, "cannot allocate memory"),
    (libc::EACCES, "permission denied"),
    (libc::EFAULT, "bad address"),
    (libc::EBUSY, "device or resource busy"),
    (libc::EEXIST, "file exists"),
    (libc::EXDEV, "invalid cross-device link"),
    (libc::ENODEV, "no such device"),
    (libc::ENOTDIR, "not a directory"),
    (libc::EISDIR, "is a directory"),
    (libc::EINVAL, "invalid argument"),
    (libc::ENFILE, "too many open files in system"),
    (libc::EMFILE, "too many open files"),
    (libc::ENOTTY, "inappropriate ioctl for device"),
    (libc::ETXTBSY, "text file busy"),
    (libc::EFBIG, "file too large"),
    (libc::ENOSPC, "no space left on device"),
    (libc::ESPIPE, "illegal seek"),
    (libc::EROFS, "read-only file system"),
    (libc::EMLINK, "too many links"),
    (libc::EPIPE, "broken pipe"),
    (libc::ERANGE, "numerical result out of range"),
    (libc::ENAMETOOLONG, "file name too long"),
    (libc::ENOSYS, "function not implemented"),
    (libc::ENOTEMPTY, "directory not empty"),
    (libc::ELOOP, "too many levels of symbolic links"),
    (libc::EOVERFLOW, "value too large for defined data type"),
    (libc::EILSEQ, "invalid or incomplete multibyte or wide character"),
    (libc::EOPNOTSUPP, "operation not supported"),
    (libc::EADDRINUSE, "address already in use"),
    (libc::ECONNREFUSED, "connection refused"),
    (libc::EDQUOT, "disk quota exceeded"),
];

/// What `errno` means, in lower case and without a number.
pub fn text(errno: i32) -> String {
    if let Some((_, known)) = TEXTS.iter().find(|(number, _)| *number == errno) {
        return (*known).to_owned();
    }
    let long = io::Error::from_raw_os_error(errno).to_string();
    long.split(" (os error").next().unwrap_or(&long).to_lowercase()
}

/// The text of an error: by its number where it has one, else its own words.
pub fn describe(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_number_has_the_usual_words_and_an_unknown_one_says_something() {
        assert_eq!(text(2), "no such file or directory");
        assert_eq!(text(24), "too many open files");
        assert!(!text(libc::EKEYEXPIRED).is_empty());
        assert!(!text(libc::EKEYEXPIRED).contains("os error"));
    }
}
