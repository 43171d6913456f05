//! Walls around a process that runs code nobody trusts: the process raises them around itself.
//!
//! Each wall is a function, and none can be taken down again. In the order of raising:
//!
//! - [`enter_namespaces`]: a root of its own, in which there is nothing but what may be read and
//!   an empty `/tmp` of bounded size in memory; no network; the children see no other process;
//! - [`limit_resources`]: memory, processor time, files, core dumps;
//! - [`give_up_privileges`]: none of root's powers, now or through a program;
//! - [`restrict_files`] (Landlock): reads beneath some paths, writes beneath others, runs nothing;
//! - [`restrict_calls`] (seccomp): the system calls that Python needs for files and time, no others.
//!
//! No two of them hang together: what one lets through by a mistake, another should stop. A wall
//! that the kernel does not give is an [`Error::Sandbox`](crate::Error::Sandbox); whether to go
//! on without it is the caller's to say. Outside Linux there are none.

#[cfg(target_os = "linux")]
mod calls;
#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod namespaces;
#[cfg(all(test, target_os = "linux"))]
mod tests;

#[cfg(target_os = "linux")]
pub use calls::restrict_calls;
#[cfg(not(target_os = "linux"))]
pub use elsewhere::{
    enter_namespaces, give_up_privileges, limit_resources, restrict_calls, restrict_files,
};
#[cfg(target_os = "linux")]
pub use files::restrict_files;
#[cfg(target_os = "linux")]
pub use limits::{give_up_privileges, limit_resources};
#[cfg(target_os = "linux")]
pub use namespaces::enter_namespaces;

/// What one process may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Address space, that of the interpreter included.
    pub memory_bytes: u64,
    /// Processor time; the process dies one second later.
    pub cpu_seconds: u64,
    /// The longest file it may write.
    pub file_bytes: u64,
    /// How many descriptors may be open.
    pub n_open_files: u64,
}

/// The system's answer to a call that gives -1 for an error, which `what` names.
#[cfg(target_os = "linux")]
fn check(what: &str, answer: impl Into<i64>) -> crate::Result<()> {
    if answer.into() == -1 {
        let source = std::io::Error::last_os_error();
        return Err(crate::Error::Sandbox(format!("{what}: {source}")));
    }
    Ok(())
}
