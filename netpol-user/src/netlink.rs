//! A netlink socket that asks and waits: discovery visits a thousand namespaces with two questions
//! each, where a runtime and a task per socket would cost more than the answers.
//!
//! An answer is read into one buffer, and its messages are slices of that (the `bytes` package). Only the
//! attributes that are asked for are read, so what newer kernels add is never an error.

use std::{
    io, iter,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Which part of the kernel a socket talks to.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub enum Family {
    Route = libc::NETLINK_ROUTE,
    Netfilter = libc::NETLINK_NETFILTER,
    SockDiag = libc::NETLINK_SOCK_DIAG,
    Xfrm = libc::NETLINK_XFRM,
}

/// A socket in the namespace in which the thread that opened it was.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: BytesMut,
}

/// `struct nlmsghdr`: length, type, flags, sequence, port.
const HEADER: usize = 16;
/// The kernel fills at most this much per receive (`NLMSG_GOODSIZE`, doubled where it may).
const BUFFER: usize = 64 * 1024;
/// A dump that a change interrupted is asked for again this many times.
const ATTEMPTS: usize = 8;

impl Socket {
    pub fn open(family: Family) -> io::Result<Self> {
        // SAFETY: creates a descriptor; no pointer is involved.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, family as i32) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, sequence: 0, buffer: BytesMut::new() })
    }

    /// Asks for one object: the message without its netlink header.
    pub fn get(&mut self, kind: u16, body: &[u8]) -> io::Result<Bytes> {
        // an acknowledgement ends the answer, whether or not it holds an object
        self.send(kind, libc::NLM_F_ACK, body)?;
        let (mut messages, _) = self.receive()?;
        messages.pop().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// Makes a change: `flags` are those of the netlink header beside the request for an answer.
    pub fn change(&mut self, kind: u16, flags: i32, body: &[u8]) -> io::Result<()> {
        self.send(kind, libc::NLM_F_ACK | flags, body)?;
        self.receive().map(drop)
    }

    /// Asks for all objects, as they were at one moment.
    pub fn dump(&mut self, kind: u16, body: &[u8]) -> io::Result<Vec<Bytes>> {
        for _ in 0..ATTEMPTS {
            let (messages, interrupted) = self.dump_once(kind, body)?;
            if !interrupted {
                return Ok(messages);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the answer kept changing while it was read: try again"))
    }

    /// Asks for all objects, and whether the kernel says that they changed meanwhile.
    pub fn dump_once(&mut self, kind: u16, body: &[u8]) -> io::Result<(Vec<Bytes>, bool)> {
        self.send(kind, libc::NLM_F_DUMP, body)?;
        self.receive()
    }

    fn send(&mut self, kind: u16, flags: i32, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.put_u32_ne((HEADER + body.len()) as u32);
        message.put_u16_ne(kind);
        message.put_u16_ne((libc::NLM_F_REQUEST | flags) as u16);
        message.put_u32_ne(self.sequence);
        message.put_u32_ne(0);
        message.put_slice(body);
        // SAFETY: the pointer and the length are those of a vector that outlives the call.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// All messages up to the end of the answer, and whether a change interrupted it.
    fn receive(&mut self) -> io::Result<(Vec<Bytes>, bool)> {
        let mut bodies = Vec::new();
        let mut interrupted = false;
        loop {
            let datagram = match self.datagram() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                datagram => datagram?,
            };
            for message in messages(datagram).filter(|message| message.sequence == self.sequence) {
                interrupted |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match i32::from(message.kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                        return message.end().map(|()| (bodies, interrupted));
                    }
                    libc::NLMSG_NOOP => {}
                    _ => bodies.push(message.body),
                }
            }
        }
    }

    /// What one receive brings: some messages of an answer.
    fn datagram(&mut self) -> io::Result<Bytes> {
        self.buffer.reserve(BUFFER);
        let room = self.buffer.spare_capacity_mut();
        // SAFETY: the pointer is to so many bytes at least, which outlive the call.
        let received = unsafe { libc::recv(self.fd.as_raw_fd(), room.as_mut_ptr().cast(), BUFFER, libc::MSG_TRUNC) };
        let length = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        if length > BUFFER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink message too long to read"));
        }
        // SAFETY: the kernel has written that many.
        unsafe { self.buffer.set_len(length) };
        Ok(self.buffer.split().freeze())
    }
}

/// A message of an answer.
struct Message {
    kind: u16,
    flags: u16,
    sequence: u32,
    /// Without the header.
    body: Bytes,
}

/// The messages of a datagram, in their order; ends at the first malformed one.
fn messages(mut datagram: Bytes) -> impl Iterator<Item = Message> {
    iter::from_fn(move || {
        let mut header = datagram.get(..HEADER)?;
        let length = header.get_u32_ne() as usize;
        let (kind, flags, sequence) = (header.get_u16_ne(), header.get_u16_ne(), header.get_u32_ne());
        if !(HEADER..=datagram.len()).contains(&length) {
            return None;
        }
        let body = datagram.slice(HEADER..length);
        datagram.advance(aligned(length).min(datagram.len()));
        Some(Message { kind, flags, sequence, body })
    })
}

impl Message {
    /// The error number that ends an answer: 0 when all went well.
    fn end(&self) -> io::Result<()> {
        match word(&self.body).map_or(0, |error| error as i32) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }
}

/// Appends one attribute.
pub fn push(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.put_u16_ne((4 + value.len()) as u16);
    body.put_u16_ne(kind);
    body.put_slice(value);
    body.resize(aligned(body.len()), 0);
}

/// The attributes in `bytes` by type (without its flag bits), in their order; ends at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    iter::from_fn(move || {
        let length = usize::from(half(bytes)?);
        let kind = half(bytes.get(2..)?)? & libc::NLA_TYPE_MASK as u16;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The attribute of that type.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// The first two bytes as a number in the machine's order.
pub fn half(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.first_chunk()?))
}

