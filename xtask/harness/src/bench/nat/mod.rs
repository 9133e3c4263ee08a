//! What is translated, measured like everything else.
//!
//! | module | one idea |
//! |---|---|
//! | [`site`] | a host with containers, an uplink and a machine behind it |
//! | [`documents`] | services, a pool, a policy |
//! | [`guards`] | who translates: nobody, netpol, iptables, nftables |
//! | [`paths`] | courses that are translated, over all guards in turn |
//! | [`packets`] | one translated packet in the classifier alone |
//! | [`backends`] | a thousand backends come and go while connections are open |

pub mod backends;
mod documents;
pub mod guards;
pub mod packets;
pub mod paths;
mod site;
