//! Translated connections, read from the table of pairs: they are there until they have been silent for long enough,
//! also where flow entries were evicted.

use std::{net::IpAddr, os::fd::AsFd as _};

use aya::maps::Map;
use netpol_common::{
    nat::{NatKey, NatState, Translation},
    wire::{Addr4, Addr6, Address, PortBe, Protocol},
};

use super::{Datapath, Error, batch};

/// One connection that is translated, in the direction that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub protocol: Protocol,
    pub client: IpAddr,
    pub client_port: u16,
    /// Whom the client asked: the published address of a service, or the other end itself.
    pub asked: IpAddr,
    pub asked_port: u16,
    /// Who gets it.
    pub receiver: IpAddr,
    pub receiver_port: u16,
    /// Both directions were seen.
    pub answered: bool,
    /// TCP: a FIN or RST was seen.
    pub closing: bool,
}

impl Datapath {
    /// Gives every translated connection to `each`.
    ///
    /// # Errors
    /// Those of reading a map.
    pub fn each_pair(&self, mut each: impl FnMut(Pair)) -> Result<(), Error> {
        self.pairs::<Addr4>("NAT4", &mut each)?;
        self.pairs::<Addr6>("NAT6", &mut each)
    }

    fn pairs<A: Address + Into<IpAddr>>(&self, name: &'static str, each: &mut impl FnMut(Pair)) -> Result<(), Error>
    where
        NatKey<A>: aya::Pod,
        Translation<A>: aya::Pod,
    {
        let Map::HashMap(map) = self.pins.map(name)? else {
            unreachable!("the type of a pinned map is checked where it is opened");
        };
        let read = batch::read(map.fd().as_fd(), |key: &NatKey<A>, half: &Translation<A>| {
            // each connection has two halves
            if half.exists() && !half.is_reply() {
                each(pair(key, half));
            }
        });
        read.map_err(|error| Error::Read { map: name, error })
    }
}

fn pair<A: Address + Into<IpAddr>>(key: &NatKey<A>, half: &Translation<A>) -> Pair {
    let port = |port: PortBe| port.to_host();
    Pair {
        protocol: key.protocol.protocol(),
        client: key.source.into(),
        client_port: port(key.ports.source()),
        asked: key.destination.into(),
        asked_port: port(key.ports.destination()),
        receiver: half.rewrite.destination.into(),
        receiver_port: port(half.rewrite.ports.destination()),
        answered: half.state.has(NatState::ANSWERED),
        closing: half.state.has(NatState::CLOSING),
    }
}
