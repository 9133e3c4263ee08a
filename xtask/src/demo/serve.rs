//! The services of the demo: small HTTP servers that answer with their name.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;

/// A client that says nothing for this long is left alone.
const PATIENCE: Duration = Duration::from_secs(2);
/// More than any request of the demo.
const LONGEST_REQUEST: u64 = 8 * 1024;

/// Answers HTTP requests with a name, on all addresses of the namespace that it is started in.
#[derive(Args)]
pub struct Serve {
    name: String,
    #[arg(required = true)]
    ports: Vec<u16>,
}

impl Serve {
    /// What it prints once every port is open.
    pub const READY: &str = "ready";

    pub fn run(self) -> Result<()> {
        let listen = |port: &u16| TcpListener::bind(("0.0.0.0", *port)).with_context(|| format!("port {port}"));
        let listeners = self.ports.iter().map(listen).collect::<Result<Vec<_>>>()?;
        println!("{}", Self::READY);
        thread::scope(|scope| {
            for listener in &listeners {
                scope.spawn(|| answer_all(listener, &self.name));
            }
        });
        Ok(())
    }
}

fn answer_all(listener: &TcpListener, name: &str) {
    for client in listener.incoming().flatten() {
        let name = name.to_owned();
        // A client that breaks off is its own affair.
        thread::spawn(move || answer(client, &name).ok());
    }
}

fn answer(mut client: TcpStream, name: &str) -> Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let request = BufReader::new(client.try_clone()?.take(LONGEST_REQUEST));
    for line in request.lines() {
        if line?.is_empty() {
            break;
        }
    }
    let body = format!("{name} ({}), asked by {}\n", client.local_addr()?, client.peer_addr()?.ip());
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n";
    write!(client, "{head}Content-Length: {}\r\n\r\n{body}", body.len())?;
    Ok(())
}
