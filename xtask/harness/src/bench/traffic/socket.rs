//! The few socket calls that std has no name for.

use std::{
    io,
    mem::size_of_val,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};

/// How many packets one call sends.
pub const BATCH: usize = 64;

fn set<T>(socket: &impl AsFd, (level, name): (i32, i32), value: &T) -> io::Result<()> {
    // SAFETY: `value` lives through the call and its size is given; the kernel only reads it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (value as *const T).cast(),
            size_of_val(value) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What arrives is thrown away at the socket, before anybody is woken: the receiver costs next to nothing.
pub fn drop_everything(socket: &impl AsFd) -> Result<()> {
    let mut filter = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: filter.as_mut_ptr() };
    set(socket, (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER), &program).context("a filter that drops everything")
}

/// Closing sends a reset: no TIME_WAIT keeps the port.
pub fn reset_on_close(socket: &impl AsFd) -> Result<()> {
    Ok(setsockopt(socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?)
}

pub fn set_receive_buffer(socket: &impl AsFd, bytes: usize) -> Result<()> {
    Ok(setsockopt(socket, sockopt::RcvBufForce, &bytes)?)
}

pub fn set_send_buffer(socket: &impl AsFd, bytes: usize) -> Result<()> {
    Ok(setsockopt(socket, sockopt::SndBufForce, &bytes)?)
}

/// `accept` and `read` give up after a while.
pub fn set_patience(socket: &impl AsFd) -> Result<()> {
    let microseconds = super::PATIENCE.as_micros() as i64;
    Ok(setsockopt(socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(0, microseconds))?)
}

/// A socket that sends whole Ethernet frames by `eth0` of the calling thread's namespace and receives nothing.
pub fn packet_socket() -> Result<OwnedFd> {
    // SAFETY: creates a descriptor that nobody else has.
    let socket = unsafe {
        let descriptor = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if descriptor < 0 {
            return Err(io::Error::last_os_error()).context("a packet socket");
        }
        OwnedFd::from_raw_fd(descriptor)
    };
    let index = nix::net::if_::if_nametoindex("eth0").context("eth0")?;
    // SAFETY: all zeroes is a valid address.
    let mut address = unsafe { std::mem::zeroed::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    // SAFETY: `address` lives through the call and its size is given.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    if bound < 0 {
        return Err(io::Error::last_os_error()).context("binding a packet socket to eth0");
    }
    set(&socket, (libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS), &1_i32).context("PACKET_QDISC_BYPASS")?;
    Ok(socket)
}

/// Sends up to [`BATCH`] packets with one call and says how many went out. A full queue is no error.
pub fn send_batch(socket: &impl AsFd, packets: &[&[u8]]) -> Result<u64> {
    let count = packets.len().min(BATCH);
    let mut parts: [libc::iovec; BATCH] = std::array::from_fn(|i| {
        let packet = packets[i % packets.len()];
        libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() }
    });
    let mut messages: [libc::mmsghdr; BATCH] = std::array::from_fn(|i| {
        // SAFETY: all zeroes is a valid message.
        let mut message = unsafe { std::mem::zeroed::<libc::mmsghdr>() };
        message.msg_hdr.msg_iov = &raw mut parts[i];
        message.msg_hdr.msg_iovlen = 1;
        message
    });
    // SAFETY: each message points to one part, each part to a packet; all of them outlive the call, which only reads
    // the packets.
    let sent =
        unsafe { libc::sendmmsg(socket.as_fd().as_raw_fd(), messages.as_mut_ptr(), count as u32, libc::MSG_NOSIGNAL) };
    if sent >= 0 {
        return Ok(sent.unsigned_abs().into());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
        error => Err(error).context("sending packets"),
    }
}
