//! What the kernel lets this process do.

use std::io;

use crate::sys::check;

/// CAP_SYS_BOOT: reboot(2).
pub const SYS_BOOT: u32 = 22;

/// capget(2): whether a capability, by its number, is in the effective set of this thread. ENOSYS where the kernel knows none.
pub fn is_effective(capability: u32) -> io::Result<bool> {
    /// The one with 64 capabilities, as two sets of effective, permitted and inheritable ones.
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: the kernel reads the header and writes two sets, which these arrays have the layout of.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) } as libc::c_int)?;
    let word = sets.get((capability / 32) as usize).map_or(0, |set| set[0]);
    Ok(word >> (capability % 32) & 1 == 1)
}
