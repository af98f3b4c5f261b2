//! Before anything starts: does this kernel let us use io_uring, and lock the memory that it takes?
//!
//! Knows the system's ways to refuse, and words each so that whoever reads it can grant what is
//! missing; does not know what else there is to run on. Asks by trying, since versions say little:
//! a small ring is made as the reactor makes its own, and each of the three calls is called once.

use glommio::CpuSet;
use io_uring::{IoUring, Probe, opcode};
use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, getegid, getgroups, getrlimit, setrlimit};
use rustix::system::uname;
use rustix::thread::{CapabilitySet, SecureComputingMode, capabilities, secure_computing_mode};
use std::fmt::{self, Display, Formatter};
use std::{error, fs, io};

/// What glommio 0.9 demands of a process that starts an executor, root's too.
const LEAST_KIB: u64 = 512;
/// What a thread locks: 64 KiB registered with each of the three rings that glommio 0.9 makes for
/// an executor, these rings as small as may be, and ours with its queues (16 bytes for each
/// completion and each buffer, 68 for each operation; not the buffers themselves). Two, four and
/// eight threads took 325 to 330 KiB each on Linux 6.18.
const THREAD_KIB: u64 = 336;
/// Entries of the ring that is only tried. It locks 8 KiB, for a moment longer than it lives.
const TRIED_ENTRIES: u32 = 8;

/// Whether so many threads can be served here, and so many more that nobody can have fewer of.
/// Raises the limit of locked memory as far as it may.
///
/// # Errors
///
/// What is refused, in one line.
pub fn check(threads: usize, more: usize) -> Result<(), Unusable> {
    let limit = raise_limit();
    enough_memory(threads, more, limit, locks_freely())?;
    try_ring().map_err(|(call, error)| {
        let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        Facts::gather(limit).judge(call, errno)
    })?;
    // glommio 0.9 panics where it cannot learn this.
    CpuSet::online().map(drop).map_err(|error| Unusable::Cores { reason: error.to_string() })
}

/// Why io_uring cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The kernel has no io_uring at all.
    Absent { release: String },
    /// It has one without what we need.
    Old { release: String },
    /// The sysctl `kernel.io_uring_disabled`, and the group that it leaves out.
    Sysctl { disabled: u8, group: Option<u32> },
    /// A seccomp filter, on this call.
    Filter { call: &'static str, errno: Errno },
    /// Nobody says which cores there are, to one of which each thread is pinned.
    Cores { reason: String },
    /// Somebody else.
    Refused { call: &'static str, errno: Errno },
    /// The limit of locked memory. Of these threads so many cannot be fewer.
    Memory { threads: usize, more: usize, limit_kib: u64 },
    /// The limit would do, were the memory not locked by others.
    UsedUp { limit_kib: Option<u64> },
}

/// How to let more memory be locked.
fn more_memory(f: &mut Formatter<'_>, kib: u64) -> fmt::Result {
    write!(
        f,
        "raise it (`ulimit -l {kib}`; Docker: `--ulimit memlock={}`; systemd: \
         `LimitMEMLOCK={kib}K`; Kubernetes: the same in the unit of containerd on the node)",
        kib * 1024
    )
}

impl Display for Unusable {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent { release } => write!(
                f,
                "Linux {release} has no io_uring here: expected 6.1 or later with CONFIG_IO_URING"
            ),
            Self::Old { release } => {
                write!(f, "the io_uring of Linux {release} is too old: expected 6.1 or later")
            }
            Self::Sysctl { disabled, group } => {
                write!(f, "the sysctl kernel.io_uring_disabled = {disabled} ")?;
                match (disabled, group) {
                    (1, Some(group)) => write!(
                        f,
                        "leaves io_uring to the group {group} (kernel.io_uring_group): run in \
                         that group, or set it to 0 on the host"
                    ),
                    (1, None) => write!(
                        f,
                        "leaves io_uring to the group in kernel.io_uring_group, which names none: \
                         name one that this runs in, or set it to 0 on the host"
                    ),
                    _ => write!(f, "refuses io_uring to all: set it to 0 on the host"),
                }
            }
            Self::Filter { call, errno } => write!(
                f,
                "a seccomp filter refuses {call} ({errno}): allow io_uring_setup, io_uring_enter \
                 and io_uring_register (Docker: `--security-opt seccomp=PROFILE`; Kubernetes: \
                 `seccompProfile` of type Localhost, or Unconfined; `vllm-proxy readme` has a \
                 profile)"
            ),
            Self::Cores { reason } => write!(
                f,
                "/sys/devices/system does not say which cores there are ({reason}): mount sysfs at \
                 /sys, read-only will do"
            ),
            Self::Refused { call, errno } => write!(
                f,
                "{call} is refused ({errno}), by no seccomp filter and no sysctl: see what \
                 security modules, SELinux for one, have logged"
            ),
            Self::Memory { threads, more, limit_kib } => {
                let needed = needed_kib(*threads);
                let lock = if *threads == 1 { "thread locks" } else { "threads lock" };
                write!(
                    f,
                    "{threads} {lock} {needed} KiB of memory ({THREAD_KIB} each, {LEAST_KIB} at \
                     least) and the limit is {limit_kib}: "
                )?;
                more_memory(f, needed)?;
                let more = u64::try_from(*more).unwrap_or(u64::MAX);
                let fewer = (limit_kib / THREAD_KIB).saturating_sub(more);
                if *limit_kib >= LEAST_KIB && fewer > 0 {
                    write!(f, ", or lower --threads to {fewer}")?;
                }
                Ok(())
            }
            Self::UsedUp { limit_kib } => {
                let Some(kib) = limit_kib else {
                    return write!(f, "there is no memory left for a ring");
                };
                write!(
                    f,
                    "the memory that may be locked ({kib} KiB) is locked already, by other \
                     processes of this user, since they all count together: "
                )?;
                more_memory(f, kib * 2)
            }
        }
    }
}

