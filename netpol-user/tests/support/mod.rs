//! A host with containers for one test: all of it in network namespaces without a name, so tests
//! don't meet each other and a test that dies leaves nothing behind.
//!
//! ```text
//! let host = Host::new();
//! host.bridge("br0", &["10.0.0.1/16", "fd00::1/64"]);
//! let a = host.endpoint("br0", "a", &["10.0.0.10/16", "fd00::10/64"]);
//! let b = host.routed_endpoint("b", &["10.1.0.5", "fd01::5"]);
//! let _server = b.serve_tcp(80);
//! assert_eq!(a.tcp("10.1.0.5:80"), Seen::Answered);
//! ```
//!
//! | file | what |
//! |---|---|
//! | `topology` | hosts, bridges, endpoints |
//! | `net` | links, addresses and routes inside one namespace |
//! | `traffic` | real connections between them, and raw frames |
//! | `client` | whom a server takes its client for |
//! | `bulk` | much data, compared |
//! | `checksums` | those of what an interface receives |
//! | `offload` | what interfaces leave to hardware |
//! | `translated` | services and pools, and a machine behind a router outside |
//! | `netpol` | the real command, inside a host |
//! | `observer` | the command that observes, beside a test |
//! | `policy` | documents, and what the command counts and remembers |
//! | `scene` | endpoints, host and outside, bridged or routed |
//! | `shop` | one of them, busy |
//! | `example` | the examples of `policies/`, up and loaded |
//! | `folder` | documents for commands that need neither host nor root |
//! | `browser` | a real Chromium, driven |
//! | `packet` | frames byte by byte |
//! | `terminal` | the command in a terminal: its screen, keys and clicks |
//! | `web` | ports that the command serves |
//! | `wire` | what became of a frame |
#![allow(dead_code, unused_imports, reason = "each test uses the part that it needs")]

mod browser;
pub mod bulk;
mod checksums;
mod client;
mod example;
mod folder;
mod net;
mod netpol;
mod observer;
mod offload;
pub mod packet;
pub mod policy;
mod scene;
pub mod shop;
pub mod terminal;
mod topology;
mod traffic;
pub mod translated;
mod web;
pub mod wire;

pub use browser::Browser;
pub use checksums::{Tally, Tap};
pub use client::client_of;
pub use example::{Example, files, policies};
pub use folder::Folder;
pub use net::Net;
pub use netpol::Ran;
pub use observer::{Watch, wait_until};
pub use offload::Offloads;
pub use policy::{Counts, FAMILIES, Family};
pub use scene::{HOST, LAYOUTS, Layout, Scene, pair};
pub use shop::Shop;
pub use topology::{Endpoint, Host};
pub use traffic::{Attempt, RawSocket, Seen, Server, check, exchange};
pub use web::{Answer, Served};
pub use wire::{Fate, Wire};
