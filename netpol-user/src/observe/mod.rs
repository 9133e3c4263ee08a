//! What happens, with names: the kernel's records of flows and denials, made readable.
//!
//! | file | one idea |
//! |---|---|
//! | `flow` | a record as scripts see it |
//! | `reader` | names for numbers |
//! | `connection` | both directions as one row |
//! | `sampler` | what changes from reading to reading: rates, history |
//! | `tcp` | the state of a connection, from the flags of both directions |
//! | `filter` | which flows somebody wants to see |
//! | `summary` | connections put together: by endpoint, by rule |

mod clock;
mod connection;
pub mod filter;
mod flow;
mod reader;
pub mod sampler;
#[cfg(test)]
pub mod scene;
pub mod summary;
pub mod tcp;

pub use connection::{Connection, Key, Row};
pub use filter::Filter;
pub use flow::{Cause, Explanation, Flow, Interface, Peer, TcpFlags};
pub use reader::{Between, Reader};
pub use sampler::{Sample, Sampler};
