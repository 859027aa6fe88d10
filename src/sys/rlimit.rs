//! Limits of the resources that a program may use.

use std::ptr;

/// Every resource of Linux that has a limit.
const RESOURCES: [Resource; 16] = [
    Resource { name: "RLIMIT_AS", number: libc::RLIMIT_AS as _ },
    Resource { name: "RLIMIT_CORE", number: libc::RLIMIT_CORE as _ },
    Resource { name: "RLIMIT_CPU", number: libc::RLIMIT_CPU as _ },
    Resource { name: "RLIMIT_DATA", number: libc::RLIMIT_DATA as _ },
    Resource { name: "RLIMIT_FSIZE", number: libc::RLIMIT_FSIZE as _ },
    Resource { name: "RLIMIT_LOCKS", number: libc::RLIMIT_LOCKS as _ },
    Resource { name: "RLIMIT_MEMLOCK", number: libc::RLIMIT_MEMLOCK as _ },
    Resource { name: "RLIMIT_MSGQUEUE", number: libc::RLIMIT_MSGQUEUE as _ },
    Resource { name: "RLIMIT_NICE", number: libc::RLIMIT_NICE as _ },
    Resource { name: "RLIMIT_NOFILE", number: libc::RLIMIT_NOFILE as _ },
    Resource { name: "RLIMIT_NPROC", number: libc::RLIMIT_NPROC as _ },
    Resource { name: "RLIMIT_RSS", number: libc::RLIMIT_RSS as _ },
    Resource { name: "RLIMIT_RTPRIO", number: libc::RLIMIT_RTPRIO as _ },
    Resource { name: "RLIMIT_RTTIME", number: libc::RLIMIT_RTTIME as _ },
    Resource { name: "RLIMIT_SIGPENDING", number: libc::RLIMIT_SIGPENDING as _ },
    Resource { name: "RLIMIT_STACK", number: libc::RLIMIT_STACK as _ },
];

/// What a limit limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// As getrlimit(2) names it.
    pub name: &'static str,
    number: libc::c_int,
}

impl Resource {
    /// That of a name in upper or lower case, with or without `RLIMIT_`.
    pub fn by_name(name: &str) -> Option<Resource> {
        let short = |resource: &Resource| &resource.name["RLIMIT_".len()..];
        let is_it = |resource: &Resource| {
            name.eq_ignore_ascii_case(resource.name) || name.eq_ignore_ascii_case(short(resource))
        };
        RESOURCES.into_iter().find(is_it)
    }
}

/// How much of a resource a program may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    pub resource: Resource,
    /// What counts; `u64::MAX`: without limit.
    pub soft: u64,
    /// Up to where the program may raise it itself; `u64::MAX`: without limit.
    pub hard: u64,
}

impl Rlimit {
    /// prlimit(2) for this process. False: refused, and errno says why; EPERM: above the hard limit as it was, or more descriptors than the
    /// kernel allows at all; EINVAL: a soft limit above its hard one. Allocates nothing.
    pub(in crate::sys) fn set(&self) -> bool {
        let limit: [u64; 2] = [self.soft, self.hard];
        let none: *mut u64 = ptr::null_mut();
        // SAFETY: the kernel reads two numbers of 64 bits, which are all of its structure, and writes nothing.
        unsafe { libc::syscall(libc::SYS_prlimit64, 0, self.resource.number, limit.as_ptr(), none) == 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_known_by_its_names_and_by_no_others() {
        for name in ["RLIMIT_NOFILE", "rlimit_nofile", "NOFILE", "nofile", "Rlimit_NoFile"] {
            assert_eq!(Resource::by_name(name).map(|resource| resource.name), Some("RLIMIT_NOFILE"), "{name}");
        }
        for name in ["", "RLIMIT_", "RLIMIT_FILES", "NOFILE ", "RLIMIT_RLIMIT_AS"] {
            assert_eq!(Resource::by_name(name), None, "{name}");
        }
        let known = RESOURCES.iter().filter(|resource| Resource::by_name(resource.name) == Some(**resource)).count();
        assert_eq!(known, 16);
    }
}
