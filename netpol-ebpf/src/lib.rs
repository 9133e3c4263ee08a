//! The classifiers: how a frame goes through netpol-common's logic, bound to the kernel.
//!
//! | module | one idea |
//! |---|---|
//! | [`classify`] | the way of a frame: parse, look the flow up, act; else the slow path |
//! | [`uplink`] | the way of a frame at an interface to the outside |
//! | [`flows`] | the hot path: entries that speak for a packet |
//! | [`places`] | what is remembered of connections |
//! | [`denials`] | what is remembered of refused packets |
//! | [`unusual`] | fragments, extension headers, ICMP errors, ARP and neighbour discovery |
//! | [`verified`] | functions that the verifier looks at on their own |
//! | [`frame`] | a frame's bytes and what the kernel says of it |
//! | [`clock`] | the time |
//! | [`socket`] | the host's own sockets, translated before there is a packet |
//! | [`family`] | the maps and functions of each address family |
//! | [`tables`] | netpol-common's questions, answered by maps |
//! | [`maps`] | the maps |
//! | [`rewrite`] | other addresses and ports, and checksums that fit |
//! | [`leave`] | the hop that a packet takes which leaves by an uplink |
//! | [`refuse`] | what a client is told where nobody is behind a published address |
//! | [`aging`] | the timer that ends silent translations |
//! | [`tell`] | what observers are told |
//! | [`act`] | verdicts become return codes, redirections and counters, in one place |
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics, asm_experimental_arch), allow(internal_features))]

pub mod act;
pub mod aging;
pub mod classify;
pub mod clock;
pub mod denials;
pub mod family;
pub mod flows;
pub mod frame;
pub mod leave;
pub mod maps;
pub mod places;
pub mod refuse;
pub mod rewrite;
pub mod socket;
pub mod tables;
pub mod tell;
pub mod unusual;
pub mod uplink;
pub mod verified;
