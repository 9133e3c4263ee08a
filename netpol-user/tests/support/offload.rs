//! What a network interface's hardware would do: checksums, cutting, joining.

use std::{ffi::c_char, io, os::fd::AsRawFd as _};

use netpol_user::netns::Namespace;

use super::Scene;

/// Commands of `linux/ethtool.h`: checksums on the way in and out, scatter-gather, TSO, GSO, GRO. (Without
/// scatter-gather there is no TSO, so its place in the list matters.)
const SETTINGS: [u32; 6] = [0x15, 0x17, 0x19, 0x1f, 0x24, 0x2c];
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// What interfaces leave to hardware, or to whoever comes after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    On,
    Off,
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ifreq` as far as ethtool looks at it, and its full size.
#[repr(C)]
struct Request {
    name: [c_char; libc::IFNAMSIZ],
    value: *mut Value,
    rest: [u8; 16],
}

fn set(namespace: &Namespace, interface: &str, offloads: Offloads) {
    let apply = || -> io::Result<()> {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        for command in SETTINGS {
            let mut value = Value { command, data: u32::from(offloads == Offloads::On) };
            let mut request = Request { name: [0; libc::IFNAMSIZ], value: &raw mut value, rest: [0; 16] };
            for (place, byte) in request.name.iter_mut().zip(interface.bytes().take(libc::IFNAMSIZ - 1)) {
                *place = byte as c_char;
            }
            // SAFETY: the request, and the value that it points to, are locals that outlive the call.
            if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    let done = namespace.enter(apply).expect("entering a network namespace needs root");
    done.unwrap_or_else(|error| panic!("offloads of {interface}: {error}"));
}

impl Scene {
    /// Of both ends of every endpoint's link, and of the outside's.
    pub fn offloads(&self, offloads: Offloads) {
        for endpoint in self.all().into_iter().chain([&self.outside]) {
            set(&endpoint.namespace, "eth0", offloads);
            set(&self.host.namespace, &endpoint.host_interface, offloads);
        }
    }
}
