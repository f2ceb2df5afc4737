//! How content is named and asked for over HTTP: media types, Accept, byte ranges.

pub mod accept;
pub mod media;
pub mod range;
