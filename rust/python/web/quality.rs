//! Binding of [`crate::web::quality`].
