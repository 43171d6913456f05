//! Binding of [`crate::web::pii`].
