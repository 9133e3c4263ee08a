//! A command of netpol that serves a port inside a host, and requests to it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use netpol_user::netns::Namespace;

use super::Host;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A port that is served, until this is dropped.
pub struct Served {
    child: Child,
    namespace: Namespace,
    pub address: SocketAddr,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Host {
    /// Runs a command that prints the address that it serves.
    pub fn serve(&self, arguments: &[&str]) -> Served {
        let namespace = Namespace::open(self.namespace.path()).expect("its own namespace");
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpol"));
        command.arg("--bpffs").arg(self.bpffs()).arg("--state").arg(self.folder().join("state")).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = namespace.enter(|| command.spawn()).expect("root").expect("netpol");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        // ends with the line, or with the program
        output.read_line(&mut line).expect("its output");
        let address = line.trim().strip_prefix("http://").and_then(|rest| rest.split('/').next()?.parse().ok());
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}"));
        Served { child, namespace, address }
    }
}

impl Served {
    pub fn get(&self, path: &str, host: &str) -> Answer {
        self.request("GET", path, host)
    }

    pub fn request(&self, method: &str, path: &str, host: &str) -> Answer {
        let mut stream = self.ask(method, path, &[("Host", host), ("Connection", "close")]);
        let mut text = Vec::new();
        stream.read_to_end(&mut text).expect("an answer");
        Answer::parse(&String::from_utf8_lossy(&text))
    }

    /// Sends a request and leaves reading to the caller.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> TcpStream {
        let mut stream = self.connect();
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        write!(stream, "{method} {path} HTTP/1.1\r\n{headers}\r\n").expect("sending");
        stream
    }

    pub fn connect(&self) -> TcpStream {
        let connected = self.namespace.enter(|| TcpStream::connect_timeout(&self.address, PATIENCE));
        let stream = connected.expect("root").unwrap_or_else(|error| panic!("{}: {error}", self.address));
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Self { status, headers: lines.filter_map(header).collect(), body: body.to_owned() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }
}
