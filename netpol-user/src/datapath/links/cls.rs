//! clsact: a qdisc that holds filters for both sides of an interface. The interface keeps them, so
//! there is nothing to pin, and the kernel is asked which filters are ours.
//!
//! `cls_bpf` puts a new filter before the others of its priority and a replaced one where the old one
//! was (net/sched/cls_bpf.c, `cls_bpf_change`): at priority 1 ours is first when it comes.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    path,
};

use netpol_common::{drops::Side, tables::IfIndex};

use super::{Hook, Met, SIDES, program_id};
use crate::{
    datapath::{Datapath, Error, Pins, programs::Classifier},
    netlink::{Family, Socket, attribute, push, text, word},
};

// linux/rtnetlink.h, linux/pkt_sched.h and linux/pkt_cls.h, where libc has no name for them
const TCM_LEN: usize = 20;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;

/// The parent of a side's filters: `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` of clsact.
const fn parent(side: Side) -> u32 {
    match side {
        Side::From => 0xffff_fff2,
        Side::To => 0xffff_fff3,
    }
}

/// `struct tcmsg`, without its family and padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Head {
    ifindex: u32,
    handle: u32,
    parent: u32,
    /// Priority, then the `EtherType` in the order of the network.
    info: u32,
}

impl Head {
    fn read(message: &[u8]) -> Option<Self> {
        let word = |at: usize| word(message.get(at..)?);
        Some(Self { ifindex: word(4)?, handle: word(8)?, parent: word(12)?, info: word(16)? })
    }

    fn bytes(self) -> Vec<u8> {
        let Self { ifindex, handle, parent, info } = self;
        // the first word: AF_UNSPEC and padding
        [0, ifindex, handle, parent, info].into_iter().flat_map(u32::to_ne_bytes).collect()
    }
}

/// `tcm_info` of filters for every `EtherType`.
const fn all_protocols(priority: u16) -> u32 {
    (priority as u32) << 16 | (libc::ETH_P_ALL as u16).to_be() as u32
}

/// A filter as the kernel lists it.
#[derive(Clone, Debug)]
struct Filter {
    head: Head,
    kind: String,
    chain: u32,
    /// Of kind `bpf`: the number and the name of the program.
    program: Option<u32>,
    name: Option<String>,
}

impl Filter {
    /// `None`: not a filter but the head of those of one priority.
    fn read(message: &[u8]) -> Option<Self> {
        let head = Head::read(message)?;
        if head.handle == 0 {
            return None;
        }
        let attributes = message.get(TCM_LEN..)?;
        let options = attribute(attributes, libc::TCA_OPTIONS).unwrap_or_default();
        let kind = text(attribute(attributes, libc::TCA_KIND)?);
        let of_program = |kind_of: u16| attribute(options, kind_of).filter(|_| kind == "bpf");
        Some(Self {
            head,
            chain: attribute(attributes, TCA_CHAIN).and_then(word).unwrap_or(0),
            program: of_program(TCA_BPF_ID).and_then(word),
            name: of_program(TCA_BPF_NAME).map(text),
            kind,
        })
    }

    /// This instance attached it, now or by an earlier build.
    fn is_ours(&self, handle: u32, side: Side) -> bool {
        let is_name = |which: Classifier| which.side == side && self.name.as_deref() == Some(which.name());
        self.head.handle == handle && self.chain == 0 && Classifier::all().any(is_name)
    }

    /// A program of ours may have the same priority.
    fn shares(&self) -> bool {
        self.kind == "bpf" && self.head.info as u16 == all_protocols(0) as u16
    }

    const fn priority(&self) -> u16 {
        (self.head.info >> 16) as u16
    }
}

/// The number that an instance's filters have: 'n' and 24 bits of where it is pinned. Instances of one
/// namespace tell their own by it, also a later netpol's, so it must never be made another way.
fn handle(pins: &Pins) -> u32 {
    // not resolved: the answer must be the same when the folder is gone
    let root = path::absolute(pins.root()).unwrap_or_else(|_| pins.root().to_owned());
    // FNV-1a
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let hash = root.as_os_str().as_encoded_bytes().iter().fold(0x811c_9dc5, step);
    u32::from(b'n') << 24 | (hash ^ hash >> 24) & 0x00ff_ffff
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Netlink { what: what.into(), error }
}

fn socket() -> Result<Socket, Error> {
    Socket::open(Family::Route).map_err(failed("cannot ask the kernel about filters"))
}

