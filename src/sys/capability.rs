//! What the kernel lets this process do, and what programs.

use std::io;

use crate::sys::check;

/// CAP_SYS_BOOT: reboot(2).
pub const SYS_BOOT: u32 = 22;

/// All of capabilities(7); a name's place is its number.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The number of a capability, whose name may be in upper or lower case.
pub fn by_name(name: &str) -> Option<u32> {
    NAMES.iter().position(|known| known.eq_ignore_ascii_case(name)).map(|number| number as u32)
}

/// The capabilities that a program is given: bit n is number n. `None` leaves a set as it is.
///
/// They are what execve(2) begins with, and it goes on by its own rules: root gets all of the bounding and the inheritable set, other users
/// the ambient one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub bounding: Option<u64>,
    pub effective: Option<u64>,
    pub inheritable: Option<u64>,
    pub permitted: Option<u64>,
    pub ambient: Option<u64>,
}

/// The version of the calls with 64 capabilities, as two sets of effective, permitted and inheritable ones.
const VERSION_3: u32 = 0x2008_0522;

/// Each half of what capget(2) and capset(2) take: effective, permitted, inheritable.
type Halves = [[u32; 3]; 2];

impl Capabilities {
    /// prctl(2) with PR_CAPBSET_DROP for what is not in the bounding set. False: refused, and errno says why; EPERM also where the set has
    /// not got all, EINVAL where the kernel does not know all. Allocates nothing.
    pub(in crate::sys) fn set_bounding(&self) -> bool {
        self.bounding.is_none_or(|kept| {
            (0..u64::BITS).all(|number| match (prctl(libc::PR_CAPBSET_READ, number.into(), 0), kept >> number & 1) {
                (1, 0) => prctl(libc::PR_CAPBSET_DROP, number.into(), 0) == 0,
                (0, 1) => refuse(libc::EPERM),
                (-1, 1) => refuse(libc::EINVAL),
                _ => true,
            })
        })
    }

    /// prctl(2) with PR_SET_KEEPCAPS, if any set is given that the change to another user would empty: what is permitted outlives that change.
    /// It ends with execve(2).
    pub(in crate::sys) fn keep(&self) -> bool {
        let sets = [self.effective, self.inheritable, self.permitted, self.ambient];
        sets == [None; 4] || prctl(libc::PR_SET_KEEPCAPS, 1, 0) == 0
    }

    /// capset(2). False: refused, and errno says why; EINVAL also where the kernel does not know all, which it would leave out silently.
    /// Allocates nothing.
    pub(in crate::sys) fn set(&self) -> bool {
        let wanted = [self.effective, self.permitted, self.inheritable];
        if wanted == [None; 3] {
            return true;
        }
        let (mut sets, mut found) = (Halves::default(), Halves::default());
        if !get(&mut sets) {
            return false;
        }
        for (place, set) in wanted.into_iter().enumerate() {
            if let Some(set) = set {
                (sets[0][place], sets[1][place]) = (set as u32, (set >> 32) as u32);
            }
        }
        let header: [u32; 2] = [VERSION_3, 0];
        // SAFETY: the kernel reads the header and two sets, which these arrays have the layout of.
        let is_set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) == 0 };
        is_set && get(&mut found) && (found == sets || refuse(libc::EINVAL))
    }

    /// prctl(2) with PR_CAP_AMBIENT. False: refused, and errno says why; EPERM for what is not both permitted and inheritable. A kernel
    /// without the set (before 4.3) has it empty. Allocates nothing.
    pub(in crate::sys) fn set_ambient(&self) -> bool {
        self.ambient.is_none_or(|raised| {
            let is_clear = prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as _, 0) == 0;
            let raise = |number: u32| prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as _, number.into()) == 0;
            raised == 0 || (is_clear && (0..u64::BITS).filter(|number| raised >> number & 1 == 1).all(raise))
        })
    }
}

fn prctl(option: libc::c_int, first: u64, second: u64) -> libc::c_int {
    let none: libc::c_ulong = 0;
    // SAFETY: the options above take plain integers, and want zeroes behind them.
    unsafe { libc::prctl(option, first as libc::c_ulong, second as libc::c_ulong, none, none) }
}

/// capget(2) of this thread.
fn get(sets: &mut Halves) -> bool {
    let header: [u32; 2] = [VERSION_3, 0];
    // SAFETY: the kernel reads the header and writes two sets, which these arrays have the layout of.
    unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) == 0 }
}

/// False, with the reason where the kernel would have put it.
fn refuse(errno: libc::c_int) -> bool {
    // SAFETY: the place is this thread's own.
    unsafe { *libc::__errno_location() = errno };
    false
}

/// prctl(2) with PR_SET_NO_NEW_PRIVS: no execve(2) from now on gives this process more than it has. False: refused, and errno says why.
pub(in crate::sys) fn forbid_new_privileges() -> bool {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0) == 0
}

/// capget(2): whether a capability, by its number, is in the effective set of this thread. ENOSYS where the kernel knows none.
pub fn is_effective(capability: u32) -> io::Result<bool> {
    let mut sets = Halves::default();
    check(if get(&mut sets) { 0 } else { -1 })?;
    let word = sets.get((capability / 32) as usize).map_or(0, |set| set[0]);
    Ok(word >> (capability % 32) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_the_numbers_that_the_kernel_gives_them() {
        for (name, number) in [
            ("CAP_CHOWN", 0),
            ("CAP_SETPCAP", 8),
            ("cap_net_raw", 13),
            ("CAP_SYS_BOOT", SYS_BOOT),
            ("CAP_SETFCAP", 31),
            ("CAP_MAC_OVERRIDE", 32),
            ("CAP_CHECKPOINT_RESTORE", 40),
        ] {
            assert_eq!(by_name(name), Some(number), "{name}");
        }
        for name in ["", "CHOWN", "CAP_", "CAP_CHOWN ", "CAP_ALL", "CAP_41"] {
            assert_eq!(by_name(name), None, "{name}");
        }
    }
}
