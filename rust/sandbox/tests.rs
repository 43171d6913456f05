//! Each wall alone, in a process of its own: what it must stop, and what it must let through.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{
    Limits, enter_namespaces, give_up_privileges, limit_resources, restrict_calls, restrict_files,
};
use crate::Result;

/// Is this a process that runs the one test? If not, the test is run in such a one.
///
/// A fork of a process whose other threads run tests can find a lock taken, and wait for ever.
fn alone(test: &str) -> bool {
    const MARK: &str = "RSLM_SANDBOX_TEST";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let status = Command::new(std::env::current_exe().expect("the name of the tests"))
        .args(["--exact", "--nocapture", "--quiet", "--test-threads=1"])
        .arg(format!("sandbox::tests::{test}"))
        .env(MARK, "1")
        .stdout(std::process::Stdio::null())
        .status()
        .expect("the tests can be started again");
    assert!(status.success(), "see the messages above");
    false
}

/// Runs a check in a fork of this process and fails where it panics; where the wall itself cannot
/// be raised, the check is skipped, which is said.
fn in_child(raise: impl FnOnce() -> Result<()>, check: impl FnOnce()) {
    const SKIPPED: i32 = 42;
    // SAFETY: the child leaves by `_exit`, and the C library makes allocation work in it.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // What the test harness captures would be lost with the child.
        std::panic::set_hook(Box::new(|info| {
            let _ = writeln!(std::io::stderr(), "{info}");
        }));
        let body = std::panic::AssertUnwindSafe(|| match raise() {
            Ok(()) => check(),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "skipped: {error}");
                exit(SKIPPED);
            }
        });
        exit(i32::from(std::panic::catch_unwind(body).is_err()));
    }
    assert_eq!(
        wait_for(child) & !(SKIPPED << 8),
        0,
        "see the message of the child above"
    );
}

