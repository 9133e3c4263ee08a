//! Whom a server takes its client for.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::Endpoint;

const PATIENCE: Duration = Duration::from_secs(2);

/// The next connection, within a bounded time.
fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).expect("non-blocking");
    let begin = Instant::now();
    loop {
        match listener.accept() {
            Ok(accepted) => return accepted,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "no connection: {error}"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whom a server on `server` takes the client for, who connects to `to`.
#[track_caller]
pub fn client_of(server: &Endpoint, port: u16, client: &Endpoint, to: &str) -> IpAddr {
    let listener = server.enter(|| TcpListener::bind(("::", port))).expect("a listener");
    let to: SocketAddr = to.parse().expect("an address");
    thread::scope(|scope| {
        let accepted = scope.spawn(|| {
            let (mut stream, peer) = accept(&listener);
            stream.set_nonblocking(false).expect("blocking");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a byte");
            stream.write_all(&byte).expect("an answer");
            peer.ip().to_canonical()
        });
        let mut stream = client.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        assert_eq!(stream.peer_addr().expect("a peer"), to);
        stream.write_all(b"x").expect("a request");
        stream.read_exact(&mut [0]).expect("an answer");
        accepted.join().expect("the server")
    })
}
