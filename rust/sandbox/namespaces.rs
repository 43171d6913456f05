//! A root, a network and a table of processes of one's own.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::check;
use crate::{Error, Result};

const KINDS: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;
/// Who the process is inside: nobody in particular, and not the number of strangers' files.
const INNER_ID: u32 = 1000;
/// Where the new root is put together: a directory that every system with processes has, under
/// which no interpreter lives. Only this process sees what is mounted on it.
const NEW_ROOT: &str = "/proc";
const N_DIRECTORY_FILES: u32 = 1024;

/// Moves the process into user, mount, network, IPC and UTS namespaces of its own, and its
/// children to come into a PID namespace, where they die with the first of them.
///
/// The new root holds the readable paths, read-only, and `/tmp`: at most `directory_bytes` in
/// memory, which vanish with the last process. The working directory is `/tmp`. The process
/// must have one thread.
pub fn enter_namespaces(readable: &[PathBuf], directory_bytes: u64) -> Result<()> {
    // SAFETY: these calls read and write no memory of ours.
    let (user, group, answer) = unsafe { (libc::geteuid(), libc::getegid(), libc::unshare(KINDS)) };
    check(
        "the kernel lets this process make no user, mount, PID, network, IPC and UTS namespaces \
         (containers and /proc/sys/user/max_user_namespaces may forbid them)",
        answer,
    )?;
    // The kernel takes a mapping of groups only from who can no longer change them.
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("{INNER_ID} {user} 1"))?;
    write("/proc/self/gid_map", &format!("{INNER_ID} {group} 1"))?;
    make_root(readable, directory_bytes)
}

fn write(path: &str, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|source| Error::Sandbox(format!("{path}: {source}")))
}

fn make_root(readable: &[PathBuf], directory_bytes: u64) -> Result<()> {
    let limits = "size=256k,nr_inodes=512,mode=755".to_owned();
    let directory = format!("size={directory_bytes},nr_inodes={N_DIRECTORY_FILES},mode=700");
    let tmp = format!("{NEW_ROOT}/tmp");
    // What is mounted here must not appear outside.
    mount("none", "/", libc::MS_REC | libc::MS_PRIVATE, "")?;
    mount("tmpfs", NEW_ROOT, NO_DEVICES, &limits)?;
    make_directory(Path::new(&tmp))?;
    mount("tmpfs", &tmp, NO_DEVICES | libc::MS_NOEXEC, &directory)?;
    for path in outermost(readable) {
        bind(path)?;
    }
    set_read_only(NEW_ROOT, true)?;
    set_read_only(&tmp, false)?;
    change_directory(NEW_ROOT)?;
    // SAFETY: both arguments are strings that end in a zero.
    let answer = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
    check("pivot_root", answer)?;
    // The old root lies over the new one until it is taken away.
    // SAFETY: the argument is a string that ends in a zero.
    check("umount2", unsafe {
        libc::umount2(c".".as_ptr(), libc::MNT_DETACH)
    })?;
    change_directory("/tmp")
}

const NO_DEVICES: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

/// The paths that exist and lie under none of the others.
fn outermost(paths: &[PathBuf]) -> Vec<&Path> {
    let mut kept: Vec<&Path> = Vec::new();
    for path in paths.iter().collect::<BTreeSet<_>>() {
        // Sorted, so that a folder comes before what is in it.
        if path.exists() && !kept.iter().any(|folder| path.starts_with(folder)) {
            kept.push(path);
        }
    }
    kept
}

/// Shows a path of the old root at the same place in the new one.
fn bind(path: &Path) -> Result<()> {
    let inner = path.strip_prefix("/").map_err(|_| {
        Error::Argument(format!(
            "readable paths must be absolute, got {}",
            path.display()
        ))
    })?;
    let target = Path::new(NEW_ROOT).join(inner);
    if path.is_dir() {
        make_directory(&target)?;
    } else {
        target.parent().map_or(Ok(()), make_directory)?;
        fs::File::create_new(&target).map_err(|source| failed(&target, &source))?;
    }
    mount_at(path, &target, libc::MS_BIND | libc::MS_REC, "")
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|source| failed(path, &source))
}

fn failed(path: &Path, source: &std::io::Error) -> Error {
    Error::Sandbox(format!("{} in the new root: {source}", path.display()))
}

fn mount(source: &str, target: &str, flags: libc::c_ulong, options: &str) -> Result<()> {
    mount_at(Path::new(source), Path::new(target), flags, options)
}

fn mount_at(source: &Path, target: &Path, flags: libc::c_ulong, options: &str) -> Result<()> {
    let paths = (c_string(source)?, c_string(target)?);
    let options = c_string(Path::new(options))?;
    // SAFETY: the strings end in a zero and outlive the call.
    let answer = unsafe {
        libc::mount(
            paths.0.as_ptr(),
            paths.1.as_ptr(),
            c"tmpfs".as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    let what = format!("mounting {} in a namespace of one's own", source.display());
    check(&what, answer)
}

/// Makes all mounts at and under a path read-only, or takes that from the one at the path.
fn set_read_only(path: &str, read_only: bool) -> Result<()> {
    let path = c_string(Path::new(path))?;
    let common = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let attributes = libc::mount_attr {
        attr_set: common
            | if read_only {
                libc::MOUNT_ATTR_RDONLY
            } else {
                0
            },
        attr_clr: if read_only {
            0
        } else {
            libc::MOUNT_ATTR_RDONLY
        },
        propagation: 0,
        userns_fd: 0,
    };
    let flags = if read_only { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the string ends in a zero, and the structure has the size that is told.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check("mount_setattr (Linux 5.12)", answer)
}

fn change_directory(path: &str) -> Result<()> {
    std::env::set_current_dir(path).map_err(|source| failed(Path::new(path), &source))
}

fn c_string(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| {
        Error::Argument(format!(
            "paths must hold no zero byte, got {}",
            path.display()
        ))
    })
}
