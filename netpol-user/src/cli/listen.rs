//! A port that a command serves.

use std::{io::Write as _, net::SocketAddr};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::web::Port;

/// Names by which the port may be called.
#[derive(Args, Clone, Debug)]
pub struct HostArgs {
    /// Answer requests that call this machine NAME, too. (Loopback and the port's own address are answered anyway, and
    /// nothing else: a foreign page could otherwise let a name of its own point here.)
    #[arg(long = "host", value_name = "NAME")]
    pub hosts: Vec<String>,
}

/// Opens a port and says where it is.
pub fn open(address: SocketAddr, path: &str) -> Result<Port> {
    let port = Port::open(address).with_context(|| format!("cannot listen on {address}; --listen chooses another"))?;
    writeln!(std::io::stdout(), "http://{}{path}", port.address())?;
    std::io::stdout().flush()?;
    Ok(port)
}
