//! What the documents say, checked and resolved: plain data, no files and no kernel in sight.
//!
//! Every format (Kubernetes, ClusterNetworkPolicy, Calico) becomes the same thing here: ordered
//! [`Tier`]s of ordered [`Policy`]s of ordered [`Rule`]s. The rules of evaluation, stated once:
//!
//! 1. For one direction of one endpoint, walk the tiers in order. In a tier, only the policies
//!    whose [`Policy::subject`] holds the endpoint and that have rules for that direction
//!    (`Some`, even if empty) count; audited policies do not. A tier without any is skipped.
//! 2. Walk those policies in order and their rules in order. The first rule that matches decides:
//!    `Allow`, `Deny`, or `Pass` (go on with the next tier). `Log` decides nothing: go on.
//! 3. At the end of a tier that was not skipped, [`Tier::default`] decides: `Deny`, or `Pass`.
//! 4. After the last tier, [`World::profile`] decides.
//!
//! A connection is allowed when the egress of its source (where that is an endpoint) and the
//! ingress of its destination (where that is one) both allow it.

pub mod explain;
mod judge;
pub mod probe;
pub mod row;
#[cfg(test)]
pub(crate) mod sample;
pub mod selector;
mod service;

use std::{collections::BTreeMap, fmt, net::IpAddr, ops::RangeInclusive, path::PathBuf, sync::Arc};

use ipnet::IpNet;
use serde::Serialize;

pub use judge::{
    Decision, EndMismatch, Judgement, Mismatch, Opening, Party, Question, Reason, Regime, Standing, Step, judge,
};
pub use netpol_common::wire::Protocol;
pub use selector::Expr;
pub use service::{
    EndpointSlice, MAX_WEIGHT, Pool, Service, ServiceAddress, ServicePort, SliceEndpoint, SlicePort, Target, Traffic,
    Weight,
};

/// Labels of an endpoint, a namespace or a network set.
pub type Labels = BTreeMap<String, String>;

/// Everything that PATH... says.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Labels of each namespace; each carries `kubernetes.io/metadata.name`. Holds every namespace
    /// that an endpoint, policy or set mentions, too.
    pub namespaces: BTreeMap<String, Labels>,
    pub endpoints: Vec<Endpoint>,
    pub sets: Vec<NetworkSet>,
    pub services: Vec<Service>,
    pub slices: Vec<EndpointSlice>,
    pub pools: Vec<Pool>,
    /// In the order in which they are asked.
    pub tiers: Vec<Tier>,
    /// What happens to a direction about which no tier decides.
    pub profile: Profile,
}

/// The verdict where no policy decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Kubernetes: what no policy selects is open.
    #[default]
    Allow,
    Deny,
}

/// `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A place in a document. Lines and columns count from 1; 0 means unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    pub file: Arc<str>,
    pub line: u32,
    pub column: u32,
}

impl fmt::Display for Origin {
    /// `file:line`, as verdicts carry it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A workload.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub name: ObjectName,
    pub labels: Labels,
    /// Declared addresses; discovery replaces them by the real ones.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<EndpointPort>,
    /// As a backend of services.
    pub weight: Weight,
    /// Where it is found. `None` for endpoints that only exist on paper (conformance data).
    pub attachment: Option<Attachment>,
    pub origin: Origin,
}

/// A port that an endpoint declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    pub name: Option<String>,
    pub port: u16,
    pub protocol: Protocol,
}

/// How to find an endpoint's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// A file that is a network namespace (`/run/netns/NAME`).
    pub netns: PathBuf,
    /// The interface inside it; `None`: its only veth.
    pub interface: Option<String>,
}

/// A named list of networks (Calico NetworkSet, GlobalNetworkSet).
#[derive(Clone, Debug)]
pub struct NetworkSet {
    /// `None` for a GlobalNetworkSet.
    pub namespace: Option<String>,
    pub name: String,
    pub labels: Labels,
    pub nets: Vec<IpNet>,
    pub origin: Origin,
}

#[derive(Clone, Debug)]
pub struct Tier {
    pub name: String,
    pub default: TierDefault,
    /// In the order in which they are asked.
    pub policies: Vec<Policy>,
}

/// What happens at the end of a tier that had a policy for the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierDefault {
    Deny,
    Pass,
}

