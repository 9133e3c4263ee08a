//! Policies from what was seen: the least that allows these connections, by labels.
//!
//! | file | one idea |
//! |---|---|
//! | `workload` | replicas are one workload, chosen by as few labels as possible |
//! | `rules` | peers that need the same share a rule |
//! | `kubernetes`, `calico` | the documents |
//!
//! Every workload gets one policy that isolates both its directions, so what was not seen is denied. A
//! connection between two workloads needs a rule at both.

mod calico;
mod kubernetes;
mod rules;
mod workload;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
};

use crate::{
    model::{Direction, ObjectName, Opening, Protocol, World},
    observe::Speaker,
};
use workload::Workload;

/// Who spoke to whom, and how the connection began.
#[derive(Clone, Debug)]
pub struct Seen {
    pub from: Speaker,
    pub to: Speaker,
    pub opening: Opening,
}

/// What a connection was about: what rules can ask besides the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Service {
    /// In host byte order.
    Port {
        protocol: Protocol,
        port: u16,
    },
    Icmp {
        protocol: Protocol,
        kind: u8,
        code: u8,
    },
    Other(Protocol),
}

impl From<Opening> for Service {
    fn from(Opening { protocol, destination_port, icmp, .. }: Opening) -> Self {
        match icmp {
            Some((kind, code)) => Self::Icmp { protocol, kind, code },
            None if protocol.has_ports() => Self::Port { protocol, port: destination_port },
            None => Self::Other(protocol),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Port { protocol, port } => write!(f, "{port}/{}", protocol.to_string().to_lowercase()),
            Self::Icmp { protocol, kind, code } => {
                write!(f, "{}/{kind}/{code}", protocol.to_string().to_lowercase())
            }
            Self::Other(protocol) => write!(f, "protocol {}", protocol.0),
        }
    }
}

/// Whom a workload spoke with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Peer {
    /// By its index in [`Suggestion::workloads`].
    Workload(usize),
    Address(IpAddr),
}

/// What a workload did in one direction.
type Needs = BTreeMap<Peer, BTreeSet<Service>>;

/// The policies that are suggested, before they are written in one of the formats.
#[derive(Clone, Debug)]
pub struct Suggestion {
    workloads: Vec<Workload>,
    /// By workload.
    egress: Vec<Needs>,
    ingress: Vec<Needs>,
    /// What the host itself asked of a workload: it needs no rule.
    host: BTreeSet<(usize, Service)>,
}

/// Which documents to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `networking.k8s.io/v1` NetworkPolicy.
    Kubernetes,
    /// `projectcalico.org/v3` NetworkPolicy.
    Calico,
}

/// What the writer of YAML says.
pub type Unwritable = serde_saphyr::ser_error::Error;

fn yaml(document: &impl serde::Serialize) -> Result<String, Unwritable> {
    // a long selector stays on its line
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(document, options)
}

impl Suggestion {
    /// What allows `seen` between the endpoints of `world`, whose policies do not matter.
    pub fn new(world: &World, seen: &[Seen]) -> Self {
        let workloads = workload::group(&world.endpoints);
        let members = workloads.iter().enumerate();
        let members = members.flat_map(|(index, workload)| workload.members.iter().map(move |name| (name, index)));
        let of: HashMap<&ObjectName, usize> = members.collect();
        let peer = |speaker: &Speaker| match speaker {
            Speaker::Endpoint { name, address } => of.get(name).map_or(Peer::Address(*address), |w| Peer::Workload(*w)),
            Speaker::Host(address) | Speaker::Outside(address) => Peer::Address(*address),
        };
        let (mut egress, mut ingress) = (vec![Needs::new(); workloads.len()], vec![Needs::new(); workloads.len()]);
        let mut host = BTreeSet::new();
        for Seen { from, to, opening } in seen {
            let (source, destination, service) = (peer(from), peer(to), Service::from(*opening));
            if let Peer::Workload(workload) = source {
                egress[workload].entry(destination).or_default().insert(service);
            }
            match (destination, from) {
                (Peer::Workload(workload), Speaker::Host(_)) => _ = host.insert((workload, service)),
                (Peer::Workload(workload), _) => _ = ingress[workload].entry(source).or_default().insert(service),
                (Peer::Address(_), _) => {}
            }
        }
        Self { workloads, egress, ingress, host }
    }

    /// The documents, separated by `---`, with what they cannot say as comments.
    ///
    /// # Errors
    /// None that is known.
    pub fn write(&self, format: Format) -> Result<String, Unwritable> {
        let names = self.names(format);
        let mut documents = Vec::new();
        for (index, workload) in self.workloads.iter().enumerate() {
            let (body, unsaid) = match format {
                Format::Kubernetes => kubernetes::write(self, index, &names[index])?,
                Format::Calico => calico::write(self, index, &names[index])?,
            };
            let mut text = self.comment(index, workload);
            unsaid.iter().for_each(|line| text.push_str(&format!("# Not expressible here: {line}\n")));
            documents.push(text + &body);
        }
        Ok(documents.join("---\n"))
    }

    fn comment(&self, index: usize, workload: &Workload) -> String {
        let mut text = match workload.members.as_slice() {
            [_] => String::new(),
            members => {
                let names: Vec<_> = members.iter().map(ToString::to_string).collect();
                format!("# {}\n", names.join(", "))
            }
        };
        let host = self.host.iter().filter(|(workload, _)| *workload == index);
        let host: Vec<_> = host.map(|(_, service)| service.to_string()).collect();
        if !host.is_empty() {
            text.push_str(&format!(
                "# The host spoke to {}, too: it is not policed, and needs no rule.\n",
                host.join(" ")
            ));
        }
        text
    }

    /// A name for each policy: that of the first of the workload's endpoints. Calico's have one dot at most.
    fn names(&self, format: Format) -> Vec<String> {
        let mut taken = BTreeSet::new();
        let name = |workload: &Workload| {
            let first = &workload.members[0].name;
            let base = if format == Format::Calico { first.replace('.', "-") } else { first.clone() };
            let numbered = (2..).map(|number| format!("{base}-{number}"));
            let mut all = std::iter::once(base.clone()).chain(numbered);
            let free = all.find(|name| taken.insert((workload.namespace.clone(), name.clone())));
            free.unwrap_or(base)
        };
        self.workloads.iter().map(name).collect()
    }

    fn needs(&self, workload: usize, direction: Direction) -> &Needs {
        match direction {
            Direction::Egress => &self.egress[workload],
            Direction::Ingress => &self.ingress[workload],
        }
    }

    /// What a workload needs and a format has no words for.
    fn unsaid(&self, index: usize, is_said: &dyn Fn(Service) -> bool) -> Vec<String> {
        let unsaid = |direction| {
            let needs = self.needs(index, direction).iter();
            let each = needs.flat_map(|(peer, services)| services.iter().map(move |service| (*peer, *service)));
            each.filter(|(_, service)| !is_said(*service)).map(move |(p, s)| self.describe(direction, p, s))
        };
        unsaid(Direction::Ingress).chain(unsaid(Direction::Egress)).collect()
    }

    /// `icmp/8/0 from shop/web`: for what a format has no words for.
    fn describe(&self, direction: Direction, peer: Peer, service: Service) -> String {
        let word = match direction {
            Direction::Egress => "to",
            Direction::Ingress => "from",
        };
        match peer {
            Peer::Workload(index) => format!("{service} {word} {}", self.workloads[index].members[0]),
            Peer::Address(address) => format!("{service} {word} {address}"),
        }
    }
}

#[cfg(test)]
mod tests;
