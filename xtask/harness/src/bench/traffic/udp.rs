//! UDP: round trips, and floods of one flow.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{Barrier, mpsc},
    thread,
};

use anyhow::{Context as _, Result, anyhow};

use super::{Cpu, Lane, PATIENCE, PORT, Sample, Stopwatch, ThreadClock, counted, socket};

/// A request of this length ends the server.
const FAREWELL: &[u8] = b"bye";
const PAYLOAD: &[u8] = &[b'x'; 18];

/// One flow: a connected socket at each end.
struct Flow {
    client: UdpSocket,
    server: UdpSocket,
}

impl Flow {
    /// Opens sockets whose client end is connected and has sent nothing.
    fn open(lane: &Lane, port: u16) -> Result<Self> {
        let course = &lane.course;
        let server = course.server.run(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?))?;
        let client = course.client.run(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(PATIENCE * 10))?;
        }
        client.connect((course.to.ip(), course.to.port() + (port - PORT)))?;
        socket::set_send_buffer(&client, 4 << 20)?;
        Ok(Self { client, server })
    }

    /// The same after a packet in each direction.
    fn established(lane: &Lane, port: u16) -> Result<Self> {
        let flow = Self::open(lane, port)?;
        let mut byte = [0];
        flow.client.send(b"x")?;
        let (_, client) = flow.server.recv_from(&mut byte).context("the first UDP packet did not arrive")?;
        flow.server.connect(client)?;
        flow.server.send(b"x")?;
        flow.client.recv(&mut byte).context("the first UDP reply did not arrive")?;
        Ok(flow)
    }

    /// Sends from the calling thread, which is bound to `cpu`, until the time is over.
    fn flood(&self, lane: &Lane, cpu: &Cpu) -> Result<Sample> {
        let packets = [PAYLOAD; socket::BATCH];
        let mut warmed = 0;
        for _ in 0..50 {
            warmed += socket::send_batch(&self.client, &packets)?;
        }
        let clock = [ThreadClock::mine()?];
        let watch = Stopwatch::start(lane, cpu, &clock)?;
        let mut operations = 0;
        while watch.running() {
            operations += socket::send_batch(&self.client, &packets)?;
        }
        Ok(watch.stop(operations)?.after(warmed))
    }
}

pub fn round_trips(lane: &Lane) -> Result<Sample> {
    let Flow { client, server } = &Flow::established(lane, PORT)?;
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let serving = scope.spawn(move || {
            lane.cpu().take()?;
            // The client is gone when nobody wants to know.
            let _ = tell.send(ThreadClock::mine()?);
            echo(server)
        });
        let measuring = scope.spawn(move || {
            let measured = measure_round_trips(lane, client, told);
            client.send(FAREWELL)?;
            measured
        });
        let measured = measuring.join().map_err(|_| anyhow!("the client panicked"))?;
        serving.join().map_err(|_| anyhow!("the server panicked"))?.context("server")?;
        measured
    })
}

fn echo(server: &UdpSocket) -> Result<()> {
    let mut request = [0; 8];
    loop {
        let length = server.recv(&mut request).context("request")?;
        if length == FAREWELL.len() {
            return Ok(());
        }
        server.send(&request[..length])?;
    }
}

fn measure_round_trips(lane: &Lane, client: &UdpSocket, server: mpsc::Receiver<ThreadClock>) -> Result<Sample> {
    lane.cpu().take()?;
    let clocks = [server.recv().context("the server did not start")?, ThreadClock::mine()?];
    let round_trip = || -> Result<usize> {
        client.send(b"x")?;
        client.recv(&mut [0]).context("reply")
    };
    for _ in 0..200 {
        round_trip()?;
    }
    let watch = Stopwatch::start(lane, lane.cpu(), &clocks)?;
    let mut operations = 0;
    while watch.running() {
        for _ in 0..64 {
            round_trip()?;
        }
        operations += 64;
    }
    watch.stop(operations)
}

pub fn established(lane: &Lane) -> Result<Sample> {
    let flow = Flow::established(lane, PORT)?;
    socket::drop_everything(&flow.server)?;
    counted(lane, || on_cpu(lane.cpu(), || flow.flood(lane, lane.cpu())))
}

/// What conntrack calls NEW: rule lists that only spare established connections are walked by every packet.
pub fn unanswered(lane: &Lane) -> Result<Sample> {
    let flow = Flow::open(lane, PORT)?;
    socket::drop_everything(&flow.server)?;
    counted(lane, || on_cpu(lane.cpu(), || flow.flood(lane, lane.cpu())))
}

/// Two CPUs with a flow each, between the same endpoints; before that each of the two alone.
pub fn two_cpus(lane: &Lane) -> Result<Sample> {
    let [.., first, second] = lane.cpus else {
        return Err(anyhow!("two CPUs are needed"));
    };
    let flows = [Flow::established(lane, PORT)?, Flow::established(lane, PORT + 1)?];
    for flow in &flows {
        socket::drop_everything(&flow.server)?;
    }
    let part = Lane { time: lane.time / 3, ..*lane };
    let alone = [
        on_cpu(first, || flows[0].flood(&part, first))?.cost(),
        on_cpu(second, || flows[1].flood(&part, second))?.cost(),
    ];
    let start = Barrier::new(2);
    let together = thread::scope(|scope| {
        let threads = [(first, &flows[0]), (second, &flows[1])].map(|(cpu, flow)| {
            let (part, start) = (&part, &start);
            scope.spawn(move || {
                let taken = cpu.take();
                start.wait();
                taken?;
                flow.flood(part, cpu)
            })
        });
        threads.map(|thread| thread.join().map_err(|_| anyhow!("a sender panicked")).flatten())
    });
    let [one, two] = together;
    let (one, two) = (one?, two?);
    let sum = Sample { operations: one.operations + two.operations, spent: one.spent + two.spent, ..one };
    Ok(Sample { scaling: Some(sum.cost() / ((alone[0] + alone[1]) / 2.0)), ..sum })
}

fn on_cpu(cpu: &Cpu, action: impl FnOnce() -> Result<Sample> + Send) -> Result<Sample> {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                cpu.take()?;
                action()
            })
            .join()
            .map_err(|_| anyhow!("a sender panicked"))?
    })
}
