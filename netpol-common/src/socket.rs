//! Services for the host's own sockets: a socket that wants a published address gets a backend's instead, before
//! there is a packet, and is told the published one whenever it asks who the other end is.
//!
//! So `localhost` works, too: a packet from a loopback address could not leave the host, but a socket that has no
//! address yet gets the one that fits the backend.

use crate::{
    drops::Drop,
    flow::Ticks,
    kernel::Services,
    service::{self, AffinityKey, Backend, ServiceKey},
    wire::{Addr4, Addr6, Address, PortBe, Protocol},
};

/// The kernel's number for a socket, never given again (`bpf_get_socket_cookie`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct SocketCookie(pub [u32; 2]);

impl SocketCookie {
    #[inline(always)]
    pub const fn new(cookie: u64) -> Self {
        Self([cookie as u32, (cookie >> 32) as u32])
    }

    #[inline(always)]
    const fn fold(self) -> u32 {
        let Self([low, high]) = self;
        low ^ high.rotate_left(16)
    }
}

pod! {
    /// Key of what a socket asked for when it got this backend.
    pub struct SocketKey<A: Address> {
        pub cookie: SocketCookie,
        pub backend: A,
        pub port: PortBe,
        pub protocol: Protocol,
        pub zero: u8,
    }
}

const _: () = {
    let () = SocketKey::<Addr4>::NO_PADDING;
    let () = SocketKey::<Addr6>::NO_PADDING;
};

/// What is remembered of sockets, besides the services themselves.
pub trait Sockets<A: Address>: Services<A> {
    /// Remembers what the socket asked for, for as long as there is room; of two that led to one backend, the later.
    fn note(&self, key: &SocketKey<A>, wanted: &ServiceKey<A>);
}

/// The backend for a socket that wants to reach an address; `None`: that is not published. One socket always gets the
/// same, while the backends are the same: datagrams of one conversation go to one place.
///
/// # Errors
///
/// [`Drop::NoBackend`]: nobody is behind the published address.
#[inline(always)]
pub fn reach<A: Address, K: Sockets<A>>(
    kernel: &K,
    cookie: SocketCookie,
    wanted: &ServiceKey<A>,
    now: Ticks,
) -> Result<Option<Backend<A>>, Drop> {
    let Some(value) = kernel.service(wanted) else { return Ok(None) };
    let &ServiceKey { address, port, protocol, .. } = wanted;
    let affinity = value.affinity;
    // with affinity the whole host is one client, which has no address yet
    let socket = if affinity == 0 { cookie.fold() } else { 0 };
    let hash = service::hash(&A::UNSPECIFIED, PortBe::ZERO, address.fold() ^ port.0 as u32 ^ socket);
    let Some(entry) = service::pick(hash, value) else { return Err(Drop::NoBackend) };
    let client = AffinityKey { client: A::UNSPECIFIED, address, port, protocol, zero: 0 };
    let Some(backend) = service::choose(kernel, &client, (entry, affinity), now) else {
        return Err(Drop::NoBackend);
    };
    kernel.note(&SocketKey { cookie, backend: backend.address, port: backend.port, protocol, zero: 0 }, wanted);
    Ok(Some(backend))
}
