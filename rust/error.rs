//! The one error type of the crate.
//!
//! A message says what must hold, what was given and where (path and offset);
//! the binding maps each variant to one Python exception.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong in training, encoding, decoding and token files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused to read or write a path.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// The system's own error.
        source: io::Error,
    },
    /// A token file or vocabulary file does not hold what its format requires.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file concerned.
        path: PathBuf,
        /// What must hold, what was found, at which offset.
        reason: String,
    },
    /// An argument is out of range or contradicts another.
    #[error("{0}")]
    Argument(String),
    /// A token id or token that the vocabulary does not hold.
    #[error("{0}")]
    UnknownToken(String),
    /// Text that is not UTF-8 under `errors="strict"`.
    #[error(
        "{place}: invalid UTF-8 at byte {offset}; pass errors=\"replace\" or errors=\"raw\" to accept it"
    )]
    Utf8 {
        /// The file or argument concerned.
        place: String,
        /// Byte offset of the first invalid byte.
        offset: u64,
    },
    /// The system does not give a wall that a sandbox stands on.
    #[error("{0}")]
    Sandbox(String),
    /// The caller asked to stop (Ctrl-C in Python).
    #[error("interrupted")]
    Interrupted,
}

/// Result with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps a system error with the path it concerns.
    pub fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io {
            path: path.as_ref().to_path_buf(),
            source,
        }
    }

    /// A corrupt or foreign file, with the reason.
    pub fn format(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Format {
            path: path.as_ref().to_path_buf(),
            reason: reason.into(),
        }
    }
}
