//! What the classifiers log, in builds with the feature `log`: a ring buffer of the programs that are pinned,
//! read by whoever follows it. Lines go where those of netpol itself go (`NETPOL_LOG`).

use std::convert::Infallible;

use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

use super::{Datapath, Error, Role};

impl Datapath {
    /// Logs what the classifiers say from now on, and never ends by itself.
    ///
    /// # Errors
    /// Also if the classifiers that are loaded were built without the feature.
    pub async fn follow_log(&self) -> Result<Infallible, Error> {
        let [which, _] = Role::Workload.classifiers();
        let error = |error| Error::Program { what: which.name().to_owned(), error: Box::new(error) };
        let info = self.program(which).info().map_err(error)?;
        // all classifiers have one buffer
        let logger = EbpfLogger::init_from_id(info.id()).map_err(Error::Log)?;
        // SAFETY: the descriptor is the ring buffer's, open and the same for as long as the logger lives.
        let registered = unsafe { AsyncFd::register(logger) };
        let mut logger = registered.map_err(|error| Error::Follow(error.into()))?;
        loop {
            let mut ready = logger.readable_mut().await.map_err(Error::Follow)?;
            // everything, then the mark: what comes in between marks it again
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}
