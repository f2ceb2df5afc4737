//! What a timer or an operator can ask for, one verb per file.

pub mod convert;
pub mod layout;
pub mod scrub;
