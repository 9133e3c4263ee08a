//! What both halves of netpol share: the layout of every table, and the logic that decides.
//!
//! In the order in which a packet meets it:
//!
//! | module | one idea |
//! |---|---|
//! | [`wire`] | addresses, ports, protocols and headers as they are on the wire |
//! | [`tables`] | keys and values of the policy tables that the loader fills |
//! | [`policy`] | the verdict that those tables give |
//!
//! Nothing here allocates, panics or knows about the kernel: the source that the verifier accepts
//! is the source that the host's tests run.
#![no_std]

#[macro_use]
mod pod;

pub mod policy;
pub mod tables;
pub mod wire;
