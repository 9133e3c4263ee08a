//! What the datapath decides, told packet by packet.
//!
//! | file | what |
//! |---|---|
//! | `lab` | three workloads on a bridge, and what they say to each other |
//! | `ends` | who may speak, and who may be spoken to |
//! | `opening` | who opened a connection |
//! | `memory` | what is remembered, and for how long |
//! | `audit` | what audited policies would stop |
//! | `nat` | what is translated, and back |
//! | `sockets` | services for the host's own sockets |
//! | `links` | DHCP, ARP, neighbour discovery, what has no flow |
//! | `parsing` | frames, whole and broken |

mod audit;
mod ends;
mod lab;
mod links;
mod memory;
mod nat;
mod opening;
mod parsing;
mod sockets;
mod support;
