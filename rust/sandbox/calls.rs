//! seccomp: which system calls the process may make.
//!
//! A list of what is allowed, for nobody can list what is dangerous: whatever a later kernel
//! adds is denied. No call here makes a process or a thread, opens a socket, runs a program,
//! mounts, traces, loads code into the kernel, or changes who may touch a file: Landlock has no
//! say in owners and modes.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::{Error, Result};

/// Allowed with any arguments.
const ALLOWED: &[c_long] = &[
    // Open files, and what is open.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fadvise64,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    // The private directory.
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_umask,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    // Signals and time, of this process alone.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_setitimer,
    libc::SYS_getitimer,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    // What it is.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getpgid,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getrusage,
    libc::SYS_getpriority,
    libc::SYS_getcpu,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The older forms of some of these, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_alarm,
    libc::SYS_pause,
    libc::SYS_time,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Leaves the system calls of a list; any other one answers EPERM. Needs
/// [`give_up_privileges`](super::give_up_privileges) before it.
///
/// `child`: the one process, besides itself, that this one may kill, and for which it may
/// wait.
pub fn restrict_calls(child: Option<i32>) -> Result<()> {
    let filter = filter(child).map_err(|error| failed(&error))?;
    seccompiler::apply_filter(&filter).map_err(|error| failed(&error))
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::Sandbox(format!("seccomp filters: {error}"))
}

type Compiled<T> = std::result::Result<T, seccompiler::BackendError>;

fn filter(child: Option<i32>) -> Compiled<BpfProgram> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = ALLOWED
        .iter()
        .chain(OLDER)
        .map(|&call| (call, Vec::new()))
        .collect();
    rules.extend(conditional(child)?);
    SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        TargetArch::try_from(std::env::consts::ARCH)?,
    )?
    .try_into()
}

/// Allowed when an argument (its place, from 0) is one of some values.
fn conditional(child: Option<i32>) -> Compiled<Vec<(c_long, Vec<SeccompRule>)>> {
    let itself = std::process::id();
    let mut calls = vec![
        // Is it a terminal; is it closed when a program runs; does it block.
        (
            libc::SYS_ioctl,
            one_of(
                1,
                &[
                    libc::TCGETS as _,
                    libc::FIOCLEX as _,
                    libc::FIONCLEX as _,
                    libc::FIONBIO as _,
                ],
            )?,
        ),
        (
            libc::SYS_fcntl,
            one_of(
                1,
                &[
                    libc::F_DUPFD as _,
                    libc::F_DUPFD_CLOEXEC as _,
                    libc::F_GETFD as _,
                    libc::F_SETFD as _,
                    libc::F_GETFL as _,
                    libc::F_SETFL as _,
                ],
            )?,
        ),
        // Limits can be read: the new value must be no pointer.
        (
            libc::SYS_prlimit64,
            vec![SeccompRule::new(vec![is(0, 0)?, is_long(2, 0)?])?],
        ),
        (libc::SYS_tgkill, one_of(0, &[itself])?),
    ];
    let mut killable = vec![itself];
    if let Some(child) = child {
        killable.push(child.cast_unsigned());
        calls.push((libc::SYS_wait4, one_of(0, &[child.cast_unsigned()])?));
    }
    calls.push((libc::SYS_kill, one_of(0, &killable)?));
    Ok(calls)
}

fn one_of(argument: u8, values: &[u32]) -> Compiled<Vec<SeccompRule>> {
    values
        .iter()
        .map(|&value| SeccompRule::new(vec![is(argument, value)?]))
        .collect()
}

fn is(argument: u8, value: u32) -> Compiled<SeccompCondition> {
    let (length, equal) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
    SeccompCondition::new(argument, length, equal, u64::from(value))
}

fn is_long(argument: u8, value: u64) -> Compiled<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)
}
