//! The datapath on the host: the classifiers' logic over hash maps, on frames made of parts.
//!
//! netpol-user's differential test runs the same beside the classifiers in the kernel.
#![allow(dead_code, reason = "each test binary uses the part that it needs")]

pub mod classifier;
pub mod frame;
pub mod memory;

pub use classifier::{Arrival, classify};
pub use memory::Memory;
