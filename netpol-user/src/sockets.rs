//! Sockets of this network namespace, found and closed, as `ss` and `ss -K` do it (sock_diag(7)).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytes::BufMut as _;
use netpol_common::{socket::SocketCookie, wire::Protocol};

use crate::netlink::{self, Family, Socket, word};

/// A socket with another end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connected {
    pub cookie: SocketCookie,
    pub protocol: Protocol,
    /// An IPv4 address also where an IPv6 socket has it as `::ffff:a.b.c.d`.
    pub peer: IpAddr,
    pub peer_port: u16,
}

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY`, linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// `struct inet_diag_sockid`, linux/inet_diag.h: ports (2 + 2), addresses (16 + 16), interface (4), cookie (8).
const ID: usize = 48;
/// `enum`, net/tcp_states.h: all those that have another end, and are not merely waited for.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// What can be a service's.
const KINDS: [(i32, Protocol); 4] = [
    (libc::AF_INET, Protocol::TCP),
    (libc::AF_INET, Protocol::UDP),
    (libc::AF_INET6, Protocol::TCP),
    (libc::AF_INET6, Protocol::UDP),
];

/// Gives all of them to `each`.
///
/// # Errors
/// What the kernel says: `ENOENT` where it cannot list sockets (`CONFIG_INET_DIAG`, `CONFIG_INET_UDP_DIAG`).
pub fn each(mut each: impl FnMut(&Connected)) -> io::Result<()> {
    let mut netlink = Socket::open(Family::SockDiag)?;
    for (family, protocol) in KINDS {
        let (sockets, _) = netlink.dump_once(BY_FAMILY, &request(family, protocol, &[0; ID]))?;
        sockets.iter().filter_map(|message| read(message, protocol)).for_each(|(_, socket)| each(&socket));
    }
    Ok(())
}

/// Closes those that are wanted: whoever has one open gets `ECONNABORTED`, the other end of TCP a RST. Returns how many.
///
/// # Errors
/// What the kernel says: `EOPNOTSUPP` where it was built without that (`CONFIG_INET_DIAG_DESTROY`), `ENOENT` where it
/// cannot list sockets (`CONFIG_INET_DIAG`, `CONFIG_INET_UDP_DIAG`).
pub fn close(mut wanted: impl FnMut(&Connected) -> bool) -> io::Result<usize> {
    let mut netlink = Socket::open(Family::SockDiag)?;
    let mut closed = 0;
    for (family, protocol) in KINDS {
        // it may change while it is read: nobody new has a cookie that is wanted
        let (sockets, _) = netlink.dump_once(BY_FAMILY, &request(family, protocol, &[0; ID]))?;
        for message in sockets {
            let Some((id, socket)) = read(&message, protocol) else { continue };
            if !wanted(&socket) {
                continue;
            }
            // the cookie is part of what it is found by: nobody else's is closed
            match netlink.change(DESTROY, 0, &request(family, protocol, id)) {
                Ok(()) => closed += 1,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(closed)
}

/// `struct inet_diag_req_v2`
fn request(family: i32, protocol: Protocol, id: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(8 + ID);
    body.put_u8(family as u8);
    body.put_u8(protocol.0);
    body.put_u16_ne(0);
    body.put_u32_ne(STATES);
    body.put_slice(id);
    body
}

/// `struct inet_diag_msg`: family, state, timer, retransmissions, and then who it is.
fn read(message: &[u8], protocol: Protocol) -> Option<(&[u8], Connected)> {
    let family = i32::from(*message.first()?);
    let id = message.get(4..4 + ID)?;
    let peer = match family {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(*id[20..].first_chunk::<4>()?)),
        libc::AF_INET6 => Ipv6Addr::from(*id[20..].first_chunk::<16>()?).to_canonical(),
        _ => return None,
    };
    let peer_port = netlink::half(&id[2..]).map(u16::from_be)?;
    let cookie = SocketCookie([word(&id[40..])?, word(&id[44..])?]);
    Some((id, Connected { cookie, protocol, peer, peer_port }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(family: i32, peer: &[u8]) -> Vec<u8> {
        let mut id = [0; ID];
        id[..4].copy_from_slice(&[0x9c, 0x40, 0x1f, 0x90]);
        id[20..20 + peer.len()].copy_from_slice(peer);
        id[40..44].copy_from_slice(&7u32.to_ne_bytes());
        id[44..].copy_from_slice(&1u32.to_ne_bytes());
        [&[family as u8, 1, 0, 0][..], &id, &[0; 20]].concat()
    }

    #[test]
    fn a_sockets_other_end_is_read_in_either_family() {
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2];
        for (message, peer) in [
            (message(libc::AF_INET, &[10, 0, 0, 2]), "10.0.0.2"),
            (message(libc::AF_INET6, &mapped), "10.0.0.2"),
            (message(libc::AF_INET6, &Ipv6Addr::LOCALHOST.octets()), "::1"),
        ] {
            let (_, socket) = read(&message, Protocol::UDP).unwrap();
            let expected = Connected {
                cookie: SocketCookie::new(1 << 32 | 7),
                protocol: Protocol::UDP,
                peer: peer.parse().unwrap(),
                peer_port: 8080,
            };
            assert_eq!(socket, expected);
        }
    }

    #[test]
    fn what_is_cut_short_is_no_socket() {
        let whole = message(libc::AF_INET, &[10, 0, 0, 2]);
        for length in 0..4 + ID {
            assert!(read(&whole[..length], Protocol::TCP).is_none(), "{length}");
        }
        assert!(read(&message(libc::AF_UNIX, &[]), Protocol::TCP).is_none());
    }
}
