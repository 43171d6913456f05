//! Binding of [`crate::web::extract`].
