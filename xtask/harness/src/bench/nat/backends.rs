//! A thousand backends are added to a service and removed again, while connections to others of its backends are busy.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    super::{
        Setting,
        documents::endpoints,
        netpol::Instance,
        progress::Progress,
        report::{Bound, Goal, Section, Table, Unit, thousands},
        stats::Spread,
        topology::Families,
        traffic::PORT,
    },
    documents::{elsewhere, policy, slice},
    site::{Site, UPLINK, VIRTUAL},
};

/// Backends that stay: ports of the second container.
const STAYING: u16 = 8;
/// Those that come and go.
const COMING: u32 = 1_000;
/// Of each protocol.
const CONNECTIONS: u16 = 200;
/// Between two requests of a connection.
const PAUSE: Duration = Duration::from_millis(5);
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a server looks whether it should stop.
const NAP: Duration = Duration::from_millis(50);

/// What became of the connections of a protocol.
#[derive(Default)]
struct Count {
    requests: AtomicU64,
    broken: AtomicU64,
    /// How often all of them have asked.
    rounds: AtomicU64,
}

pub fn run(setting: &Setting) -> Result<Section> {
    let site = Site::new(Families::V4)?;
    let instance = Instance::new(setting.sandbox, setting.binary, "nat-backends", &site.topology.host)?;
    publish(&instance, &site, 0)?;
    let (client, server) = site.topology.pair();
    let ports = PORT..PORT + STAYING;
    let sockets = server.netns.run(|| ports.map(listen).collect::<Result<Vec<_>>>())?;
    let (asking, serving) = (AtomicBool::new(true), AtomicBool::new(true));
    let counts = [Count::default(), Count::default()];
    let steps = steps(setting.quick);
    let took = thread::scope(|scope| {
        for (listener, socket) in &sockets {
            let serving = &serving;
            scope.spawn(move || {
                while_running(serving, || {
                    listener.accept().map(|(stream, _)| {
                        scope.spawn(move || echo(stream));
                    })
                })
            });
            scope.spawn(move || {
                while_running(serving, || {
                    let mut byte = [0];
                    let (_, from) = socket.recv_from(&mut byte)?;
                    socket.send_to(&byte, from).map(drop)
                })
            });
        }
        let changed = client.netns.run(connect).and_then(|(streams, datagrams)| {
            let ([tcp, udp], asking) = (&counts, &asking);
            scope.spawn(move || ask(streams, asking, tcp));
            scope.spawn(move || ask(datagrams, asking, udp));
            change(&instance, &site, &steps, &counts)
        });
        // clients close, then the servers have nothing to serve
        asking.store(false, Relaxed);
        serving.store(false, Relaxed);
        changed
    })?;
    Ok(describe(&took, &counts))
}

/// Milliseconds of each publication.
fn change(instance: &Instance, site: &Site, steps: &[u32], counts: &[Count]) -> Result<Vec<f64>> {
    let progress = Progress::start("changing backends under load", steps.len());
    let mut took = Vec::new();
    for count in steps {
        took.push(publish(instance, site, *count)?.as_secs_f64() * 1e3);
        // A publication that nobody asks anything during proves nothing.
        for count in counts {
            let before = count.rounds.load(Relaxed);
            let begin = Instant::now();
            while count.rounds.load(Relaxed) < before + 2 {
                ensure!(begin.elapsed() < PATIENCE * 4, "the clients stand still");
                thread::sleep(PAUSE);
            }
        }
        progress.step(&format!("{count} more backends"));
    }
    progress.done();
    Ok(took)
}

/// Up in steps to all of them, and down to none.
fn steps(quick: bool) -> Vec<u32> {
    let parts = if quick { 4 } else { 50 };
    let up = (1..=parts).map(|part| COMING * part / parts);
    up.clone().chain(up.rev().skip(1)).chain([0]).collect()
}

/// The service with its staying backends and `count` others, at addresses that nobody has.
fn publish(instance: &Instance, site: &Site, count: u32) -> Result<Duration> {
    let (address, port) = VIRTUAL;
    let address = address.to_string();
    let (_, b) = site.topology.pair();
    let mut text = endpoints(&site.topology) + &policy();
    for protocol in ["TCP", "UDP"] {
        let name = format!("web-{}", protocol.to_lowercase());
        text += &elsewhere(&name, &[&address], protocol, (port, PORT));
        for number in 0..STAYING {
            text += &slice(&name, number.into(), protocol, PORT + number, &[&b.v4().to_string()]);
        }
        let first = Ipv4Addr::new(172, 21, 0, 1).to_bits();
        let more = (0..count).map(|number| Ipv4Addr::from_bits(first + number).to_string()).collect::<Vec<_>>();
        if !more.is_empty() {
            let more = more.iter().map(String::as_str).collect::<Vec<_>>();
            text += &slice(&name, STAYING.into(), protocol, PORT, &more);
        }
    }
    instance.write(&text)?;
    Ok(instance.load(&["--uplink", UPLINK]).with_context(|| format!("{count} more backends"))?.wall)
}

