//! Real connections between endpoints, and raw frames.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    mem,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::Endpoint;

/// How long silence is awaited before it counts as silence.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often servers look whether they should end.
const NAP: Duration = Duration::from_millis(20);

/// What a client saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The server's own answer.
    Answered,
    /// The other end is reached and has no server there (RST, ICMP port unreachable).
    Refused,
    /// Nothing: dropped on the way.
    Silent,
}

/// Something to try; addresses like `10.0.0.20:80`.
#[derive(Clone, Debug)]
pub enum Attempt {
    Tcp(String),
    Udp(String),
    Ping(IpAddr),
}

/// Tries all of these at once, and compares what is seen with what is expected.
#[track_caller]
pub fn check(expected: &[(&Endpoint, Attempt, Seen)]) {
    let seen: Vec<Seen> = thread::scope(|scope| {
        let mut running = vec![];
        for (from, attempt, _) in expected {
            running.push(scope.spawn(move || match attempt {
                Attempt::Tcp(to) => from.tcp(to),
                Attempt::Udp(to) => from.udp(to),
                Attempt::Ping(to) => from.ping(*to),
            }));
        }
        running.into_iter().map(|attempt| attempt.join().expect("an attempt")).collect()
    });
    let wrong = expected.iter().zip(seen).filter(|((_, _, expected), seen)| expected != seen);
    let wrong: Vec<_> =
        wrong.map(|((from, attempt, _), seen)| format!("{} {attempt:?}: {seen:?}", from.name)).collect();
    assert!(wrong.is_empty(), "not as expected: {wrong:#?}");
}

/// A server on a thread, gone when dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn spawn(mut serve: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                serve();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Endpoint {
    /// Echoes what a connection brings, on both address families.
    pub fn serve_tcp(&self, port: u16) -> Server {
        let listener = self.enter(|| TcpListener::bind(("::", port))).unwrap_or_else(|e| panic!("tcp {port}: {e}"));
        listener.set_nonblocking(true).expect("non-blocking");
        let mut connections: Vec<TcpStream> = Vec::new();
        Server::spawn(move || {
            while let Ok((connection, _)) = listener.accept() {
                connection.set_nonblocking(true).expect("non-blocking");
                connections.push(connection);
            }
            connections.retain_mut(echo);
            thread::sleep(NAP / 10);
        })
    }

    /// Echoes each datagram, on both address families.
    pub fn serve_udp(&self, port: u16) -> Server {
        self.serve_udp_at(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
    }

    /// The same at one address: who has several may otherwise answer from another one.
    pub fn serve_udp_at(&self, at: SocketAddr) -> Server {
        let socket = self.enter(|| UdpSocket::bind(at)).unwrap_or_else(|e| panic!("udp {at}: {e}"));
        socket.set_read_timeout(Some(NAP)).expect("a timeout");
        Server::spawn(move || {
            let mut buffer = [0; 65_536];
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                _ = socket.send_to(&buffer[..length], from);
            }
        })
    }

    /// Opens a connection, and has it echo something.
    pub fn tcp(&self, to: &str) -> Seen {
        let to = parse(to);
        let Ok(mut stream) = (match self.enter(|| TcpStream::connect_timeout(&to, PATIENCE)) {
            Err(error) => return seen(&error),
            stream => stream,
        }) else {
            return Seen::Silent;
        };
        exchange(&mut stream)
    }

    /// An open connection, for tests about what becomes of it; see [`exchange`].
    pub fn connect(&self, to: &str) -> TcpStream {
        let to = parse(to);
        self.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap_or_else(|error| panic!("{to}: {error}"))
    }

    /// Sends a datagram and awaits its echo.
    pub fn udp(&self, to: &str) -> Seen {
        let to = parse(to);
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let attempt = || {
            let socket = self.enter(|| UdpSocket::bind(any))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"ping")?;
            socket.recv(&mut [0; 16])
        };
        attempt().map_or_else(|error| seen(&error), |_| Seen::Answered)
    }

    /// Sends an echo request (ICMP or ICMPv6) and awaits the reply.
    pub fn ping(&self, to: IpAddr) -> Seen {
        self.ping_with(to, b"netpol")
    }

    /// The same with a payload, which the reply must have.
    pub fn ping_with(&self, to: IpAddr, payload: &[u8]) -> Seen {
        let (family, protocol, request) = match to {
            IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP, 8),
            IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128),
        };
        let fd = self.enter(|| open(family, libc::SOCK_RAW, protocol)).expect("a raw socket needs root");
        // std has no raw sockets; for sending and receiving one is like a datagram socket
        let socket = UdpSocket::from(fd);
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let identifier = (std::process::id() as u16).to_be_bytes();
        let mut packet = [&[request, 0, 0, 0][..], &identifier, &[0, 1], payload].concat();
        if to.is_ipv4() {
            // the kernel fills in ICMPv6's, whose pseudo-header it knows
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        if let Err(error) = socket.send_to(&packet, SocketAddr::new(to, 0)) {
            return seen(&error);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = vec![0; 65_536];
        while Instant::now() < deadline {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { return Seen::Silent };
            let header = if to.is_ipv4() { 20 } else { 0 };
            let reply = if to.is_ipv4() { 0 } else { 129 };
            let is_reply = buffer[..length].get(header) == Some(&reply)
                && buffer[..length].get(header + 4..header + 6) == Some(&identifier[..])
                && buffer[..length].get(header + 8..) == Some(payload);
            if from.ip() == to && is_reply {
                return Seen::Answered;
            }
        }
        Seen::Silent
    }

    /// A socket for whole frames on `eth0`.
    pub fn raw(&self) -> RawSocket {
        self.raw_on("eth0")
    }

    pub fn raw_on(&self, interface: &str) -> RawSocket {
        self.enter(|| RawSocket::open(interface)).expect("a packet socket needs root")
    }
}

