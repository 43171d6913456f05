//! Limits of resources, and what the process may not be or become.

use super::{Limits, check};
use crate::Result;

/// Sets hard limits; nothing may be locked in memory, no core is dumped, and where the user
/// is not root no process is added.
pub fn limit_resources(limits: &Limits) -> Result<()> {
    // Threads and processes are denied by `restrict_calls`; the kernel does not count root's.
    let hard = [
        ("RLIMIT_AS", libc::RLIMIT_AS, limits.memory_bytes),
        ("RLIMIT_CPU", libc::RLIMIT_CPU, limits.cpu_seconds),
        ("RLIMIT_FSIZE", libc::RLIMIT_FSIZE, limits.file_bytes),
        ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE, limits.n_open_files),
        ("RLIMIT_NPROC", libc::RLIMIT_NPROC, 1),
        ("RLIMIT_CORE", libc::RLIMIT_CORE, 0),
        ("RLIMIT_MEMLOCK", libc::RLIMIT_MEMLOCK, 0),
        ("RLIMIT_MSGQUEUE", libc::RLIMIT_MSGQUEUE, 0),
        ("RLIMIT_RTPRIO", libc::RLIMIT_RTPRIO, 0),
    ];
    for (name, resource, most) in hard {
        // The end by SIGXCPU can be ignored, the one by SIGKILL a second later cannot.
        let slack = u64::from(resource == libc::RLIMIT_CPU);
        let value = libc::rlimit {
            rlim_cur: most,
            rlim_max: most.saturating_add(slack),
        };
        // SAFETY: the structure outlives the call, which only reads it.
        check(name, unsafe { libc::setrlimit(resource, &raw const value) })?;
    }
    Ok(())
}

/// Drops every capability for good, and makes the process untouchable for debuggers.
///
/// With `die_with_parent`, the process is killed when the one that made it ends.
pub fn give_up_privileges(die_with_parent: bool) -> Result<()> {
    if die_with_parent {
        control(
            "PR_SET_PDEATHSIG",
            libc::PR_SET_PDEATHSIG,
            libc::SIGKILL as _,
        )?;
    }
    control("PR_SET_NO_NEW_PRIVS", libc::PR_SET_NO_NEW_PRIVS, 1)?;
    control("PR_SET_DUMPABLE", libc::PR_SET_DUMPABLE, 0)?;
    drop_capabilities()
}

fn control(name: &str, option: libc::c_int, value: libc::c_ulong) -> Result<()> {
    const NONE: libc::c_ulong = 0;
    // SAFETY: the options used here take numbers, no pointers.
    check(name, unsafe {
        libc::prctl(option, value, NONE, NONE, NONE)
    })
}

/// What `capset` takes: a version and a process, then three masks twice.
#[repr(C)]
struct Header {
    version: u32,
    process: i32,
}

fn drop_capabilities() -> Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION_3,
        process: 0,
    };
    let none = [0_u32; 6];
    // SAFETY: the kernel reads a header and, for this version, six words.
    let answer = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    check("capset", answer)
}
