//! Walls around this process.

use std::path::PathBuf;

use pyo3::prelude::*;

use crate::sandbox::{self, Limits};

#[pyfunction]
#[pyo3(signature = (readable, directory_bytes))]
pub fn enter_namespaces(readable: Vec<PathBuf>, directory_bytes: u64) -> PyResult<()> {
    Ok(sandbox::enter_namespaces(&readable, directory_bytes)?)
}

#[pyfunction]
#[pyo3(signature = (memory_bytes, cpu_seconds, file_bytes, n_open_files))]
pub fn limit_resources(
    memory_bytes: u64,
    cpu_seconds: u64,
    file_bytes: u64,
    n_open_files: u64,
) -> PyResult<()> {
    Ok(sandbox::limit_resources(&Limits {
        memory_bytes,
        cpu_seconds,
        file_bytes,
        n_open_files,
    })?)
}

#[pyfunction]
#[pyo3(signature = (die_with_parent))]
pub fn give_up_privileges(die_with_parent: bool) -> PyResult<()> {
    Ok(sandbox::give_up_privileges(die_with_parent)?)
}

#[pyfunction]
#[pyo3(signature = (readable, writable, killer))]
pub fn restrict_files(
    readable: Vec<PathBuf>,
    writable: Vec<PathBuf>,
    killer: bool,
) -> PyResult<()> {
    Ok(sandbox::restrict_files(&readable, &writable, killer)?)
}

#[pyfunction]
#[pyo3(signature = (child))]
pub fn restrict_calls(child: Option<i32>) -> PyResult<()> {
    Ok(sandbox::restrict_calls(child)?)
}
