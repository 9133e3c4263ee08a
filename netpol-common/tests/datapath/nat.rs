//! Connections through services and out of pools, played through all hooks that their packets pass.

mod errors;
mod expiry;
mod outside;
mod pairs;
pub mod play;
mod services;
mod uplinks;
