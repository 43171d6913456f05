//! Landlock: which files the process may open.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

use crate::{Error, Result};

/// What the sandbox cannot do without: before it, a file opened for reading could be truncated.
const NEEDED: ABI = ABI::V3;
/// The newest that the crate knows; what the kernel does not have of it is left out.
const WANTED: ABI = ABI::V10;

/// Leaves reading beneath `readable`, and reading and writing beneath `writable`; whatever
/// else the newest Landlock of this crate and this kernel knows is denied. Needs
/// [`give_up_privileges`](super::give_up_privileges) before it.
///
/// `killer`: this process has to signal one that is not inside the same wall.
pub fn restrict_files(readable: &[PathBuf], writable: &[PathBuf], killer: bool) -> Result<()> {
    let refused = |reason: &dyn std::fmt::Display| {
        Error::Sandbox(format!(
            "Landlock of version 3 (Linux 6.2) or newer: {reason}"
        ))
    };
    let status = build(readable, writable, killer).map_err(|error| refused(&error))?;
    match status {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        RulesetStatus::NotEnforced => Err(refused(&"the kernel does not enforce it")),
    }
}

type Built = std::result::Result<RulesetStatus, Box<dyn std::error::Error>>;

fn build(readable: &[PathBuf], writable: &[PathBuf], killer: bool) -> Built {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(NEEDED))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(AccessNet::from_all(WANTED))?;
    if !killer {
        rules = rules.scope(Scope::from_all(WANTED))?;
    }
    let mut rules = rules.create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // Nothing is to be run, and no device, socket or pipe is to be made.
    let write = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSym
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    for (paths, access) in [(readable, read), (writable, write)] {
        for path in paths.iter().filter(|path| path.exists()) {
            rules = rules.add_rule(beneath(path, access)?)?;
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}

type Rule = std::result::Result<PathBeneath<PathFd>, Box<dyn std::error::Error>>;

fn beneath(path: &Path, access: landlock::BitFlags<AccessFs>) -> Rule {
    let of_files = if path.is_dir() {
        access
    } else {
        access & AccessFs::from_file(WANTED)
    };
    Ok(PathBeneath::new(PathFd::new(path)?, of_files))
}