pub(super) fn attach(datapath: &Datapath, hook: &Hook, which: Classifier) -> Result<bool, Error> {
    let Classifier { side, .. } = which;
    let handle = handle(&datapath.pins);
    let what = format!("{} on {}", which.name(), hook.interface);
    let program = datapath.program(which);
    let id = program_id(program, &what)?;
    let mut socket = socket()?;
    let filters = filters(&mut socket, hook.ifindex, side)?;
    let ours = filters.iter().find(|filter| filter.is_ours(handle, side));
    if ours.is_some_and(|filter| filter.program == Some(id)) {
        return Ok(false);
    }
    if filters.is_empty() {
        add_qdisc(&mut socket, hook)?;
    }
    let info = ours.map_or_else(|| all_protocols(priority(&filters)), |filter| filter.head.info);
    let head = Head { ifindex: hook.ifindex.0, handle, parent: parent(side), info };
    let fd = program.fd().map_err(|error| Error::Program { what: what.clone(), error: Box::new(error) })?;
    let mut options = Vec::new();
    push(&mut options, TCA_BPF_FD, &fd.as_fd().as_raw_fd().to_ne_bytes());
    push(&mut options, TCA_BPF_NAME, &[which.name().as_bytes(), b"\0"].concat());
    push(&mut options, TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    let mut body = head.bytes();
    push(&mut body, libc::TCA_KIND, b"bpf\0");
    push(&mut body, libc::TCA_OPTIONS | libc::NLA_F_NESTED as u16, &options);
    // without NLM_F_EXCL: the filter of that handle is replaced if there is one
    let made = socket.change(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE, &body);
    made.map_err(failed(format!("the kernel refuses {what} as a filter of clsact")))?;
    Ok(true)
}

/// The foremost priority where nothing else than programs is: a priority holds one kind of filter.
fn priority(filters: &[Filter]) -> u16 {
    let taken: BTreeSet<_> = filters.iter().filter(|filter| !filter.shares()).map(Filter::priority).collect();
    (1..u16::MAX).find(|priority| !taken.contains(priority)).unwrap_or(u16::MAX)
}

/// clsact does nothing of its own, and one that is there already serves as well.
fn add_qdisc(socket: &mut Socket, hook: &Hook) -> Result<(), Error> {
    let head = Head { ifindex: hook.ifindex.0, handle: CLSACT_HANDLE, parent: CLSACT_PARENT, info: 0 };
    let mut body = head.bytes();
    push(&mut body, libc::TCA_KIND, b"clsact\0");
    match socket.change(libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &body) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
            Err(failed(format!("the kernel refuses a clsact qdisc on {}", hook.interface))(error))
        }
        _ => Ok(()),
    }
}

pub(super) fn detach(pins: &Pins, ifindex: IfIndex) -> Result<(), Error> {
    remove(&mut socket()?, ifindex, handle(pins)).map(drop)
}

/// Takes the instance off all interfaces of this namespace; how many it was on.
pub(super) fn detach_all(pins: &Pins) -> Result<usize, Error> {
    let (mut socket, handle) = (socket()?, handle(pins));
    // all of them, whether or not one fails
    let removed: Vec<_> =
        qdiscs(&mut socket)?.into_iter().map(|ifindex| remove(&mut socket, ifindex, handle)).collect();
    let removed = removed.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(removed.into_iter().filter(|removed| *removed).count())
}

/// Removes our filters from an interface, and the qdisc if nobody is left there. `true`: there were some.
fn remove(socket: &mut Socket, ifindex: IfIndex, handle: u32) -> Result<bool, Error> {
    let (mut removed, mut others) = (false, false);
    for side in SIDES {
        for filter in filters(socket, ifindex, side)? {
            if !filter.is_ours(handle, side) {
                others = true;
                continue;
            }
            delete(socket, libc::RTM_DELTFILTER, filter.head)?;
            removed = true;
        }
    }
    if removed && !others {
        let qdisc = Head { ifindex: ifindex.0, handle: CLSACT_HANDLE, parent: CLSACT_PARENT, info: 0 };
        delete(socket, libc::RTM_DELQDISC, qdisc)?;
    }
    Ok(removed)
}

/// What is gone already, perhaps with its interface, is no error.
fn delete(socket: &mut Socket, kind: u16, head: Head) -> Result<(), Error> {
    match socket.change(kind, 0, &head.bytes()) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
            Err(failed(format!("the kernel refuses to remove a filter of interface {}", head.ifindex))(error))
        }
        _ => Ok(()),
    }
}

/// The interfaces that have filters of ours, one or two times each.
pub(super) fn attached(pins: &Pins) -> Result<Vec<IfIndex>, Error> {
    let (mut socket, handle) = (socket()?, handle(pins));
    let mut found = Vec::new();
    for ifindex in qdiscs(&mut socket)? {
        for side in SIDES {
            let filters = filters(&mut socket, ifindex, side)?;
            found.extend(filters.iter().any(|filter| filter.is_ours(handle, side)).then_some(ifindex));
        }
    }
    Ok(found)
}

/// Every filter that a packet meets on one side of an interface, in order.
pub(super) fn chain(hook: &Hook, side: Side) -> Result<Vec<Met>, Error> {
    let filters = filters(&mut socket()?, hook.ifindex, side)?;
    // other chains are only jumped to, from this one
    let first = filters.into_iter().filter(|filter| filter.chain == 0);
    let met = |filter: Filter| Met {
        program: filter.program,
        name: filter.name.unwrap_or_else(|| format!("(a filter of kind {})", filter.kind)),
    };
    Ok(first.map(met).collect())
}

/// The interfaces that have a clsact qdisc.
fn qdiscs(socket: &mut Socket) -> Result<Vec<IfIndex>, Error> {
    let dump = socket.dump(libc::RTM_GETQDISC, &Head::default().bytes());
    let messages = dump.map_err(failed("the kernel does not list its qdiscs"))?;
    let is_clsact = |message: &[u8]| {
        let kind = attribute(message.get(TCM_LEN..)?, libc::TCA_KIND)?;
        (text(kind) == "clsact").then_some(IfIndex(Head::read(message)?.ifindex))
    };
    Ok(messages.iter().filter_map(|message| is_clsact(message)).collect())
}

/// The filters on one side of an interface; none if it has no clsact, or is gone.
fn filters(socket: &mut Socket, ifindex: IfIndex, side: Side) -> Result<Vec<Filter>, Error> {
    let head = Head { ifindex: ifindex.0, parent: parent(side), ..Head::default() };
    match socket.dump(libc::RTM_GETTFILTER, &head.bytes()) {
        Ok(messages) => Ok(messages.iter().filter_map(|message| Filter::read(message)).collect()),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(vec![]),
        Err(error) => Err(failed(format!("the kernel does not list the filters of interface {}", ifindex.0))(error)),
    }
}