fn listen(port: u16) -> Result<(TcpListener, UdpSocket)> {
    let place = (Ipv4Addr::UNSPECIFIED, port);
    let (listener, socket) = (TcpListener::bind(place)?, UdpSocket::bind(place)?);
    set_accept_patience(&listener)?;
    socket.set_read_timeout(Some(NAP))?;
    Ok((listener, socket))
}

/// `accept` gives up after a while.
fn set_accept_patience(listener: &TcpListener) -> Result<()> {
    let time = nix::sys::time::TimeVal::new(0, NAP.as_micros() as i64);
    Ok(nix::sys::socket::setsockopt(listener, nix::sys::socket::sockopt::ReceiveTimeout, &time)?)
}

/// What fails is asked for again, and the client counts it.
fn while_running(running: &AtomicBool, mut action: impl FnMut() -> io::Result<()>) {
    while running.load(Relaxed) {
        _ = action();
    }
}

/// Until the client closes.
fn echo(mut stream: TcpStream) {
    // the listener's patience comes along
    _ = stream.set_read_timeout(None);
    let mut byte = [0];
    while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
}

/// Connections of both protocols to the service, from the calling thread's namespace.
fn connect() -> Result<(Vec<TcpStream>, Vec<UdpSocket>)> {
    let stream = |_| {
        let stream = TcpStream::connect(VIRTUAL)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let datagrams = |_| {
        let mut socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(VIRTUAL)?;
        // what has not been sent anything has no backend yet, and may get one that nobody has
        socket.ask(0).context("asking the service")?;
        Ok(socket)
    };
    let streams = (0..CONNECTIONS).map(stream).collect::<Result<_>>().context("connecting to the service")?;
    Ok((streams, (0..CONNECTIONS).map(datagrams).collect::<Result<_>>()?))
}

/// An open connection that answers with what it is sent.
trait Asked {
    fn ask(&mut self, byte: u8) -> io::Result<u8>;
}

impl Asked for TcpStream {
    fn ask(&mut self, byte: u8) -> io::Result<u8> {
        let mut answer = [0];
        self.write_all(&[byte])?;
        self.read_exact(&mut answer).map(|()| answer[0])
    }
}

impl Asked for UdpSocket {
    fn ask(&mut self, byte: u8) -> io::Result<u8> {
        let mut answer = [0];
        self.send(&[byte])?;
        self.recv(&mut answer).map(|_| answer[0])
    }
}

/// Asks all of them in turn; those that don't answer are broken, and not asked again.
fn ask(mut connections: Vec<impl Asked>, asking: &AtomicBool, count: &Count) {
    let mut byte = 0;
    while asking.load(Relaxed) {
        connections.retain_mut(|connection| {
            if !asking.load(Relaxed) {
                return true;
            }
            let answered = match connection.ask(byte) {
                Ok(answer) => answer == byte,
                Err(error) if error.kind() == ErrorKind::Interrupted => true,
                Err(_) => false,
            };
            count.requests.fetch_add(1, Relaxed);
            count.broken.fetch_add(u64::from(!answered), Relaxed);
            answered
        });
        count.rounds.fetch_add(1, Relaxed);
        byte = byte.wrapping_add(1);
        thread::sleep(PAUSE);
    }
}

fn describe(took: &[f64], counts: &[Count]) -> Section {
    let mut section = Section { title: "Backends that come and go", ..Section::default() };
    let whole = Spread::of(took).map_or(String::new(), |spread| Unit::Milliseconds.format(spread.median));
    section.notes.push(format!(
        "A service with {STAYING} backends, and {CONNECTIONS} connections of each protocol that ask them all the time, while \
         {} more backends are added and removed again by {} publications ({whole} each, from start to exit).",
        thousands(COMING.into()),
        thousands(took.len() as f64)
    ));
    let mut table = Table::new(["protocol", "connections", "requests", "broken"]);
    for (count, what) in counts.iter().zip(["TCP", "UDP"]) {
        let [requests, broken] = [&count.requests, &count.broken].map(|count| thousands(count.load(Relaxed) as f64));
        table.rows.push(vec![what.to_owned(), CONNECTIONS.to_string(), requests, broken]);
    }
    section.tables.push(table);
    let broken = counts.iter().map(|count| count.broken.load(Relaxed)).sum::<u64>() as f64;
    section.goals.push(Goal {
        what: format!("{} backends added and removed: connections broken", thousands(COMING.into())),
        bound: Bound::AtMost(0.0),
        unit: Unit::Connections,
        measured: Spread { median: broken, low: broken, high: broken, count: 1 },
    });
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_backends_come_and_all_go() {
        for quick in [true, false] {
            let steps = steps(quick);
            assert_eq!((steps.iter().max(), steps.last()), (Some(&COMING), Some(&0)));
            assert!(steps.iter().zip(&steps[1..]).all(|(one, next)| one != next));
        }
    }

    #[test]
    fn a_broken_connection_misses_the_goal() {
        let counts = [Count::default(), Count { broken: 1.into(), ..Count::default() }];
        assert!(!describe(&[1.0], &counts).goals[0].met());
    }
}
