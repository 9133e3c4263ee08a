//! One visit to an endpoint's namespace: which interface is its own, and which addresses it has.

use std::{fmt::Write as _, io, net::IpAddr, path::Path, thread};

use netpol_common::wire::Mac;

use super::{
    Error,
    links::{self, Link},
};
use crate::{
    model::{Attachment, Endpoint},
    netlink::{Family, Socket},
    netns::{Namespace, NamespaceId},
};

/// What a visit brought back.
#[derive(Clone, Debug)]
pub(super) struct Inside {
    pub namespace: NamespaceId,
    /// The name of the namespace's file, for messages.
    pub place: String,
    /// The number that our namespace has for this one; `None`: no link between them exists.
    pub number: Option<i32>,
    pub index: u32,
    pub interface: String,
    pub mac: Mac,
    /// The number of the interface at the other end, wherever that is.
    pub peer: u32,
    pub addresses: Vec<IpAddr>,
}

/// Why an endpoint is not a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// It isn't there (yet).
    Pending(String),
    /// It is there, but not as the document says.
    Wrong { message: String, help: String },
    /// The same, and root inside can have made it so.
    Changed { message: String, help: String },
}

/// More threads than this only wait for each other: the kernel answers for links under one lock.
const THREADS: usize = 4;

/// Visits the namespaces of all these endpoints; answers in their order.
pub(super) fn visit(endpoints: &[(usize, &Endpoint)]) -> Result<Vec<Result<Inside, Obstacle>>, Error> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let share = endpoints.len().div_ceil(threads).max(1);
    let visits = thread::scope(|scope| {
        let visitors: Vec<_> = endpoints.chunks(share).map(|share| scope.spawn(|| visit_some(share))).collect();
        let answers = visitors.into_iter().map(|visitor| match visitor.join() {
            Ok(answer) => answer,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        answers.collect::<io::Result<Vec<_>>>()
    });
    let visits = visits.map_err(|error| Error::Kernel { what: "the links", error })?;
    Ok(visits.into_iter().flatten().collect())
}

/// Moves the calling thread from namespace to namespace.
fn visit_some(endpoints: &[(usize, &Endpoint)]) -> io::Result<Vec<Result<Inside, Obstacle>>> {
    // opened before the first move: it goes on asking where we came from
    let mut home = Home { namespace: Namespace::current()?, socket: Socket::open(Family::Route)? };
    let attachments = endpoints.iter().filter_map(|(_, endpoint)| endpoint.attachment.as_ref());
    Ok(attachments.map(|attachment| look(attachment, &mut home)).collect())
}

/// Where a visitor came from.
struct Home {
    namespace: Namespace,
    socket: Socket,
}

fn look(Attachment { netns, interface }: &Attachment, home: &mut Home) -> Result<Inside, Obstacle> {
    let failed = |error: io::Error| match error.kind() {
        // root inside can change them all the time, which must hold up nobody else
        io::ErrorKind::Interrupted => Obstacle::Pending(format!("the interfaces in {}: {error}", netns.display())),
        _ => Obstacle::Wrong {
            message: format!("can't look into the network namespace {}: {error}", netns.display()),
            help: "it must be readable, and netpol needs CAP_SYS_ADMIN to enter it".to_owned(),
        },
    };
    let namespace = open(netns)?;
    namespace.join().map_err(failed)?;
    let mut socket = Socket::open(Family::Route).map_err(failed)?;
    let mut links = links::links(&mut socket).map_err(failed)?;
    if interface.is_none() && links.iter().filter(|link| link.kind == "veth").count() > 1 {
        // root inside can make veths, but none that lead to us
        let us = links::namespace_number(&mut socket, &home.namespace).map_err(failed)?;
        links.retain(|link| link.kind != "veth" || link.peer_namespace.is_some() && link.peer_namespace == us);
    }
    let link = choose(&links, interface.as_deref(), netns)?;
    let Some(peer) = link.peer else {
        return Err(Obstacle::Pending(format!("{} in {} has no other end", link.name, netns.display())));
    };
    let addresses = links::addresses(&mut socket).map_err(failed)?;
    let mut addresses: Vec<_> = addresses.into_iter().filter(|a| a.link == link.index).map(|a| a.address).collect();
    // discovery again must give the same answer, or a load would never be without change
    addresses.sort_unstable();
    addresses.dedup();
    Ok(Inside {
        namespace: namespace.id().map_err(failed)?,
        place: netns.display().to_string(),
        number: links::namespace_number(&mut home.socket, &namespace).map_err(failed)?,
        index: link.index,
        interface: link.name.clone(),
        mac: link.mac,
        peer,
        addresses,
    })
}

fn open(netns: &Path) -> Result<Namespace, Obstacle> {
    let place = netns.display();
    Namespace::open(netns).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Obstacle::Pending(format!("the network namespace {place} does not exist")),
        // `ip netns` leaves empty files after a reboot or a lost mount
        io::ErrorKind::InvalidInput => Obstacle::Pending(format!("{place} is not a network namespace")),
        _ => Obstacle::Wrong {
            message: format!("can't open the network namespace {place}: {error}"),
            help: "check its permissions".to_owned(),
        },
    })
}

