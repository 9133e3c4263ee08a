//! What happens, with names: the kernel's records of flows and denials, made readable.
//!
//! | file | one idea |
//! |---|---|
//! | `flow` | a record as scripts see it |
//! | `reader` | names for numbers |
//! | `connection` | both directions as one row |
//! | `service` | a service as listings see it |
//! | `sampler` | what changes from reading to reading: rates, history |
//! | `happening` | what an observer was told, with names |
//! | `stream` | one after the other, as they happen, and what was missed |
//! | `tcp` | the state of a connection, from the flags of both directions |
//! | `filter` | which flows somebody wants to see |
//! | `summary` | connections put together: by endpoint, by rule |
//! | `census` | what services do: connections, packets, how backends behave |
//! | `conversation` | records as questions: who opened which connection to whom |
//! | `condition` | whether what was loaded is enforced |
//! | `ends` | who has an address: an endpoint, the host, somebody outside |
//! | `tally` | records put together by who talks to whom and what decided |
//! | `hits` | packets by rule |
//! | `graph` | the same as nodes and edges |

pub mod census;
mod clock;
pub mod condition;
mod connection;
mod conversation;
mod ends;
pub mod filter;
mod flow;
pub mod graph;
mod happening;
mod hits;
mod reader;
pub mod sampler;
#[cfg(test)]
pub mod scene;
mod service;
mod stream;
pub mod summary;
mod tally;
pub mod tcp;

pub use clock::rfc3339;
pub use condition::Condition;
pub use connection::{Connection, Key, Row};
pub use conversation::{Conversation, Speaker, conversations};
pub use ends::{End, Ends};
pub use filter::Filter;
pub use flow::{Cause, Explanation, Flow, Interface, Leaving, Peer, ServiceName, TcpFlags};
pub use happening::{Happening, Told, What};
pub use hits::{Hits, hits};
pub use reader::{Between, Reader};
pub use sampler::{Sample, Sampler};
pub use service::ServiceRow;
pub use stream::{Item, Stream, Wanted};
pub use tally::{Amount, Kind, Reason, Sum, protocol, tally};

#[cfg(test)]
mod tests;