/// The first four bytes as a number in the machine's order.
pub fn word(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

/// A string up to its terminating zero.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_pushed() {
        let mut body = Vec::new();
        push(&mut body, 3, b"eth0\0");
        push(&mut body, 5 | 0x8000, &7u32.to_ne_bytes());
        assert_eq!(attributes(&body).collect::<Vec<_>>(), [(3, &b"eth0\0"[..]), (5, &7u32.to_ne_bytes()[..])]);
        assert_eq!(text(attribute(&body, 3).unwrap()), "eth0");
    }

    #[test]
    fn messages_end_at_the_first_that_is_longer_than_what_came() {
        // length, type, flags, sequence, port; then a body of 5 and padding
        let message = |length: u32, body: &[u8]| {
            let mut bytes = BytesMut::new();
            bytes.put_u32_ne(length);
            bytes.put_u16_ne(16);
            bytes.put_u16_ne(2);
            bytes.put_u32_ne(7);
            bytes.put_u32_ne(0);
            bytes.put_slice(body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let datagram = [message(21, b"hello"), message(16, b""), message(40, b"cut"), message(16, b"")].concat();
        let read: Vec<_> = messages(datagram.into()).map(|m| (m.kind, m.flags, m.sequence, m.body)).collect();
        assert_eq!(read, [(16, 2, 7, Bytes::from("hello")), (16, 2, 7, Bytes::new())]);
        for length in [0, 1, 15] {
            assert_eq!(messages(message(length, b"").freeze()).count(), 0, "{length}");
        }
    }

    #[test]
    fn truncated_attributes_end_the_list() {
        let mut body = Vec::new();
        push(&mut body, 1, &[1, 2, 3, 4]);
        push(&mut body, 2, &[5, 6, 7, 8]);
        for length in 0..body.len() {
            let whole = usize::from(length >= 8);
            assert_eq!(attributes(&body[..length]).count(), whole, "{length} bytes");
        }
    }
}
