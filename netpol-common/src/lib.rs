//! What both halves of netpol share: the layout of every table, and the logic that decides.
//!
//! In the order in which a packet meets it:
//!
//! | module | one idea |
//! |---|---|
//! | [`headers`] | headers as they lie in a frame |
//! | [`parse`] | from a frame to addresses, protocol and ports, for IPv4 and IPv6 alike |
//! | [`flow`] | what is remembered of a connection |
//! | [`table`] | where: a hash table in an array |
//! | [`decide`] | the slow path: who speaks, who opened, what the policy says, what to remember |
//! | [`denial`] | where it is remembered that packets are refused |
//! | [`guard`] | ARP and neighbour discovery: nobody claims another's address |
//! | [`policy`] | a verdict from the policy tables |
//! | [`nat`] | translated connections: pairs of tuples, ports, ages |
//! | [`service`] | published addresses and the backends behind them |
//! | [`refuse`] | what a client is told where nobody is behind a published address |
//! | [`socket`] | services for the host's own sockets |
//! | [`tables`] | keys and values of the policy tables that the loader fills |
//! | [`kernel`] | what the logic asks of the world |
//! | [`drops`] | why packets are dropped, and where the others go |
//! | [`event`] | what observers are told of it |
//! | [`wire`] | addresses, ports and protocols |
//!
//! Nothing here allocates, panics or knows about the kernel: the source that the verifier accepts
//! is the source that the host's tests run.
#![no_std]

#[macro_use]
mod pod;

pub mod decide;
pub mod denial;
pub mod drops;
pub mod event;
pub mod flow;
pub mod guard;
pub mod headers;
pub mod kernel;
pub mod nat;
pub mod parse;
pub mod policy;
pub mod refuse;
pub mod service;
pub mod socket;
pub mod table;
pub mod tables;
pub mod wire;