/// Sends something through an open connection and awaits its echo.
pub fn exchange(stream: &mut TcpStream) -> Seen {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut answer = [0; 4];
    let attempt = stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut answer));
    attempt.map_or_else(|error| seen(&error), |()| Seen::Answered)
}

/// Frames on one interface, outgoing ones not included.
pub struct RawSocket(OwnedFd);

impl RawSocket {
    fn open(interface: &str) -> io::Result<Self> {
        let every_protocol = (libc::ETH_P_ALL as u16).to_be();
        let fd = open(libc::AF_PACKET, libc::SOCK_RAW, i32::from(every_protocol))?;
        let index = nix::net::if_::if_nametoindex(interface)?;
        // SAFETY: all zeros is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = every_protocol;
        address.sll_ifindex = index as i32;
        // SAFETY: the pointer and the length are those of a local that outlives the call.
        let bound =
            unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(fd)) }
    }

    /// Sends a frame that begins with its Ethernet header.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the pointer and the length are those of a slice that outlives the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    /// The first frame from the wire that `wanted` holds for; `None` when none comes.
    pub fn receive(&self, mut wanted: impl FnMut(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.checked_duration_since(Instant::now())?;
            let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, a local that outlives the call.
            if unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as i32 + 1) } <= 0 {
                return None;
            }
            let mut frame = vec![0; 65_536];
            // SAFETY: all zeros is a valid sockaddr_ll.
            let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
            let mut length = size_of::<libc::sockaddr_ll>() as u32;
            // SAFETY: the buffer and the address are locals that outlive the call, with their own lengths.
            let received = unsafe {
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut length,
                )
            };
            frame.truncate(usize::try_from(received).unwrap_or_default());
            if from.sll_pkttype != libc::PACKET_OUTGOING && wanted(&frame) {
                return Some(frame);
            }
        }
    }
}

fn open(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: creates a descriptor; no pointer is involved.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends back what has come; false when the connection is over.
fn echo(connection: &mut TcpStream) -> bool {
    let mut buffer = [0; 2048];
    match connection.read(&mut buffer) {
        Ok(0) => false,
        Ok(length) => connection.write_all(&buffer[..length]).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

#[track_caller]
fn seen(error: &io::Error) -> Seen {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Seen::Silent,
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Seen::Refused,
        // nobody answered ARP or ND
        ErrorKind::HostUnreachable => Seen::Silent,
        _ => panic!("neither an answer nor silence: {error}"),
    }
}

fn parse(to: &str) -> SocketAddr {
    to.parse().unwrap_or_else(|error| panic!("{to}: {error}"))
}

/// RFC 1071.
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded + (folded >> 16)) as u16)
}
