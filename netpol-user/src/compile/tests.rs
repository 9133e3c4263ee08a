//! Compiled tables against what the documents say.

mod errors;
mod property;
mod tables;
mod worlds;