fn exit(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

fn fork() -> i32 {
    // SAFETY: as in `in_child`.
    unsafe { libc::fork() }
}

fn wait_for(child: i32) -> i32 {
    let mut status = -1;
    // SAFETY: the status is written before the call returns.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

fn number_of<T>(result: std::io::Result<T>) -> i32 {
    result
        .err()
        .and_then(|error| error.raw_os_error())
        .unwrap_or(0)
}

/// The error of a system call that is given zeros.
fn error_of(call: libc::c_long, arguments: [libc::c_ulong; 4]) -> i32 {
    let [a, b, c, d] = arguments;
    // SAFETY: the calls made here are denied before the kernel looks at the arguments.
    let answer = unsafe { libc::syscall(call, a, b, c, d, 0, 0) };
    if answer == -1 {
        number_of::<()>(Err(std::io::Error::last_os_error()))
    } else {
        0
    }
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("rslm-sandbox-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a folder for the test");
    path
}

#[test]
fn landlock_leaves_only_what_it_is_told() {
    if !alone("landlock_leaves_only_what_it_is_told") {
        return;
    }
    let (shown, inside, outside) = (folder("shown"), folder("inside"), folder("outside"));
    let secret = outside.join("secret");
    fs::write(&secret, "42").expect("a file");
    fs::write(shown.join("text"), "43").expect("a file");
    fs::copy("/bin/true", shown.join("true")).expect("a program");
    fs::copy("/bin/true", inside.join("true")).expect("a program");
    let raise = || {
        give_up_privileges(false)?;
        // Programs here are to find their libraries.
        let libraries = ["/usr/lib", "/usr/lib64", "/lib", "/lib64"].map(PathBuf::from);
        restrict_files(
            &[&libraries[..], std::slice::from_ref(&shown)].concat(),
            std::slice::from_ref(&inside),
            false,
        )
    };
    in_child(raise, || {
        assert_eq!(fs::read(shown.join("text")).expect("what is shown"), b"43");
        assert_eq!(fs::read_dir(&shown).expect("what is shown").count(), 2);
        for path in [
            &secret,
            Path::new("/etc/passwd"),
            Path::new("/proc/self/environ"),
        ] {
            assert_eq!(number_of(fs::read(path)), libc::EACCES);
        }
        assert_eq!(number_of(fs::read_dir("/")), libc::EACCES);
        for path in [&secret, &shown.join("text")] {
            assert_eq!(
                number_of(File::options().append(true).open(path)),
                libc::EACCES
            );
            assert_eq!(number_of(truncate(path)), libc::EACCES);
            assert_eq!(number_of(fs::remove_file(path)), libc::EACCES);
            assert_eq!(
                number_of(fs::rename(path, inside.join("moved"))),
                libc::EACCES
            );
            assert_eq!(
                number_of(fs::hard_link(path, inside.join("hard"))),
                libc::EXDEV
            );
        }
        assert_eq!(number_of(File::create(shown.join("new"))), libc::EACCES);
        for program in [
            Path::new("/bin/true"),
            &shown.join("true"),
            &inside.join("true"),
        ] {
            assert_eq!(number_of(Command::new(program).status()), libc::EACCES);
        }
        // A symbolic link is made, and leads nowhere.
        std::os::unix::fs::symlink(&secret, inside.join("soft")).expect("a link");
        assert_eq!(number_of(fs::read(inside.join("soft"))), libc::EACCES);
        fs::write(inside.join("own"), "text").expect("its own file");
        assert_eq!(fs::read(inside.join("own")).expect("its own file"), b"text");
    });
    assert_eq!(fs::read(&secret).expect("the file"), b"42");
    for path in [shown, inside, outside] {
        fs::remove_dir_all(path).expect("a folder of the test");
    }
}

fn truncate(path: &Path) -> std::io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the string ends in a zero.
    match unsafe { libc::truncate(path.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn seccomp_denies_what_is_not_on_its_list() {
    if !alone("seccomp_denies_what_is_not_on_its_list") {
        return;
    }
    let raise = || {
        give_up_privileges(false)?;
        restrict_calls(None)
    };
    in_child(raise, || {
        for call in [
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_connect,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_kcmp,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_setgroups,
            libc::SYS_capset,
            libc::SYS_prctl,
            libc::SYS_seccomp,
            libc::SYS_setsid,
            libc::SYS_setpgid,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_reboot,
            libc::SYS_personality,
            libc::SYS_memfd_create,
            libc::SYS_fchmodat,
            libc::SYS_fchownat,
            libc::SYS_setxattr,
            libc::SYS_mknodat,
            libc::SYS_shmget,
            libc::SYS_msgget,
            libc::SYS_inotify_init1,
            libc::SYS_fanotify_init,
            libc::SYS_sethostname,
            libc::SYS_clock_settime,
            libc::SYS_syslog,
            libc::SYS_quotactl,
            libc::SYS_swapon,
            libc::SYS_acct,
            libc::SYS_kill,
            libc::SYS_tkill,
            // No number at all, and one of the x32 form of calls.
            5000,
            0x4000_0000 + libc::SYS_read,
        ] {
            assert_eq!(error_of(call, [0; 4]), libc::EPERM, "call {call}");
        }
        let itself = u64::from(std::process::id());
        assert_eq!(error_of(libc::SYS_kill, [itself, 0, 0, 0]), 0);
        assert_eq!(error_of(libc::SYS_kill, [1, 0, 0, 0]), libc::EPERM);
        assert_eq!(error_of(libc::SYS_kill, [u64::MAX, 0, 0, 0]), libc::EPERM);
        assert_eq!(
            error_of(libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0]),
            libc::EPERM
        );
        // A limit may be read into a place, and not set from one.
        let mut place = [0_u64; 2];
        let address = (&raw mut place).addr() as u64;
        assert_eq!(error_of(libc::SYS_prlimit64, [0, 0, 0, address]), 0);
        assert_eq!(
            error_of(libc::SYS_prlimit64, [0, 0, address, 0]),
            libc::EPERM
        );
        assert_eq!(number_of(UdpSocket::bind("127.0.0.1:0")), libc::EPERM);
        assert!(std::thread::Builder::new().spawn(|| ()).is_err());
        assert!(fs::read("/proc/self/status").is_ok());
    });
}

#[test]
fn seccomp_leaves_the_judge_its_child() {
    if !alone("seccomp_leaves_the_judge_its_child") {
        return;
    }
    let child = fork();
    if child == 0 {
        std::thread::sleep(std::time::Duration::from_mins(1));
        exit(0);
    }
    // The child of this test is not the child of the fork, which can only signal it.
    let raise = || {
        give_up_privileges(false)?;
        restrict_calls(Some(child))
    };
    in_child(raise, || {
        let child = u64::from(child.cast_unsigned());
        assert_eq!(error_of(libc::SYS_kill, [child, 0, 0, 0]), 0);
        assert_eq!(error_of(libc::SYS_wait4, [child, 0, 0, 0]), libc::ECHILD);
        assert_eq!(error_of(libc::SYS_wait4, [u64::MAX, 0, 0, 0]), libc::EPERM);
        assert_eq!(error_of(libc::SYS_kill, [1, 0, 0, 0]), libc::EPERM);
    });
    // SAFETY: the number is that of a child that was not waited for.
    assert_eq!(unsafe { libc::kill(child, libc::SIGKILL) }, 0);
    wait_for(child);
}

/// Of the private folder.
const SIZE: usize = 1 << 20;

#[test]
fn namespaces_hold_nothing_of_the_system() {
    if !alone("namespaces_hold_nothing_of_the_system") {
        return;
    }
    let (hidden, shown) = (folder("hidden"), folder("shown-there"));
    fs::write(shown.join("text"), "43").expect("a file");
    let readable = [
        shown.join("text"),
        shown.clone(),
        shown.clone(),
        PathBuf::from("/no/such"),
    ];
    in_child(
        || enter_namespaces(&readable, SIZE as u64),
        || {
            let first = shown.components().nth(1).expect("it is in some folder");
            for entry in fs::read_dir("/").expect("the new root") {
                let name = entry.expect("an entry").file_name();
                assert!(
                    name == "tmp" || name == first.as_os_str(),
                    "{}",
                    name.display()
                );
            }
            assert_eq!(fs::read(shown.join("text")).expect("what is shown"), b"43");
            assert!(!Path::new("/etc/passwd").exists());
            assert!(!Path::new("/proc/1").exists());
            assert!(!hidden.exists());
            // Root's own files cannot be changed in any way.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            assert_eq!(number_of(fs::set_permissions(&shown, mode)), libc::EROFS);
            assert_eq!(number_of(truncate(&shown.join("text"))), libc::EROFS);
            assert_eq!(number_of(File::create(shown.join("new"))), libc::EROFS);
            assert_eq!(number_of(File::create("/new")), libc::EROFS);
            // No more than so many bytes and files.
            assert_eq!(
                number_of(fs::write("/tmp/large", vec![1; 2 * SIZE])),
                libc::ENOSPC
            );
            fs::remove_file("/tmp/large").expect("its own file");
            let full = (0..5000).find_map(|i| File::create(format!("/tmp/{i}")).err());
            assert_eq!(
                full.and_then(|error| error.raw_os_error()),
                Some(libc::ENOSPC)
            );
            let refused = TcpStream::connect("127.0.0.1:1");
            assert_eq!(number_of(refused), libc::ENETUNREACH);
            // SAFETY: asks for a number.
            assert_eq!(unsafe { libc::getuid() }, 1000);
        },
    );
    fs::remove_dir(hidden).expect("the folder is where it was");
    fs::remove_dir_all(shown).expect("a folder of the test");
}

#[test]
fn namespaces_end_every_process_with_the_first() {
    if !alone("namespaces_end_every_process_with_the_first") {
        return;
    }
    in_child(
        || enter_namespaces(&[], 1 << 20),
        || {
            let mut ends = [0; 2];
            // SAFETY: two numbers are written.
            assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
            let first = fork();
            if first == 0 {
                assert_eq!(std::process::id(), 1);
                if fork() == 0 {
                    // SAFETY: a session of its own, out of reach of a signal to the group.
                    unsafe { libc::setsid() };
                    std::thread::sleep(std::time::Duration::from_mins(10));
                }
                exit(0);
            }
            assert_eq!(wait_for(first), 0);
            // SAFETY: the numbers are those of the pipe, used nowhere else.
            let (mut read, write) =
                unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
            drop(write);
            // It ends when nobody holds the other end, and the daemon held it.
            let mut nothing = Vec::new();
            assert_eq!(read.read_to_end(&mut nothing).expect("an end"), 0);
        },
    );
}

#[test]
fn limits_hold() {
    if !alone("limits_hold") {
        return;
    }
    let limits = Limits {
        memory_bytes: 4 << 30,
        cpu_seconds: 1000,
        file_bytes: 1000,
        n_open_files: 32,
    };
    in_child(
        || limit_resources(&limits),
        || {
            let mut large: Vec<u8> = Vec::new();
            assert!(large.try_reserve_exact(8 << 30).is_err());
            let files: Vec<_> = (0..100).map_while(|_| File::open("/").ok()).collect();
            assert!(files.len() < 32);
            drop(files);
            // SAFETY: ignoring a signal.
            unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
            let path = std::env::temp_dir().join(format!("rslm-limit-{}", std::process::id()));
            let outcome = fs::write(&path, [0; 2000]);
            fs::remove_file(&path).expect("the file was made");
            assert_eq!(number_of(outcome), libc::EFBIG);
        },
    );
}

#[test]
fn privileges_are_gone_for_good() {
    if !alone("privileges_are_gone_for_good") {
        return;
    }
    in_child(
        || give_up_privileges(true),
        || {
            let status = fs::read_to_string("/proc/self/status").expect("of this process");
            for line in [
                "CapEff:\t0000000000000000",
                "CapPrm:\t0000000000000000",
                "NoNewPrivs:\t1",
            ] {
                assert!(status.contains(line), "{line} must be in {status}");
            }
        },
    );
}

#[test]
fn a_refusal_is_a_sentence() {
    if !alone("a_refusal_is_a_sentence") {
        return;
    }
    // The filter's own call is not on its list, so a second filter is refused.
    let raise = || {
        give_up_privileges(false)?;
        restrict_calls(None)
    };
    in_child(raise, || {
        let error = restrict_calls(None)
            .expect_err("seccomp is denied")
            .to_string();
        assert!(error.starts_with("seccomp filters: "), "{error}");
        let error = enter_namespaces(&[], 1)
            .expect_err("unshare is denied")
            .to_string();
        assert!(error.contains("make no user"), "{error}");
        let limits = Limits {
            memory_bytes: 1,
            cpu_seconds: 1,
            file_bytes: 1,
            n_open_files: 1,
        };
        let error = limit_resources(&limits)
            .expect_err("setrlimit is denied")
            .to_string();
        assert!(error.starts_with("RLIMIT_AS: "), "{error}");
        let error = restrict_files(&[], &[], false)
            .expect_err("Landlock is denied")
            .to_string();
        assert!(error.starts_with("Landlock of version 3"), "{error}");
    });
}
