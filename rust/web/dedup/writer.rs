//! Files of sections, written: see [`super::container`] for what is where.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::container::{Kind, MAGIC, Section, VERSION};
use crate::{Error, Result};

/// A file that is being written; dropped before its end it leaves nothing.
pub struct Writer {
    path: PathBuf,
    beside: PathBuf,
    file: BufWriter<File>,
    n_written: u64,
    section: Section,
    hasher: Xxh3,
    sections: Vec<Section>,
    is_done: bool,
}

impl Writer {
    /// Begins a file beside `path`.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(path: &Path) -> Result<Self> {
        let beside = beside(path, "tmp");
        let file = File::create(&beside).map_err(|error| Error::io(path, error))?;
        let mut writer = Self {
            path: path.to_path_buf(),
            beside,
            file: BufWriter::with_capacity(1 << 18, file),
            n_written: 0,
            section: Section {
                start: 0,
                n_bytes: 0,
                record_bytes: 1,
                checksum: 0,
            },
            hasher: Xxh3::new(),
            sections: Vec::new(),
            is_done: false,
        };
        writer.raw(&MAGIC)?;
        Ok(writer)
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.n_written += bytes.len() as u64;
        let written = self.file.write_all(bytes);
        written.map_err(|error| Error::io(&self.path, error))
    }

    /// Begins a section of records of a size.
    pub fn begin(&mut self, record_bytes: usize) {
        self.section = Section {
            start: self.n_written,
            n_bytes: 0,
            record_bytes: record_bytes as u64,
            checksum: 0,
        };
        self.hasher.reset();
    }

    /// Appends to the section.
    ///
    /// # Errors
    /// `Io`.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.raw(bytes)
    }

    /// Bytes of the section so far.
    pub fn section_bytes(&self) -> u64 {
        self.n_written - self.section.start
    }

    /// Ends the section.
    pub fn end(&mut self) {
        let n_bytes = self.section_bytes();
        let checksum = self.hasher.digest();
        self.sections.push(Section {
            n_bytes,
            checksum,
            ..self.section
        });
    }

    /// Writes the footer, and gives the file its name.
    ///
    /// # Errors
    /// `Io`; what had the name before is untouched then.
    pub fn finish(mut self, kind: Kind, numbers: &[u64]) -> Result<()> {
        let mut footer: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        for section in &self.sections {
            for number in [
                section.start,
                section.n_bytes,
                section.record_bytes,
                section.checksum,
            ] {
                footer.extend(number.to_le_bytes());
            }
        }
        let start = self.n_written;
        let counts = [
            start,
            numbers.len() as u64,
            self.sections.len() as u64,
            xxh3_64(&footer),
        ];
        footer.extend(counts.iter().flat_map(|n| n.to_le_bytes()));
        footer.extend((kind as u32).to_le_bytes());
        footer.extend(VERSION.to_le_bytes());
        footer.extend(MAGIC);
        self.raw(&footer)?;
        let written = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all());
        written
            .and_then(|()| fs::rename(&self.beside, &self.path))
            .and_then(|()| sync_folder_of(&self.path))
            .map_err(|error| Error::io(&self.path, error))?;
        self.is_done = true;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_done {
            let _ = fs::remove_file(&self.beside);
        }
    }
}

/// A name in the same folder that no other process uses.
pub(super) fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{what}-{}", std::process::id()));
    path.with_file_name(name)
}

pub(super) fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}
