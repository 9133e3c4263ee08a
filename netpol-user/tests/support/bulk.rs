//! Much data, compared byte by byte: over a connection both ways, and in large datagrams.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use super::Endpoint;

/// What stands still for so long is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the ends of a connection believe to be the path's MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transferred {
    pub client_mtu: u32,
    pub server_mtu: u32,
}

/// Bytes that tell where they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place * 31 + place / 251) as u8).collect()
}

/// Sends so many bytes from `client` to `to`, where `server`'s `port` answers, and then as many back.
#[track_caller]
pub fn transfer(server: &Endpoint, port: u16, client: &Endpoint, to: &str, length: usize) -> Transferred {
    let listener = server.enter(|| TcpListener::bind(("::", port))).expect("a listener");
    let to: SocketAddr = to.parse().expect("an address");
    let sent = pattern(length);
    let done: Result<Transferred, String> = thread::scope(|scope| {
        let serving = scope.spawn(|| -> io::Result<u32> {
            let mut stream = accept(&listener)?;
            receive(&mut stream, &sent)?;
            stream.write_all(&sent)?;
            // when all of it has gone its way; a closed socket has forgotten the MTU
            stream.read_exact(&mut [0])?;
            mtu(&stream)
        });
        let asking = || -> io::Result<u32> {
            let mut stream = bounded(client.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?)?;
            stream.write_all(&sent)?;
            receive(&mut stream, &sent)?;
            let mtu = mtu(&stream)?;
            stream.write_all(b"x")?;
            // the server closes
            stream.read_to_end(&mut vec![])?;
            Ok(mtu)
        };
        let client_mtu = asking().map_err(|error| format!("the client: {error}"));
        let server_mtu = serving.join().expect("no panic").map_err(|error| format!("the server: {error}"));
        Ok(Transferred { client_mtu: client_mtu?, server_mtu: server_mtu? })
    });
    done.unwrap_or_else(|error| panic!("{length} bytes from {} to {to}: {error}", client.name))
}

/// Sends a datagram of so many bytes and awaits its echo.
#[track_caller]
pub fn echo(client: &Endpoint, to: &str, length: usize) {
    let to: SocketAddr = to.parse().expect("an address");
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let ask = || -> io::Result<()> {
        let socket = client.enter(|| UdpSocket::bind(any))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.connect(to)?;
        let sent = pattern(length);
        socket.send(&sent)?;
        let mut received = vec![0; length + 1];
        let count = socket.recv(&mut received)?;
        compare(&received[..count], &sent)
    };
    ask().unwrap_or_else(|error| panic!("{length} bytes from {} to {to}: {error}", client.name));
}

fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let begin = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => return bounded(stream),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock || begin.elapsed() > PATIENCE => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn bounded(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads as much as was sent, and compares.
fn receive(stream: &mut TcpStream, sent: &[u8]) -> io::Result<()> {
    let (mut received, mut count) = (vec![0; sent.len()], 0);
    while count < sent.len() {
        match stream.read(&mut received[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) => return Err(io::Error::new(error.kind(), format!("{error}, after {count} bytes"))),
        }
    }
    compare(&received[..count], sent)
}

fn compare(received: &[u8], sent: &[u8]) -> io::Result<()> {
    if received == sent {
        return Ok(());
    }
    let same = received.iter().zip(sent).take_while(|(one, other)| one == other).count();
    Err(io::Error::other(format!("{} of {} bytes came, the first {same} right", received.len(), sent.len())))
}

/// IP_MTU or IPV6_MTU of a connected socket.
pub fn mtu(socket: &(impl std::os::fd::AsFd + Peer)) -> io::Result<u32> {
    let (level, name) = if socket.peer()?.is_ipv4() { (libc::IPPROTO_IP, 14) } else { (libc::IPPROTO_IPV6, 24) };
    let (mut mtu, mut length) = (0u32, 4);
    let (fd, place) = (socket.as_fd().as_raw_fd(), (&raw mut mtu).cast());
    // SAFETY: both pointers are to locals that outlive the call, and the length is the variable's.
    let got = unsafe { libc::getsockopt(fd, level, name, place, &raw mut length) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(mtu) }
}

/// Sockets that are connected.
pub trait Peer {
    /// In its own family: IPv4 over an IPv6 socket is IPv4.
    fn peer(&self) -> io::Result<SocketAddr>;
}

impl Peer for TcpStream {
    fn peer(&self) -> io::Result<SocketAddr> {
        self.peer_addr().map(canonical)
    }
}

impl Peer for UdpSocket {
    fn peer(&self) -> io::Result<SocketAddr> {
        self.peer_addr().map(canonical)
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