/// The interface with that name, or the only veth.
fn choose<'a>(links: &'a [Link], name: Option<&str>, netns: &Path) -> Result<&'a Link, Obstacle> {
    let place = netns.display();
    let Some(name) = name else {
        let veths: Vec<_> = links.iter().filter(|link| link.kind == "veth").collect();
        return match *veths {
            [only] => Ok(only),
            [] => Err(Obstacle::Pending(format!("{place} has no veth interface{}", inventory(links)))),
            _ => Err(Obstacle::Wrong {
                message: format!("{place} has several interfaces: {}", names(&veths)),
                help: "name one of them in `spec.interface`".to_owned(),
            }),
        };
    };
    match links.iter().find(|link| link.name == name) {
        Some(link) if link.kind == "veth" => Ok(link),
        Some(link) => Err(Obstacle::Changed {
            message: format!("{name} in {place} is {}, not a veth", described(link)),
            help: "netpol enforces at the host end of a veth: name such an interface in `spec.interface`".to_owned(),
        }),
        None => Err(Obstacle::Pending(format!("{place} has no interface {name}{}", inventory(links)))),
    }
}

fn described(link: &Link) -> String {
    if link.kind.is_empty() { "no virtual interface".to_owned() } else { format!("of the kind {}", link.kind) }
}

fn names(links: &[&Link]) -> String {
    links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// What there is instead.
fn inventory(links: &[Link]) -> String {
    let mut text = String::new();
    for link in links.iter().filter(|link| link.name != "lo") {
        let separator = if text.is_empty() { " (it has " } else { ", " };
        let kind = if link.kind.is_empty() { String::new() } else { format!(" [{}]", link.kind) };
        // writing to a String can't fail
        _ = write!(text, "{separator}{}{kind}", link.name);
    }
    if text.is_empty() { text } else { text + ")" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link { index, name: name.to_owned(), kind: kind.to_owned(), ..Link::default() }
    }

    fn chosen<'a>(links: &'a [Link], name: Option<&str>) -> Result<&'a str, Obstacle> {
        choose(links, name, Path::new("/run/netns/a")).map(|link| link.name.as_str())
    }

    #[test]
    fn the_only_veth_is_chosen_among_other_kinds() {
        let links = [link(1, "lo", ""), link(2, "eth0", "veth"), link(3, "vx0", "vxlan")];
        assert_eq!(chosen(&links, None), Ok("eth0"));
    }

    #[test]
    fn two_veths_are_an_error_that_names_both_and_the_cure() {
        let links = [link(1, "lo", ""), link(2, "eth0", "veth"), link(3, "eth1", "veth")];
        let Err(Obstacle::Wrong { message, help }) = chosen(&links, None) else { panic!("chose one") };
        assert_eq!(message, "/run/netns/a has several interfaces: eth0, eth1");
        assert!(help.contains("spec.interface"), "{help}");
        assert_eq!(chosen(&links, Some("eth1")), Ok("eth1"));
    }

    #[test]
    fn absent_interface_is_pending_and_says_what_is_there() {
        let links = [link(1, "lo", ""), link(2, "eth0", "veth"), link(3, "wg0", "wireguard")];
        let reason = "/run/netns/a has no interface eth7 (it has eth0 [veth], wg0 [wireguard])";
        assert_eq!(chosen(&links, Some("eth7")), Err(Obstacle::Pending(reason.to_owned())));
        let reason = "/run/netns/a has no veth interface";
        assert_eq!(chosen(&links[..1], None), Err(Obstacle::Pending(reason.to_owned())));
    }

    #[test]
    fn interface_of_another_kind_is_an_error() {
        let links = [link(2, "mv0", "macvlan")];
        let Err(Obstacle::Changed { message, .. }) = chosen(&links, Some("mv0")) else { panic!("took it") };
        assert_eq!(message, "mv0 in /run/netns/a is of the kind macvlan, not a veth");
    }
}
