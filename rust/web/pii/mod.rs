//! Personal data masked.
