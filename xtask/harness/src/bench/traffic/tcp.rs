//! TCP: round trips on one connection, connections of one round trip, a stream.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

use anyhow::{Context as _, Result, anyhow};

use super::{Lane, PATIENCE, PORT, Sample, Stopwatch, ThreadClock, socket};

/// Round trips before the watch starts: both sides' windows and caches are settled then.
const WARM_UP: u64 = 200;

/// What the server does with a connection; it ends when the client closes.
type Serve = fn(&mut TcpStream, &AtomicU64) -> Result<()>;

pub fn round_trips(lane: &Lane) -> Result<Sample> {
    with_server(lane, echo, |server, _| {
        let mut stream = connect(server.address)?;
        stream.set_nodelay(true)?;
        for _ in 0..WARM_UP {
            round_trip(&mut stream)?;
        }
        let clocks = [server.clock, ThreadClock::mine()?];
        let watch = Stopwatch::start(lane, lane.cpu(), &clocks)?;
        let mut operations = 0;
        while watch.running() {
            for _ in 0..64 {
                round_trip(&mut stream)?;
            }
            operations += 64;
        }
        watch.stop(operations)
    })
}

pub fn connections(lane: &Lane) -> Result<Sample> {
    with_server(lane, echo, |server, _| {
        let clocks = [server.clock, ThreadClock::mine()?];
        let watch = Stopwatch::start(lane, lane.cpu(), &clocks)?;
        let mut operations = 0;
        while watch.running() {
            let mut stream = connect(server.address)?;
            socket::reset_on_close(&stream)?;
            round_trip(&mut stream)?;
            operations += 1;
        }
        watch.stop(operations)
    })
}

pub fn stream(lane: &Lane) -> Result<Sample> {
    with_server(lane, swallow, |server, received| {
        let mut stream = connect(server.address)?;
        let block = vec![b'x'; 128 << 10];
        for _ in 0..WARM_UP {
            stream.write_all(&block)?;
        }
        let clocks = [server.clock, ThreadClock::mine()?];
        let before = received.load(Relaxed);
        let watch = Stopwatch::start(lane, lane.cpu(), &clocks)?;
        while watch.running() {
            stream.write_all(&block)?;
        }
        watch.stop((received.load(Relaxed) - before) >> 10)
    })
}

struct Server {
    address: SocketAddr,
    clock: ThreadClock,
}

/// Runs `client` beside a server, each on a thread of its own, both on one CPU.
fn with_server(
    lane: &Lane,
    serve: Serve,
    client: impl FnOnce(&Server, &AtomicU64) -> Result<Sample> + Send,
) -> Result<Sample> {
    let course = &lane.course;
    let listener = course.server.run(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?))?;
    socket::set_patience(&listener)?;
    let address = course.to;
    let (received, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let (received, stop, listener) = (&received, &stop, &listener);
        let server = scope.spawn(move || {
            lane.cpu().take()?;
            // The client is gone when nobody wants to know.
            let _ = tell.send(ThreadClock::mine()?);
            accept(listener, stop, |stream| serve(stream, received))
        });
        let client = scope.spawn(move || {
            let measured = (|| {
                course.client.enter()?;
                lane.cpu().take()?;
                let clock = told.recv().context("the server did not start")?;
                client(&Server { address, clock }, received)
            })();
            stop.store(true, Relaxed);
            // Wakes a server that waits for the next connection; one that can't be reached looks by itself.
            let _ = TcpStream::connect_timeout(&address, PATIENCE).map(|stream| stream.shutdown(Shutdown::Both));
            measured
        });
        let measured = client.join().map_err(|_| anyhow!("the client panicked"))?;
        server.join().map_err(|_| anyhow!("the server panicked"))?.context("server")?;
        measured
    })
}

fn accept(
    listener: &TcpListener,
    stop: &AtomicBool,
    mut serve: impl FnMut(&mut TcpStream) -> Result<()>,
) -> Result<()> {
    while !stop.load(Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => serve(&mut stream)?,
            Err(error) if is_patience(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn echo(stream: &mut TcpStream, _: &AtomicU64) -> Result<()> {
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) => stream.write_all(&byte)?,
            // A reset is how the client closes.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) if is_patience(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn swallow(stream: &mut TcpStream, received: &AtomicU64) -> Result<()> {
    let mut block = vec![0; 128 << 10];
    loop {
        match stream.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(count) => received.fetch_add(count as u64, Relaxed),
            Err(error) if is_patience(&error) => continue,
            Err(error) => return Err(error.into()),
        };
    }
}

fn connect(server: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(server).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE * 10))?;
    Ok(stream)
}

fn round_trip(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"x").context("request")?;
    stream.read_exact(&mut [0]).context("reply")
}

fn is_patience(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
