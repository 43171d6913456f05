//! Where there are no walls, each refuses.

#![allow(missing_docs)]

use std::path::PathBuf;

use super::Limits;
use crate::{Error, Result};

fn refuse() -> Result<()> {
    Err(Error::Sandbox(format!(
        "the sandbox needs Linux, this is {}",
        std::env::consts::OS
    )))
}

pub fn enter_namespaces(_readable: &[PathBuf], _directory_bytes: u64) -> Result<()> {
    refuse()
}

pub fn limit_resources(_limits: &Limits) -> Result<()> {
    refuse()
}

pub fn give_up_privileges(_die_with_parent: bool) -> Result<()> {
    refuse()
}

pub fn restrict_files(_: &[PathBuf], _: &[PathBuf], _killer: bool) -> Result<()> {
    refuse()
}

pub fn restrict_calls(_child: Option<i32>) -> Result<()> {
    refuse()
}
