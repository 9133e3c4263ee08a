//! A netlink socket that asks and waits: discovery visits a thousand namespaces with two questions
//! each, where a runtime and a task per socket would cost more than the answers.
//!
//! Only the attributes that are asked for are read, so what newer kernels add is never an error.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// Which part of the kernel a socket talks to.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub enum Family {
    Route = libc::NETLINK_ROUTE,
    Netfilter = libc::NETLINK_NETFILTER,
}

/// A socket in the namespace in which the thread that opened it was.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// One message of an answer, without its netlink header.
pub type Body = Vec<u8>;

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
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Asks for one object.
    pub fn get(&mut self, kind: u16, body: &[u8]) -> io::Result<Body> {
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
    pub fn dump(&mut self, kind: u16, body: &[u8]) -> io::Result<Vec<Body>> {
        for _ in 0..ATTEMPTS {
            let (messages, interrupted) = self.dump_once(kind, body)?;
            if !interrupted {
                return Ok(messages);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the answer kept changing while it was read: try again"))
    }

    /// Asks for all objects, and whether the kernel says that they changed meanwhile.
    pub fn dump_once(&mut self, kind: u16, body: &[u8]) -> io::Result<(Vec<Body>, bool)> {
        self.send(kind, libc::NLM_F_DUMP, body)?;
        self.receive()
    }

    fn send(&mut self, kind: u16, flags: i32, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let length = (HEADER + body.len()) as u32;
        let mut message = Vec::with_capacity(length as usize);
        message.extend_from_slice(&length.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(body);
        // SAFETY: the pointer and the length are those of a vector that outlives the call.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// All messages up to the end of the answer, and whether a change interrupted it.
    fn receive(&mut self) -> io::Result<(Vec<Body>, bool)> {
        let mut messages = Vec::new();
        let mut interrupted = false;
        loop {
            // SAFETY: the pointer and the length are those of a vector that outlives the call.
            let received = unsafe {
                libc::recv(self.fd.as_raw_fd(), self.buffer.as_mut_ptr().cast(), self.buffer.len(), libc::MSG_TRUNC)
            };
            let length = match usize::try_from(received) {
                Ok(length) if length <= self.buffer.len() => length,
                Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink message too long to read")),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                },
            };
            for raw in Raw::all(&self.buffer[..length]) {
                if raw.sequence != self.sequence {
                    continue;
                }
                interrupted |= raw.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match i32::from(raw.kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                        return raw.end().map(|()| (messages, interrupted));
                    }
                    libc::NLMSG_NOOP => {}
                    _ => messages.push(raw.body.to_vec()),
                }
            }
        }
    }
}

struct Raw<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl<'a> Raw<'a> {
    fn all(mut bytes: &'a [u8]) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            let length = word(bytes)? as usize;
            let raw = Self {
                kind: half(bytes.get(4..)?)?,
                flags: half(bytes.get(6..)?)?,
                sequence: word(bytes.get(8..)?)?,
                body: bytes.get(HEADER..length)?,
            };
            bytes = bytes.get(aligned(length)..).unwrap_or_default();
            Some(raw)
        })
    }

    /// The error number that ends an answer: 0 when all went well.
    fn end(&self) -> io::Result<()> {
        match word(self.body).map_or(0, |error| error as i32) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }
}

/// Appends one attribute.
pub fn push(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(aligned(body.len()), 0);
}

/// The attributes in `bytes` by type (without its flag bits), in their order; ends at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
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
