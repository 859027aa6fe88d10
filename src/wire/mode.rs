//! File modes: `st_mode` of Linux on our side, Go's `os.FileMode` in answers, either one in requests.

const TYPE_MASK: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const BLOCK: u32 = 0o060_000;
const CHARACTER: u32 = 0o020_000;
const FIFO: u32 = 0o010_000;
const SOCKET: u32 = 0o140_000;
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;

const GO_DIRECTORY: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_DEVICE: u32 = 1 << 26;
const GO_FIFO: u32 = 1 << 25;
const GO_SOCKET: u32 = 1 << 24;
const GO_SET_UID: u32 = 1 << 23;
const GO_SET_GID: u32 = 1 << 22;
const GO_CHARACTER: u32 = 1 << 21;
const GO_STICKY: u32 = 1 << 20;
const GO_IRREGULAR: u32 = 1 << 19;

/// Pairs of one meaning: Linux's bit, Go's bit.
const SPECIAL: [(u32, u32); 3] = [(SET_UID, GO_SET_UID), (SET_GID, GO_SET_GID), (STICKY, GO_STICKY)];
const TYPES: [(u32, u32); 7] = [
    (REGULAR, 0),
    (DIRECTORY, GO_DIRECTORY),
    (SYMLINK, GO_SYMLINK),
    (BLOCK, GO_DEVICE),
    (CHARACTER, GO_DEVICE | GO_CHARACTER),
    (FIFO, GO_FIFO),
    (SOCKET, GO_SOCKET),
];

/// Go's number for an `st_mode`.
pub fn to_go(st_mode: u32) -> u32 {
    let kind = TYPES.iter().find(|(linux, _)| *linux == st_mode & TYPE_MASK).map_or(GO_IRREGULAR, |(_, go)| *go);
    let special: u32 = SPECIAL.iter().filter(|(linux, _)| st_mode & linux != 0).map(|(_, go)| go).sum();
    st_mode & 0o777 | kind | special
}

/// The `st_mode` that Go's number came from; of an irregular file only the permissions.
pub fn from_go(go: u32) -> u32 {
    let types = GO_DIRECTORY | GO_SYMLINK | GO_DEVICE | GO_FIFO | GO_SOCKET | GO_CHARACTER | GO_IRREGULAR;
    let kind = TYPES.iter().find(|(_, bits)| *bits == go & types).map_or(0, |(linux, _)| *linux);
    kind | permissions(go)
}

/// Permissions with setuid, setgid and sticky, each from its POSIX place or from Go's; all other bits are dropped.
pub fn permissions(mode: u32) -> u32 {
    let special: u32 = SPECIAL.iter().filter(|(linux, go)| mode & (linux | go) != 0).map(|(linux, _)| linux).sum();
    mode & 0o777 | special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_translate_as_the_specification_lists_them() {
        let table = [
            (0o100644, 0o644),
            (0o041777, 0x8000_0000 | 1 << 20 | 0o777),
            (0o120777, 1 << 27 | 0o777),
            (0o060660, 1 << 26 | 0o660),
            (0o020620, 1 << 26 | 1 << 21 | 0o620),
            (0o010600, 1 << 25 | 0o600),
            (0o140755, 1 << 24 | 0o755),
            (0o104755, 1 << 23 | 0o755),
            (0o102755, 1 << 22 | 0o755),
        ];
        for (linux, go) in table {
            assert_eq!(to_go(linux), go, "{linux:o}");
            assert_eq!(from_go(go), linux, "{go:x}");
        }
        assert_eq!(to_go(0o150000), 1 << 19);
        assert_eq!(from_go(1 << 19 | 0o600), 0o600);
    }

    #[test]
    fn requests_may_carry_special_bits_in_either_place() {
        assert_eq!(permissions(0o4755), 0o4755);
        assert_eq!(permissions(1 << 23 | 0o755), 0o4755);
        assert_eq!(permissions(1 << 22 | 1 << 20 | 0o100_000 | 0o1), 0o3001);
    }
}
