//! The named recipes of rules.