impl error::Error for Unusable {}

/// What so many threads lock.
fn needed_kib(threads: usize) -> u64 {
    let threads = u64::try_from(threads).unwrap_or(u64::MAX);
    THREAD_KIB.saturating_mul(threads).max(LEAST_KIB)
}

/// The limit of locked memory in KiB, once it is as high as it may be; `None`: there is none.
fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Memlock);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let raises = limit.current != limit.maximum && setrlimit(Resource::Memlock, raised).is_ok();
    let bytes = if raises { limit.maximum } else { limit.current };
    bytes.map(|bytes| bytes / 1024)
}

/// Why there is no memory for a ring although the limit is high enough.
pub(crate) fn used_up() -> Unusable {
    Unusable::UsedUp { limit_kib: raise_limit() }
}

fn enough_memory(
    threads: usize,
    more: usize,
    limit: Option<u64>,
    freely: bool,
) -> Result<(), Unusable> {
    let threads = threads.saturating_add(more);
    let needed = if freely { LEAST_KIB } else { needed_kib(threads) };
    match limit {
        Some(limit_kib) if limit_kib < needed => Err(Unusable::Memory { threads, more, limit_kib }),
        _ => Ok(()),
    }
}

/// Whether locked memory is not counted: CAP_IPC_LOCK, which means nothing in a user namespace.
fn locks_freely() -> bool {
    let all = |map: &str| map.split_whitespace().eq(["0", "0", "4294967295"]);
    has(CapabilitySet::IPC_LOCK) && fs::read_to_string("/proc/self/uid_map").is_ok_and(|s| all(&s))
}

