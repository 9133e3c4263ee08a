//! Whole frames at an interface: what a probe sends, and what arrives.

use std::{
    io,
    mem::size_of_val,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt},
};

/// Room for all that a wave of probes brings to one interface, and for its own frames.
const BUFFER: usize = 8 << 20;
/// No probe is longer.
const LONGEST: usize = 256;

/// A socket at `eth0` of the namespace in which it was made.
pub struct Wire(OwnedFd);

impl Wire {
    /// Of the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("a receive buffer")?;
        let index = nix::net::if_::if_nametoindex("eth0").context("eth0")?;
        bind(socket.as_fd(), index).context("binding a packet socket to eth0")?;
        Ok(Self(socket))
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        match send(self.0.as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(sent) if sent == frame.len() => Ok(()),
            Ok(sent) => bail!("only {sent} of {} bytes of a frame were sent", frame.len()),
            Err(error) => Err(error).context("sending a frame"),
        }
    }

    /// The next frame that passed here, in either direction; `None`: there is none yet.
    pub fn next(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; LONGEST];
        match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error).context("receiving a frame"),
        }
    }

    /// Whether a frame is there before the time is over.
    pub fn wait(&self, patience: Duration) -> Result<bool> {
        let timeout = PollTimeout::try_from(patience).context("too long a time")?;
        Ok(poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout)? > 0)
    }
}

fn bind(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    // SAFETY: all zeroes is a valid address.
    let mut address = unsafe { std::mem::zeroed::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    // SAFETY: `address` lives through the call and its size is given.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
