//! Userspace of netpol, in the order in which data flows:
//!
//! ```text
//! source -> format -> model -> compile -> datapath        what is wanted, towards the kernel
//! datapath -> observe -> cli                              what happens, back to people
//! ```
//!
//! | module | one idea |
//! |---|---|
//! | [`format`] | documents: YAML to [`model`], with the position of everything that is wrong |
//! | [`source`] | who is running here: endpoints found over netlink |
//! | `netlink` | asking the kernel about its network, without a runtime |
//! | [`netns`] | entering other network namespaces |
//! | [`privileges`] | which capability is missing, and what for |
//! | [`model`] | endpoints, tiers of policies of rules, and what they mean |
//! | [`compile`] | a model as plain tables: a [`compile::Snapshot`] |
//! | [`enforce`] | from documents to an enforced policy: the order of things |
//! | [`state`] | the names of what is enforced |
//! | [`datapath`] | the only module that speaks aya: load, attach, pin, publish |
//! | `sockets` | sockets of this namespace, found and closed |
//! | [`observe`] | flows and counters as the kernel has them, with names |
//! | [`map`] | who talks to whom, as a picture |
//! | [`metrics`] | the same, for Prometheus |
//! | `web` | a local port: bounded, and for this machine only |
//! | [`diff`] | what would change between two sets of documents, and for what is open now |
//! | [`trace`] | one connection, explained: by the rules, and by the kernel |
//! | [`suggest`] | policies from the flows that were seen |
//! | [`verify`] | real connections between endpoints against the matrix |
//! | [`cli`] | the commands |
//!
//! The library prints nothing and ends no process; [`cli`] does.

pub mod cli;
pub mod compile;
pub mod datapath;
pub mod diff;
pub mod enforce;
pub mod format;
pub mod map;
pub mod metrics;
pub mod model;
mod netlink;
pub mod netns;
pub mod observe;
pub mod privileges;
mod sockets;
pub mod source;
pub mod state;
pub mod suggest;
pub mod trace;
pub mod verify;
mod web;
