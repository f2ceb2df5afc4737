//! Content negotiation over HTTP: media types, the Accept header, byte ranges.

pub mod accept;
pub mod media;
pub mod range;
