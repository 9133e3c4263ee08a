//! The kernel's side, as userspace sees it: the only module that speaks aya.
//!
//! Everything is pinned in one folder of a bpffs and needs no process to go on. What is pinned is the
//! truth: each command opens it anew. Only filters of clsact are not: their interfaces keep them.
//!
//! | file | one idea |
//! |---|---|
//! | `pins` | the folder: what lies where, and whether it is of this version |
//! | `programs` | the classifiers, loaded once |
//! | `calls` | bpf(2) itself, for what aya has no function for |
//! | `links` | classifiers on interfaces, by TCX or clsact |
//! | `sockets` | programs for the host's own sockets, at the root control group |
//! | `log` | what the classifiers log, in builds with that feature |
//! | `slots` | the tables that a publication fills |
//! | `publish` | a snapshot becomes the policy, with one write |
//! | `table` | the tables of flows: their layout, and how entries are found |
//! | `clock` | the classifiers' clock |
//! | `asked` | what the host's own sockets asked for, read |
//! | `batch`, `mapped` | many entries with one system call, very many without any |
//! | `published` | what was published, read back |
//! | `records` | flows, denials and counters, read |
//! | `translations` | translated connections, read |
//! | `usage` | how full the maps are |
//! | `observer` | a ring buffer for one who observes, and its lease |
//! | `event` | what it is told |
//! | `testrun` | frames of ours, without an interface |
//! | `twin` | a second copy of the classifiers, to ask without being noticed |

mod asked;
mod batch;
mod calls;
mod clock;
mod event;
mod links;
#[cfg(feature = "log")]
mod log;
mod mapped;
mod observer;
mod pins;
mod programs;
mod publish;
mod published;
mod records;
mod slots;
mod sockets;
mod table;
mod testrun;
mod translations;
mod twin;
mod usage;

use std::{io, path::PathBuf};

pub use asked::Asked;
pub use event::{Event, Frame};
pub use links::{Hook, Position, Way, unload};
pub use netpol_common::event::{Kind, Wants};
pub use netpol_common::{
    drops::{Drop, Pass, Side},
    flow::{FlowFlags, Generation},
    kernel::{Live, Settings},
};
pub use observer::{Observer, Untold};
pub use pins::Pins;
pub use programs::{Datapath, Role};
pub use published::Published;
pub use records::{Audited, Counter, Record, Translated};
pub use sockets::control_group;
pub use testrun::{Action, Arrival, Ran};
pub use translations::Pair;
pub use twin::{Client, Tried, Twin};
pub use usage::Usage;

/// What goes wrong between userspace and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Privileges(#[from] crate::privileges::Error),
    #[error("{path} is not in a BPF file system; mount one there: mount -t bpf bpf {path}")]
    NotBpffs { path: PathBuf },
    #[error("the kernel does not start the timer that ends silent translations")]
    Aging,
    #[error("the kernel does not tell how fine its coarse clock is")]
    Clock(#[source] io::Error),
    #[error("nothing is loaded here (no {path}); run `netpol load PATH`")]
    NotLoaded { path: PathBuf },
    #[error(
        "{path} has room for {has} entries, not {wanted}, as long as anything is loaded; `netpol unload` first, or leave \
         `--flows` out"
    )]
    Room { path: PathBuf, has: u32, wanted: u32 },
    #[error("{path}")]
    Folder {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    /// Reusing them would read the memory of one version with the layout of another.
    #[error(
        "{path} was made by another version of netpol: {what}; run `netpol unload`, then load again (in between, nothing is enforced)"
    )]
    OtherVersion { path: PathBuf, what: String },
    #[error("the kernel refuses the classifiers")]
    Object(#[from] Box<aya::EbpfError>),
    #[error("the kernel refuses {what}")]
    Program {
        what: String,
        #[source]
        error: Box<aya::programs::ProgramError>,
    },
    #[error("cannot take {path} off its interface")]
    Detach {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("the kernel refuses {what}")]
    ControlGroup {
        what: String,
        #[source]
        error: io::Error,
    },
    #[error("cannot pin {path}")]
    Pin {
        path: PathBuf,
        #[source]
        error: Box<aya::pin::PinError>,
    },
    #[error("{what}")]
    Netlink {
        what: String,
        #[source]
        error: io::Error,
    },
    #[error("this kernel has no TCX (Linux has it since 6.6); use --attach cls")]
    NoTcx,
    #[error("link {path}")]
    Link {
        path: PathBuf,
        #[source]
        error: Box<aya::programs::links::LinkError>,
    },
    #[error("map {map}")]
    Map {
        map: String,
        #[source]
        error: Box<aya::maps::MapError>,
    },
    #[error("the kernel refuses map {map}")]
    Slots {
        map: &'static str,
        #[source]
        error: io::Error,
    },
    #[error("{interface} is gone since it was found; run the load again")]
    Gone { interface: String },
    #[cfg(feature = "log")]
    #[error(
        "the classifiers that are loaded do not log; write a line (`aya_log_ebpf::info!`), and load a build with the feature `log`"
    )]
    Log(#[source] aya_log::Error),
    #[cfg(feature = "log")]
    #[error("cannot read what the classifiers log")]
    Follow(#[source] io::Error),
    #[error("cannot read map {map}")]
    Read {
        map: &'static str,
        #[source]
        error: io::Error,
    },
    #[error("there are {0} observers already, which is as many as there may be; end one of them")]
    Observers(u32),
    #[error(transparent)]
    State(#[from] Box<crate::state::Error>),
    #[error("the kernel cannot wait for its readers (membarrier)")]
    Barrier(#[source] io::Error),
}

impl Error {
    fn map(map: &str) -> impl FnOnce(aya::maps::MapError) -> Self + '_ {
        move |error| Self::Map { map: map.to_owned(), error: Box::new(error) }
    }
}