fn has(capability: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// Makes a ring, asks what it can do and enters it: all three calls. Fails with the one refused.
fn try_ring() -> Result<(), (&'static str, io::Error)> {
    // DEFER_TASKRUN is the youngest of what we need: who has it has multishot receives (6.0) and
    // rings of provided buffers (5.19), too.
    let ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(TRIED_ENTRIES)
        .map_err(|error| ("io_uring_setup", error))?;
    let mut known = Probe::new();
    ring.submitter().register_probe(&mut known).map_err(|error| ("io_uring_register", error))?;
    let needed = [
        opcode::Accept::CODE,
        opcode::AsyncCancel::CODE,
        opcode::Connect::CODE,
        opcode::PollAdd::CODE,
        opcode::Recv::CODE,
        opcode::SendMsg::CODE,
    ];
    if !needed.into_iter().all(|code| known.is_supported(code)) {
        return Err(("io_uring_register", Errno::INVAL.into()));
    }
    ring.submit().map_err(|error| ("io_uring_enter", error))?;
    Ok(())
}

/// What tells apart who refuses.
#[derive(Clone, Debug)]
struct Facts {
    /// The kernel's.
    release: String,
    /// `kernel.io_uring_disabled`, where the kernel has it (6.6).
    disabled: Option<u8>,
    /// `kernel.io_uring_group`, if it names one.
    group: Option<u32>,
    /// Whether the value 1 does not concern us.
    exempt: bool,
    /// Whether a seccomp filter is on.
    filtered: bool,
    limit_kib: Option<u64>,
}

impl Facts {
    fn gather(limit_kib: Option<u64>) -> Self {
        let sysctl = |name| fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok();
        let group = sysctl("io_uring_group").and_then(|text| text.trim().parse().ok());
        let is_ours = |group: u32| {
            let ours = getgroups().unwrap_or_default();
            ours.into_iter().chain([getegid()]).map(Gid::as_raw).any(|one| one == group)
        };
        Self {
            release: uname().release().to_string_lossy().into_owned(),
            disabled: sysctl("io_uring_disabled").and_then(|text| text.trim().parse().ok()),
            group,
            exempt: has(CapabilitySet::SYS_ADMIN) || group.is_some_and(is_ours),
            filtered: matches!(secure_computing_mode(), Ok(SecureComputingMode::Filter)),
            limit_kib,
        }
    }

    fn judge(self, call: &'static str, errno: Errno) -> Unusable {
        let Self { release, disabled, group, exempt, filtered, limit_kib } = self;
        match (errno, disabled) {
            (Errno::INVAL, _) => Unusable::Old { release },
            (Errno::NOMEM, _) => Unusable::UsedUp { limit_kib },
            // No sysctl says so, and where there is a filter the kernel may well have it.
            (Errno::NOSYS, _) if !filtered => Unusable::Absent { release },
            (Errno::PERM, Some(2)) => Unusable::Sysctl { disabled: 2, group },
            (Errno::PERM, Some(1)) if !exempt => Unusable::Sysctl { disabled: 1, group },
            _ if filtered => Unusable::Filter { call, errno },
            _ => Unusable::Refused { call, errno },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// A kernel that refuses nobody.
    fn facts() -> Facts {
        Facts {
            release: "6.8.0-45-generic".to_owned(),
            disabled: Some(0),
            group: None,
            exempt: false,
            filtered: false,
            limit_kib: Some(8192),
        }
    }

    fn unasked() -> Facts {
        Facts { disabled: None, release: "5.15.0-91-generic".to_owned(), ..facts() }
    }

    #[rstest]
    #[case::no_io_uring(
        unasked(),
        Errno::NOSYS,
        "Linux 5.15.0-91-generic has no io_uring here: expected 6.1"
    )]
    #[case::flags_unknown(
        unasked(),
        Errno::INVAL,
        "the io_uring of Linux 5.15.0-91-generic is too old: expected 6.1"
    )]
    #[case::filter(
        Facts { filtered: true, ..facts() },
        Errno::PERM,
        "a seccomp filter refuses io_uring_setup (Operation not permitted (os error 1)): allow "
    )]
    #[case::filter_before_the_sysctl_existed(
        Facts { filtered: true, ..unasked() },
        Errno::PERM,
        "a seccomp filter refuses io_uring_setup (Operation not permitted (os error 1)): allow "
    )]
    #[case::filter_that_plays_an_older_kernel(
        Facts { filtered: true, ..facts() },
        Errno::NOSYS,
        "a seccomp filter refuses io_uring_setup (Function not implemented (os error 38)): allow "
    )]
    #[case::filter_and_a_sysctl_that_lets_us(
        Facts { filtered: true, disabled: Some(1), exempt: true, ..facts() },
        Errno::PERM,
        "a seccomp filter refuses io_uring_setup (Operation not permitted (os error 1)): allow "
    )]
    #[case::sysctl_for_all(
        Facts { disabled: Some(2), exempt: true, ..facts() },
        Errno::PERM,
        "the sysctl kernel.io_uring_disabled = 2 refuses io_uring to all: set it to 0 on the host"
    )]
    #[case::sysctl_with_a_filter(
        Facts { disabled: Some(2), filtered: true, ..facts() },
        Errno::PERM,
        "the sysctl kernel.io_uring_disabled = 2 refuses io_uring to all: "
    )]
    #[case::sysctl_but_for_a_group(
        Facts { disabled: Some(1), group: Some(983), ..facts() },
        Errno::PERM,
        "the sysctl kernel.io_uring_disabled = 1 leaves io_uring to the group 983 "
    )]
    #[case::sysctl_but_for_no_group(
        Facts { disabled: Some(1), ..facts() },
        Errno::PERM,
        "the sysctl kernel.io_uring_disabled = 1 leaves io_uring to the group in \
         kernel.io_uring_group, which names none: "
    )]
    #[case::security_module(
        facts(),
        Errno::ACCESS,
        "io_uring_setup is refused (Permission denied (os error 13)), by no seccomp filter"
    )]
    #[case::security_module_and_a_sysctl_that_is_not_to_blame(
        Facts { disabled: Some(2), ..facts() },
        Errno::ACCESS,
        "io_uring_setup is refused (Permission denied (os error 13)), by no seccomp filter"
    )]
    #[case::memory_of_others(
        facts(),
        Errno::NOMEM,
        "the memory that may be locked (8192 KiB) is locked already, by other processes of this \
         user, since they all count together: raise it (`ulimit -l 16384`; "
    )]
    #[case::no_memory(
        Facts { limit_kib: None, ..facts() }, Errno::NOMEM, "there is no memory left for a ring"
    )]
    fn who_refuses(#[case] facts: Facts, #[case] errno: Errno, #[case] said: &str) {
        let told = facts.judge("io_uring_setup", errno).to_string();
        assert!(told.starts_with(said), "{told}");
        assert!(!told.contains('\n'));
    }

    #[rstest]
    #[case::least(1, 0, Some(512), false, None)]
    #[case::unlimited(4096, 0, None, false, None)]
    #[case::below_the_least(
        1,
        0,
        Some(511),
        false,
        Some("1 thread locks 512 KiB of memory (336 each")
    )]
    #[case::below_the_least_though_uncounted(1, 0, Some(511), true, Some("1 thread locks 512 KiB"))]
    #[case::uncounted(4096, 0, Some(512), true, None)]
    #[case::enough(8, 0, Some(2688), false, None)]
    #[case::not_enough(
        8,
        0,
        Some(2687),
        false,
        Some(
            "8 threads lock 2688 KiB of memory (336 each, 512 at least) and the limit is \
             2687: raise it (`ulimit -l 2688`; Docker: `--ulimit memlock=2752512`; \
             systemd: `LimitMEMLOCK=2688K`; Kubernetes: the same in the unit of containerd on the \
             node), or lower --threads to 7"
        )
    )]
    #[case::enough_for_one_more(7, 1, Some(2688), false, None)]
    #[case::not_enough_for_one_more(
        8,
        1,
        Some(2688),
        false,
        Some(
            "9 threads lock 3024 KiB of memory (336 each, 512 at least) and the limit is \
             2688: raise it (`ulimit -l 3024`; Docker: `--ulimit memlock=3096576`; \
             systemd: `LimitMEMLOCK=3024K`; Kubernetes: the same in the unit of containerd on the \
             node), or lower --threads to 7"
        )
    )]
    fn memory_is_enough(
        #[case] threads: usize,
        #[case] more: usize,
        #[case] limit: Option<u64>,
        #[case] freely: bool,
        #[case] said: Option<&str>,
    ) {
        let told = enough_memory(threads, more, limit, freely).err().map(|error| error.to_string());
        match (told, said) {
            (Some(told), Some(said)) => assert!(told.starts_with(said), "{told}"),
            (told, said) => assert_eq!(told.as_deref(), said),
        }
    }
}
