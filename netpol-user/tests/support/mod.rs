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
//! | `netpol` | the real command, inside a host |
//! | `policy` | documents, and what the command counts and remembers |
//! | `scene` | endpoints, host and outside, bridged or routed |
//! | `packet` | frames byte by byte |
//! | `wire` | what became of a frame |
#![allow(dead_code, unused_imports, reason = "each test uses the part that it needs")]

mod client;
mod net;
mod netpol;
pub mod packet;
pub mod policy;
mod scene;
mod topology;
mod traffic;
pub mod wire;

pub use client::client_of;
pub use net::Net;
pub use netpol::Ran;
pub use policy::{Counts, FAMILIES, Family};
pub use scene::{HOST, LAYOUTS, Layout, Scene, pair};
pub use topology::{Endpoint, Host};
pub use traffic::{Attempt, RawSocket, Seen, Server, check, exchange};
pub use wire::{Fate, Wire};
