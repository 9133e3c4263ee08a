//! The host's own sockets, at the hooks of a control group: whom they want becomes whom they get, and back.
//!
//! The hooks see the sockets of all containers below that group as well: those are of other network namespaces.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
};
use netpol_common::{
    kernel::Settings,
    parse::{V4, V6},
    service::ServiceKey,
    socket::{self, SocketCookie, SocketKey},
    wire::{Addr4, Addr6, PortBe, Protocol},
};

use crate::{
    clock::now,
    family::Maps,
    maps,
    tables::{Tables, live},
};

/// What programs answer: go on, or fail with the error that was set.
const PASS: i32 = 1;
const REFUSE: i32 = 0;
/// `-ECONNREFUSED`, asm-generic/errno.h.
const ECONNREFUSED: i32 = -111;

const TCP: u32 = Protocol::TCP.0 as u32;
const UDP: u32 = Protocol::UDP.0 as u32;

/// How an address is written in the hook's context.
trait Written {
    type Family: Maps<Address = Self::Address>;
    type Address: netpol_common::wire::Address;

    fn read(context: *mut bpf_sock_addr) -> Self::Address;
    fn write(context: *mut bpf_sock_addr, address: Self::Address);
}

enum Four {}
enum Six {}
/// An IPv4 address as IPv6 sockets see it: `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2).
enum Mapped {}

// SAFETY (of all below): the context that the kernel gave to the program, valid while it runs. Words are read and written
// one by one: of a whole array the compiler would make pointers into the context, which the verifier refuses.

#[inline(always)]
fn word(context: *mut bpf_sock_addr, index: usize) -> u32 {
    // SAFETY: see above.
    unsafe { core::ptr::read_volatile(&raw const (*context).user_ip6[index]) }
}

#[inline(always)]
fn set_word(context: *mut bpf_sock_addr, index: usize, value: u32) {
    // SAFETY: see above.
    unsafe { core::ptr::write_volatile(&raw mut (*context).user_ip6[index], value) };
}

impl Written for Four {
    type Family = V4;
    type Address = Addr4;

    #[inline(always)]
    fn read(context: *mut bpf_sock_addr) -> Addr4 {
        // SAFETY: see above.
        Addr4(unsafe { core::ptr::read_volatile(&raw const (*context).user_ip4) })
    }

    #[inline(always)]
    fn write(context: *mut bpf_sock_addr, address: Addr4) {
        // SAFETY: see above.
        unsafe { core::ptr::write_volatile(&raw mut (*context).user_ip4, address.0) };
    }
}

impl Written for Six {
    type Family = V6;
    type Address = Addr6;

    #[inline(always)]
    fn read(context: *mut bpf_sock_addr) -> Addr6 {
        Addr6([word(context, 0), word(context, 1), word(context, 2), word(context, 3)])
    }

    #[inline(always)]
    fn write(context: *mut bpf_sock_addr, Addr6([a, b, c, d]): Addr6) {
        set_word(context, 0, a);
        set_word(context, 1, b);
        set_word(context, 2, c);
        set_word(context, 3, d);
    }
}

impl Written for Mapped {
    type Family = V4;
    type Address = Addr4;

    #[inline(always)]
    fn read(context: *mut bpf_sock_addr) -> Addr4 {
        Addr4(word(context, 3))
    }

    #[inline(always)]
    fn write(context: *mut bpf_sock_addr, address: Addr4) {
        set_word(context, 3, address.0);
    }
}

#[inline(always)]
fn is_mapped(context: *mut bpf_sock_addr) -> bool {
    word(context, 0) | word(context, 1) == 0 && word(context, 2) == 0xffffu32.to_be()
}

/// An IPv4 socket connects, or sends to an address.
#[inline(always)]
pub fn reach4(context: *mut bpf_sock_addr) -> i32 {
    reach::<Four>(context)
}

/// The same of an IPv6 socket.
#[inline(always)]
pub fn reach6(context: *mut bpf_sock_addr) -> i32 {
    if is_mapped(context) { reach::<Mapped>(context) } else { reach::<Six>(context) }
}

/// An IPv4 socket is told an address: of who sent to it, or of who it is connected with.
#[inline(always)]
pub fn tell4(context: *mut bpf_sock_addr) -> i32 {
    tell::<Four>(context)
}

/// The same of an IPv6 socket.
#[inline(always)]
pub fn tell6(context: *mut bpf_sock_addr) -> i32 {
    if is_mapped(context) { tell::<Mapped>(context) } else { tell::<Six>(context) }
}

#[inline(always)]
fn reach<W: Written>(context: *mut bpf_sock_addr) -> i32 {
    let live = live();
    if !live.settings.has(Settings::TRANSLATE) {
        return PASS;
    }
    let Some(protocol) = protocol(context) else { return PASS };
    let tables = Tables::<W::Family, ()>::of((), live.generation);
    let wanted = ServiceKey { address: W::read(context), port: port(context), protocol, zero: 0 };
    match socket::reach(&tables, cookie(context), &wanted, now()) {
        Ok(None) => PASS,
        Ok(Some(backend)) => {
            W::write(context, backend.address);
            set_port(context, backend.port);
            PASS
        }
        Err(_) => {
            // SAFETY: no pointers. Without it the error would be that something is not permitted.
            unsafe { bpf_set_retval(ECONNREFUSED) };
            REFUSE
        }
    }
}

#[inline(always)]
fn tell<W: Written>(context: *mut bpf_sock_addr) -> i32 {
    let Some(protocol) = protocol(context) else { return PASS };
    let key = SocketKey { cookie: cookie(context), backend: W::read(context), port: port(context), protocol, zero: 0 };
    // SAFETY: elements of a preallocated map stay mapped. One is written while its socket is elsewhere, in `reach`.
    if let Some(wanted) = unsafe { <W::Family as Maps>::SOCKETS.get(key) } {
        let (address, port) = (wanted.address, wanted.port);
        W::write(context, address);
        set_port(context, port);
    }
    PASS
}

/// The protocol of a socket that is the host's, if it can be a service's.
#[inline(always)]
fn protocol(context: *mut bpf_sock_addr) -> Option<Protocol> {
    // SAFETY: see above.
    let (protocol, namespace) = unsafe { ((*context).protocol, bpf_get_netns_cookie(context.cast())) };
    // SAFETY: an aligned word of an array map, which is never 0 where there is a host.
    let host = unsafe { core::ptr::read_volatile(maps::HOST.get_ptr(0)?) };
    if namespace != host {
        return None;
    }
    match protocol {
        TCP => Some(Protocol::TCP),
        UDP => Some(Protocol::UDP),
        _ => None,
    }
}

#[inline(always)]
fn cookie(context: *mut bpf_sock_addr) -> SocketCookie {
    // SAFETY: see above.
    SocketCookie::new(unsafe { bpf_get_socket_cookie(context.cast()) })
}

#[inline(always)]
fn port(context: *mut bpf_sock_addr) -> PortBe {
    // SAFETY: see above. The port, in network byte order, is in the lower half.
    PortBe(unsafe { core::ptr::read_volatile(&raw const (*context).user_port) } as u16)
}

#[inline(always)]
fn set_port(context: *mut bpf_sock_addr, port: PortBe) {
    // SAFETY: see above.
    unsafe { core::ptr::write_volatile(&raw mut (*context).user_port, u32::from(port.0)) };
}
