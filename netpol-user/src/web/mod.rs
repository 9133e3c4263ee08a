//! A port for people and monitoring of this machine: it only tells, and a client that is slow, or many of them,
//! cost a bounded amount of memory, of connections and of time.
//!
//! | file | one idea |
//! |---|---|
//! | `guard` | who may ask, and what a browser may do with the answer |
//! | `kept` | one reading of the kernel for everybody who asks |

mod guard;
mod kept;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, middleware};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

pub use guard::Guard;
pub use kept::Kept;

/// Connections at once; others wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// How long a client may take to say what it wants, the next request of a connection included.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection lasts. A viewer that reads no more loses its place; a page connects again by itself.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// For the line and the headers of a request.
const BUFFER: usize = 16 * 1024;

/// A port that is open.
#[derive(Debug)]
pub struct Port {
    listener: std::net::TcpListener,
    address: SocketAddr,
}

impl Port {
    /// # Errors
    /// What the system says, for example that the port is in use.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// With the number that the system chose, where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the process ends. `hosts` are names by which clients may call this machine, besides loopback's
    /// and the port's own address.
    pub fn serve(self, hosts: &[String], routes: Router) -> io::Result<()> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().max_blocking_threads(2).build()?;
        let guard = Arc::new(Guard::new(self.address.ip(), hosts));
        let routes = routes.layer(middleware::from_fn_with_state(guard, guard::guard));
        runtime.block_on(async { accept(TcpListener::from_std(self.listener)?, routes).await })
    }
}

async fn accept(listener: TcpListener, routes: Router) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
        let Ok((stream, _)) = listener.accept().await else {
            // out of descriptors, or the client is gone again: neither is a reason to end
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let routes = routes.clone();
        tokio::spawn(async move {
            serve(stream, routes).await;
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, routes: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(BUFFER).max_headers(64);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    // how it ended is the client's own affair
    let _ = timeout(LIFE, connection).await;
}
