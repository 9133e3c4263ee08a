//! What the host's own sockets asked for, where they were led to a backend: read from `SOCKETS4` and `SOCKETS6`.

use std::{net::IpAddr, os::fd::AsFd as _};

use aya::maps::Map;
use netpol_common::{
    service::ServiceKey,
    socket::{SocketCookie, SocketKey},
    wire::{Addr4, Addr6, Address, Protocol},
};

use super::{Datapath, Error, batch};

/// A socket, the backend that it was led to, and what it had asked for. The socket may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub cookie: SocketCookie,
    pub protocol: Protocol,
    pub backend: IpAddr,
    pub backend_port: u16,
    pub published: IpAddr,
    pub published_port: u16,
}

impl Datapath {
    /// Gives all that is remembered to `each`.
    ///
    /// # Errors
    /// Those of reading a map.
    pub fn each_asked(&self, mut each: impl FnMut(Asked)) -> Result<(), Error> {
        self.asked::<Addr4>("SOCKETS4", &mut each)?;
        self.asked::<Addr6>("SOCKETS6", &mut each)
    }

    fn asked<A: Address + Into<IpAddr>>(&self, name: &'static str, each: &mut impl FnMut(Asked)) -> Result<(), Error>
    where
        SocketKey<A>: aya::Pod,
        ServiceKey<A>: aya::Pod,
    {
        let Map::LruHashMap(map) = self.pins.map(name)? else {
            unreachable!("the type of a pinned map is checked where it is opened");
        };
        let read = batch::read(map.fd().as_fd(), |key: &SocketKey<A>, wanted: &ServiceKey<A>| {
            each(Asked {
                cookie: key.cookie,
                protocol: key.protocol,
                backend: key.backend.into(),
                backend_port: key.port.to_host(),
                published: wanted.address.into(),
                published_port: wanted.port.to_host(),
            });
        });
        read.map_err(|error| Error::Read { map: name, error })
    }
}
