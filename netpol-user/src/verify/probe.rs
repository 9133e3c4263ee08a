//! Real sockets: listeners at the destinations, clients at the sources, all waited for together.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    net::{TcpListener, TcpSocket, UdpSocket},
    runtime, time,
};

use super::{
    Error, Observed,
    plan::{End, Port, Question},
};
use crate::{
    model::{Protocol, World},
    netns::Namespace,
};

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The client's, in host byte order; 0 when it could not be opened.
    pub source_port: u16,
    pub observed: Observed,
}

/// A place where something must listen: workload, address, port.
type Place = (usize, IpAddr, Port);

/// What was bound, and where something was already.
type Listeners = (Vec<(Place, Bound)>, HashSet<Place>);

/// A bound socket, not yet known to the runtime.
enum Bound {
    Tcp(TcpSocket),
    Udp(std::net::UdpSocket),
}

/// Asks all questions at once; answers in their order.
pub(super) fn ask(world: &World, questions: &[Question], timeout: Duration) -> Result<Vec<Answer>, Error> {
    let sockets = Sockets(world);
    let (listeners, services) = sockets.listeners(questions)?;
    let clients = sockets.clients(questions)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // they end with the runtime
        for (place, listener) in listeners {
            if let Err(error) = listen(listener) {
                // a service came first, or the address went: the client will see
                tracing::debug!(?place, %error, "can't listen");
            }
        }
        let ask = |(question, client): (&Question, io::Result<Bound>)| {
            let (to, destination) = (SocketAddr::new(question.destination, question.port.number), question.to.0);
            let place = (destination, question.destination, question.port);
            let silent_service = question.port.protocol == Protocol::UDP && services.contains(&place);
            async move {
                let (source_port, observed) = try_one(client, to, timeout).await;
                let observed = match observed {
                    Observed::Denied if silent_service => Observed::Unproven(SILENT_SERVICE),
                    observed => observed,
                };
                Answer { source_port, observed }
            }
        };
        Ok(join_all(questions.iter().zip(clients).map(ask)).await)
    })
}

/// Makes sockets inside the endpoints' namespaces.
struct Sockets<'a>(&'a World);

impl Sockets<'_> {
    /// Binds where nothing is bound; the second list is where something is.
    fn listeners(&self, questions: &[Question]) -> Result<Listeners, Error> {
        let mut places: BTreeMap<End, HashSet<Place>> = BTreeMap::new();
        for &Question { to, destination, port, .. } in questions {
            places.entry(to).or_default().insert((to.0, destination, port));
        }
        let mut listeners = Vec::new();
        let mut services = HashSet::new();
        for (end, places) in places {
            let bound = self.within(end, || {
                let bind = |place: Place| (place, bind(place.2.protocol, SocketAddr::new(place.1, place.2.number)));
                places.into_iter().map(bind).collect::<Vec<_>>()
            })?;
            for (place, bound) in bound {
                match bound {
                    Ok(listener) => listeners.push((place, listener)),
                    Err(error) if error.kind() == ErrorKind::AddrInUse => _ = services.insert(place),
                    Err(error) => tracing::debug!(?place, %error, "can't listen"),
                }
            }
        }
        Ok((listeners, services))
    }

    /// A client for each question, bound to its source address.
    fn clients(&self, questions: &[Question]) -> Result<Vec<io::Result<Bound>>, Error> {
        let mut by_source: HashMap<End, Vec<usize>> = HashMap::new();
        for (index, question) in questions.iter().enumerate() {
            by_source.entry(question.from).or_default().push(index);
        }
        let mut clients: Vec<_> = questions.iter().map(|_| Err(io::Error::from(ErrorKind::NotFound))).collect();
        for (end, indices) in by_source {
            let bound = self.within(end, || {
                let bind = |&index: &usize| {
                    let Question { source, port, .. } = questions[index];
                    bind(port.protocol, SocketAddr::new(source, 0))
                };
                indices.iter().map(bind).collect::<Vec<_>>()
            })?;
            for (index, client) in indices.into_iter().zip(bound) {
                clients[index] = client;
            }
        }
        Ok(clients)
    }

    fn within<T: Send>(&self, (_, endpoint): End, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let endpoint = &self.0.endpoints[endpoint];
        let enter = || match &endpoint.attachment {
            Some(attachment) => Namespace::open(&attachment.netns)?.enter(f),
            None => Err(io::Error::from(ErrorKind::NotFound)),
        };
        enter().map_err(|error| Error::Namespace { endpoint: endpoint.name.to_string(), error })
    }
}

fn bind(protocol: Protocol, at: SocketAddr) -> io::Result<Bound> {
    if protocol == Protocol::UDP {
        let socket = std::net::UdpSocket::bind(at)?;
        socket.set_nonblocking(true)?;
        return Ok(Bound::Udp(socket));
    }
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // a listener of an earlier run may still have connections that linger
    socket.set_reuseaddr(at.port() != 0)?;
    socket.bind(at)?;
    Ok(Bound::Tcp(socket))
}

/// Answers at this socket until the runtime ends.
fn listen(bound: Bound) -> io::Result<()> {
    const BACKLOG: u32 = 1024;
    match bound {
        Bound::Tcp(socket) => _ = tokio::spawn(accept(socket.listen(BACKLOG)?)),
        Bound::Udp(socket) => _ = tokio::spawn(echo(UdpSocket::from_std(socket)?)),
    }
    Ok(())
}

async fn accept(listener: TcpListener) {
    // the handshake is the answer
    while listener.accept().await.is_ok() {}
}

async fn echo(socket: UdpSocket) {
    let mut buffer = [0; 64];
    loop {
        // an error here is an ICMP answer to an earlier echo
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        _ = socket.send_to(&buffer[..length], from).await;
    }
}

async fn try_one(client: io::Result<Bound>, to: SocketAddr, timeout: Duration) -> (u16, Observed) {
    let client = match client {
        Ok(client) => client,
        Err(error) => return (0, Observed::Failed(format!("can't open a client: {error}"))),
    };
    let port = match &client {
        Bound::Tcp(socket) => socket.local_addr(),
        Bound::Udp(socket) => socket.local_addr(),
    };
    let outcome = match client {
        Bound::Tcp(socket) => time::timeout(timeout, connect(socket, to)).await,
        Bound::Udp(socket) => time::timeout(timeout, request(socket, to)).await,
    };
    let observed =
        outcome.map_or(Observed::Denied, |result| result.map_or_else(|error| seen(&error), |()| Observed::Allowed));
    (port.map_or(0, |local| local.port()), observed)
}

async fn connect(socket: TcpSocket, to: SocketAddr) -> io::Result<()> {
    socket.connect(to).await.map(drop)
}

async fn request(socket: std::net::UdpSocket, to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(to).await?;
    socket.send(b"netpol verify").await?;
    socket.recv(&mut [0; 64]).await.map(drop)
}

const SILENT_SERVICE: &str = "a service of its own holds the port and did not answer";
const NO_ROUTE: &str = "the client has no route to that address";

/// An error that the other end sent is an arrival; anything else is about this side.
fn seen(error: &io::Error) -> Observed {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Observed::Allowed,
        // nobody answered for the address, or a router refused
        ErrorKind::TimedOut | ErrorKind::HostUnreachable => Observed::Denied,
        ErrorKind::NetworkUnreachable => Observed::Unproven(NO_ROUTE),
        _ => Observed::Failed(error.to_string()),
    }
}
