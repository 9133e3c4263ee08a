//! Where the host would send something.

use std::net::IpAddr;

use netpol_common::tables::IfIndex;

use super::{Error, links};
use crate::netlink::{Family, Socket};

/// The interface through which the calling thread's namespace would send to an address; `None`: through none.
pub fn route(address: IpAddr) -> Result<Option<IfIndex>, Error> {
    let failed = |error| Error::Kernel { what: "the routes", error };
    let mut socket = Socket::open(Family::Route).map_err(failed)?;
    Ok(links::route(&mut socket, address).map_err(failed)?.map(IfIndex))
}
