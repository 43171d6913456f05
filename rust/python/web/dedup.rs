//! Binding of [`crate::web::dedup`].
