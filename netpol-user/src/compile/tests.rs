//! Compiled tables against what the documents say.

mod errors;
mod property;
mod services;
mod tables;
mod worlds;