/// The kinds of policy documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1`
    NetworkPolicy,
    /// `policy.networking.k8s.io`
    ClusterNetworkPolicy,
    /// `projectcalico.org/v3` NetworkPolicy
    CalicoNetworkPolicy,
    /// `projectcalico.org/v3`
    GlobalNetworkPolicy,
    /// `projectcalico.org/v3`, never enforced
    StagedNetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1`, the former names
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
}

impl PolicyKind {
    /// The document's `kind`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NetworkPolicy | Self::CalicoNetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::GlobalNetworkPolicy => "GlobalNetworkPolicy",
            Self::StagedNetworkPolicy => "StagedNetworkPolicy",
            Self::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
            Self::StagedKubernetesNetworkPolicy => "StagedKubernetesNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
        }
    }

    /// Whether a peer's selector also finds addresses by the network sets that hold them. Only
    /// Calico's own kinds know of sets: an empty `podSelector` means endpoints, never an address.
    pub const fn selects_sets(self) -> bool {
        matches!(
            self,
            Self::CalicoNetworkPolicy
                | Self::GlobalNetworkPolicy
                | Self::StagedNetworkPolicy
                | Self::StagedGlobalNetworkPolicy
        )
    }
}

#[derive(Clone, Debug)]
pub struct Policy {
    pub kind: PolicyKind,
    /// `None` for kinds without a namespace.
    pub namespace: Option<String>,
    pub name: String,
    /// Which endpoints it is about (network sets never are).
    pub subject: Selector,
    /// `Some` when the policy isolates that direction, even with no rule at all.
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
    /// Judged for information only, never enforced: Staged kinds, and the annotation `netpol.dev/audit`.
    pub audit: bool,
    pub origin: Origin,
}

impl Policy {
    /// `None`: this policy says nothing about the direction.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

impl World {
    /// The policies of all tiers, in the order in which they are asked.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.tiers.iter().flat_map(|tier| &tier.policies)
    }

    /// Makes every policy an audited one.
    pub fn audit_all(&mut self) {
        self.tiers.iter_mut().flat_map(|tier| &mut tier.policies).for_each(|policy| policy.audit = true);
    }
}

/// As seen from the endpoint that the policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Egress,
    Ingress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
    /// Leave the decision to the next tier.
    Pass,
    /// Decides nothing.
    Log,
}

/// One rule. A document's rule with several peers or protocols becomes several of these, next to
/// each other, with the same [`Rule::index`].
#[derive(Clone, Debug)]
pub struct Rule {
    pub action: Action,
    /// The rule's number in its document's list, from 0.
    pub index: u32,
    pub origin: Origin,
    pub matches: Match,
}

/// All conditions must hold; an absent one (`None`, empty) always does.
#[derive(Clone, Debug, Default)]
pub struct Match {
    pub version: Option<IpVersion>,
    pub protocol: Option<Protocol>,
    pub not_protocol: Option<Protocol>,
    /// ICMP or ICMPv6 (the protocol of the packet's own family).
    pub icmp: Option<IcmpMatch>,
    /// Matches every ICMP packet but these; the protocol must be ICMP.
    pub not_icmp: Option<IcmpMatch>,
    pub source: EntityMatch,
    pub destination: EntityMatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpVersion {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IcmpMatch {
    /// `None`: any type.
    pub kind: Option<u8>,
    pub code: Option<u8>,
}

/// One end of the connection. All present conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EntityMatch {
    /// The end is an endpoint, or an address in a network set, that this selects.
    pub selector: Option<Selector>,
    /// The end is not one that this selects (an address that belongs to nothing never is).
    pub not_selector: Option<Selector>,
    /// The end's address is in one of these. `Some(vec![])` matches nothing.
    pub nets: Option<Vec<IpNet>>,
    pub not_nets: Vec<IpNet>,
    /// `Some(vec![])` matches nothing. Only TCP, UDP and SCTP (and UDP-Lite) have ports: with
    /// `Some`, other protocols never match.
    pub ports: Option<Vec<PortMatch>>,
    /// The port is none of these.
    pub not_ports: Vec<PortMatch>,
}

impl EntityMatch {
    /// Holds for every peer, whatever its port.
    pub fn any_peer(&self) -> bool {
        self.selector.is_none() && self.not_selector.is_none() && self.nets.is_none() && self.not_nets.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortMatch {
    Range(RangeInclusive<u16>),
    /// A port of that name, for the rule's protocol, of the endpoint at that end. An end that is no
    /// endpoint, or declares no such port, never matches.
    Named(String),
}

/// Chooses endpoints and network sets by namespace and labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Selector {
    pub scope: Scope,
    pub labels: Expr,
}

/// Which namespaces a [`Selector`] looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every namespace, and what has none.
    Any,
    /// This one.
    Namespace(String),
    /// Those whose labels the expression matches. What has no namespace is matched like an empty
    /// set of labels (Calico: `namespaceSelector: "x != 'y'"` holds for global network sets).
    Matching(Expr),
    /// Only what has no namespace (Calico's `global()`).
    Global,
}

impl Selector {
    /// Every endpoint of every namespace.
    pub const EVERYTHING: Self = Self { scope: Scope::Any, labels: Expr::All };

    /// Whether this selects an object with these labels in that namespace (`None`: in none).
    pub fn selects(&self, world: &World, namespace: Option<&str>, labels: &Labels) -> bool {
        let in_scope = match &self.scope {
            Scope::Any => true,
            Scope::Namespace(name) => namespace == Some(name),
            Scope::Matching(expr) => match namespace {
                Some(name) => world.namespaces.get(name).is_some_and(|labels| expr.matches(labels)),
                None => expr.matches(&Labels::new()),
            },
            Scope::Global => namespace.is_none(),
        };
        in_scope && self.labels.matches(labels)
    }
}
