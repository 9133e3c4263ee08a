//! Checksums of what an interface receives, calculated anew.
//!
//! Between namespaces of one machine the kernel trusts most checksums without a look, so a wrong one breaks nothing
//! there. What is still to be calculated by hardware (`TP_STATUS_CSUMNOTREADY`) has the sum of its pseudo-header in
//! the checksum's place: it is right if that is.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::{
    Endpoint,
    packet::{ICMP, ICMPV6, TCP, UDP},
    traffic::checksum,
};

/// Of `linux/if_packet.h`.
const PACKET_AUXDATA: i32 = 8;
const PACKET_STATISTICS: i32 = 6;
const TP_STATUS_CSUMNOTREADY: u32 = 1 << 3;
/// Holds all of a test's traffic.
const BUFFER: i32 = 256 << 20;

/// `struct tpacket_auxdata`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Auxiliary {
    status: u32,
    lengths: [u32; 2],
    offsets: [u16; 4],
}

/// Collects what `eth0` receives, from now on.
pub struct Tap(OwnedFd);

/// How many there were, and which were wrong.
#[derive(Debug, Default)]
pub struct Tally {
    pub tcp: u32,
    pub udp: u32,
    pub icmp: u32,
    /// Those of the above whose sum is left to hardware.
    pub unfinished: u32,
    pub wrong: Vec<String>,
}

impl Endpoint {
    pub fn tap(&self) -> Tap {
        self.enter(Tap::open).expect("a packet socket needs root")
    }
}

impl Tap {
    fn open() -> io::Result<Self> {
        let every_protocol = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: creates a descriptor; no pointer is involved.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open and nobody else's.
        let tap = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        tap.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        tap.set(libc::SOL_PACKET, PACKET_AUXDATA, 1)?;
        // SAFETY: all zeros is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = every_protocol;
        address.sll_ifindex = nix::net::if_::if_nametoindex("eth0")? as i32;
        // SAFETY: the pointer and the length are those of a local that outlives the call.
        let bound = unsafe { libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(tap) }
    }

    fn set(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        // SAFETY: the pointer and the length are those of a local that outlives the call.
        let done = unsafe { libc::setsockopt(self.0.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// What has been received until now. (Sockets get a packet after the tap: what somebody has read is here.)
    pub fn tally(self) -> Tally {
        let mut tally = Tally::default();
        while let Some((frame, status)) = self.next() {
            tally.add(&frame, status & TP_STATUS_CSUMNOTREADY != 0);
        }
        assert_eq!(self.lost(), 0, "the tap's buffer is too small");
        tally
    }

    /// The next frame that was not sent from here, and its status.
    fn next(&self) -> Option<(Vec<u8>, u32)> {
        loop {
            let mut frame = vec![0; 1 << 17];
            // an aligned place for one control message
            let mut control = [0u64; 8];
            // SAFETY: all zeros are valid values of both.
            let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { mem::zeroed() };
            let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
            message.msg_name = (&raw mut from).cast();
            message.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control);
            // SAFETY: the message points to locals that outlive the call, with their own lengths.
            let received = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
            let Ok(length) = usize::try_from(received) else {
                let error = io::Error::last_os_error();
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                return None;
            };
            if from.sll_pkttype == libc::PACKET_OUTGOING {
                continue;
            }
            // SAFETY: the kernel has filled in the control messages.
            let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() }.expect("auxiliary data");
            assert_eq!((header.cmsg_level, header.cmsg_type), (libc::SOL_PACKET, PACKET_AUXDATA));
            // SAFETY: a message of this type holds this structure.
            let auxiliary = unsafe { libc::CMSG_DATA(header).cast::<Auxiliary>().read_unaligned() };
            frame.truncate(length);
            return Some((frame, auxiliary.status));
        }
    }

    fn lost(&self) -> u32 {
        // `struct tpacket_stats`: packets, drops
        let (mut statistics, mut length) = ([0u32; 2], 8);
        let (level, place) = (libc::SOL_PACKET, (&raw mut statistics).cast());
        // SAFETY: both pointers are to locals that outlive the call, and the length is the variable's.
        let got = unsafe { libc::getsockopt(self.0.as_raw_fd(), level, PACKET_STATISTICS, place, &raw mut length) };
        assert_eq!(got, 0, "{}", io::Error::last_os_error());
        statistics[1]
    }
}

/// An IP packet, taken apart.
struct Packet<'a> {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    segment: &'a [u8],
    /// Sums to zero, if the family has such a checksum.
    header: Option<&'a [u8]>,
}

impl<'a> Packet<'a> {
    /// `None`: something else, or a fragment.
    fn of(frame: &'a [u8]) -> Option<Self> {
        let (ether_type, packet) = (frame.get(12..14)?, frame.get(14..)?);
        let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
        match ether_type {
            [0x08, 0x00] => {
                let header = usize::from(packet.first()? & 15) * 4;
                if word(6)? & 0x3fff != 0 {
                    return None;
                }
                Some(Self {
                    from: Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(12..16)?).ok()?).into(),
                    to: Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?).into(),
                    protocol: packet[9],
                    segment: packet.get(header..usize::from(word(2)?))?,
                    header: Some(packet.get(..header)?),
                })
            }
            [0x86, 0xdd] => Some(Self {
                from: Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(8..24)?).ok()?).into(),
                to: Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?).into(),
                protocol: packet[6],
                segment: packet.get(40..40 + usize::from(word(4)?))?,
                header: None,
            }),
            _ => None,
        }
    }

    /// The sum over the pseudo-header, not inverted.
    fn pseudo(&self) -> u16 {
        let length = (self.segment.len() as u32).to_be_bytes();
        let bytes = match (self.from, self.to) {
            _ if self.protocol == ICMP => vec![],
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                [&from.octets()[..], &to.octets(), &length, &[0, self.protocol]].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, self.protocol]].concat()
            }
            _ => unreachable!("both addresses are of one packet"),
        };
        !checksum(&bytes)
    }

    fn is_right(&self, unfinished: bool) -> bool {
        let at = match self.protocol {
            TCP => 16,
            UDP => 6,
            _ => 2,
        };
        let Some(&[high, low]) = self.segment.get(at..at + 2) else { return false };
        let field = u16::from_be_bytes([high, low]);
        match (self.protocol, unfinished) {
            (_, true) => field == self.pseudo(),
            // none: allowed over IPv4 alone, and no socket here sends such
            (UDP, false) if field == 0 => false,
            // the sum of the pseudo-header in front stands for it
            (_, false) => checksum(&[&self.pseudo().to_be_bytes()[..], self.segment].concat()) == 0,
        }
    }
}

impl Tally {
    fn add(&mut self, frame: &[u8], unfinished: bool) {
        let Some(packet) = Packet::of(frame) else { return };
        match packet.protocol {
            TCP => self.tcp += 1,
            UDP => self.udp += 1,
            ICMP | ICMPV6 => self.icmp += 1,
            _ => return,
        }
        self.unfinished += u32::from(unfinished);
        let header_is_wrong = packet.header.is_some_and(|header| checksum(header) != 0);
        if header_is_wrong || !packet.is_right(unfinished) {
            let what = if unfinished { ", unfinished" } else { "" };
            let (from, to, length) = (packet.from, packet.to, packet.segment.len());
            self.wrong.push(format!("{from} to {to}, protocol {}, {length} bytes{what}", packet.protocol));
        }
    }
}
