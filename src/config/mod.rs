//! Configuration: plain data, where it comes from, and what is wrong with it.

pub mod schema;

pub use schema::Config;
