//! From sources to objects: finds the documents, their kind and name, and hands each to the reader
//! of its kind. What the readers make of them is [`Collected`] here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    Diagnostic, Invalid, Loaded, Source, calico, cluster, endpoint,
    files::Found,
    kubernetes, lint,
    node::{self, Node, Pos, Value},
    pool, published,
    reader::{Fields, Report, Text, choose, did_you_mean, labels, nearest},
    service, slice, tiers,
    validate::Name,
};
use crate::model::{Endpoint, EndpointSlice, Labels, NetworkSet, Origin, Pool, Service, World};

/// The label that every namespace carries.
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// The annotation that makes any policy an audited one.
const AUDIT: &str = "netpol.dev/audit";
/// Our own annotations: of others nothing is expected.
const OWN: &str = "netpol.dev/";
/// A source of more bytes than this is refused.
pub const MAX_BYTES: usize = 64 << 20;

/// Everything that the documents say, before it is put in order.
#[derive(Default)]
pub struct Collected {
    pub namespaces: BTreeMap<String, Labels>,
    /// Namespaces that have a document or an endpoint.
    pub known_namespaces: BTreeSet<String>,
    pub endpoints: Vec<Endpoint>,
    pub sets: Vec<NetworkSet>,
    pub policies: Vec<tiers::Ranked>,
    pub tiers: Vec<tiers::TierDocument>,
    pub services: Vec<Service>,
    pub slices: Vec<EndpointSlice>,
    pub pools: Vec<Pool>,
    pub policy_documents: usize,
    documents: usize,
    objects: HashMap<(&'static str, &'static str, String, String), Origin>,
}

impl Collected {
    /// Makes sure that the namespace exists, and returns its labels.
    pub fn namespace(&mut self, name: &str) -> &mut Labels {
        self.namespaces
            .entry(name.to_owned())
            .or_insert_with(|| Labels::from([(NAMESPACE_NAME.to_owned(), name.to_owned())]))
    }
}

/// One object of a document.
pub struct Object<'a> {
    pub report: &'a Report,
    pub kind: &'static Kind,
    pub at: Pos,
    pub name: Text<'a>,
    /// `None` for kinds without one.
    pub namespace: Option<String>,
    pub labels: Labels,
    /// The annotation [`AUDIT`] of a policy: it is judged, and not enforced.
    pub audit: bool,
    pub spec: Option<Fields<'a>>,
    /// What stands beside `metadata` and `spec`.
    pub body: Fields<'a>,
    pub annotations: Option<&'a Node>,
}

impl<'a> Object<'a> {
    pub fn origin(&self) -> Origin {
        self.report.origin(self.at)
    }

    pub fn name(&self) -> String {
        self.name.text.to_owned()
    }

    /// The `spec`, which is reported when it is missing.
    pub fn required_spec(&mut self) -> Option<Fields<'a>> {
        let spec = self.spec.take();
        if spec.is_none() {
            self.report.error(self.at, "`spec` is missing");
        }
        spec
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Namespaced,
    Cluster,
}
use Place::{Cluster, Namespaced};

/// A kind of document.
pub struct Kind {
    pub api: &'static str,
    pub kind: &'static str,
    place: Place,
    /// `None`: the reader checks the name itself.
    name: Option<Name>,
    read: fn(Object<'_>, &mut Collected),
}

const CNP: &str = "policy.networking.k8s.io/v1alpha2";
const ANP: &str = "policy.networking.k8s.io/v1alpha1";
const CALICO: &str = "projectcalico.org/v3";

#[rustfmt::skip]
static KINDS: &[Kind] = &[
    Kind { api: "netpol.dev/v1", kind: "Endpoint", place: Namespaced, name: Some(Name::Subdomain), read: endpoint::read },
    Kind { api: "v1", kind: "Namespace", place: Cluster, name: Some(Name::Label), read: kubernetes::read_namespace },
    Kind { api: "v1", kind: "Service", place: Namespaced, name: Some(Name::Label), read: service::read },
    Kind { api: "discovery.k8s.io/v1", kind: "EndpointSlice", place: Namespaced, name: Some(Name::Subdomain), read: slice::read },
    Kind { api: "networking.k8s.io/v1", kind: "NetworkPolicy", place: Namespaced, name: Some(Name::Subdomain), read: kubernetes::read_policy },
    Kind { api: CNP, kind: "ClusterNetworkPolicy", place: Cluster, name: Some(Name::Subdomain), read: cluster::read_policy },
    Kind { api: ANP, kind: "AdminNetworkPolicy", place: Cluster, name: Some(Name::Subdomain), read: cluster::read_former },
    Kind { api: ANP, kind: "BaselineAdminNetworkPolicy", place: Cluster, name: Some(Name::Subdomain), read: cluster::read_former },
    Kind { api: CALICO, kind: "NetworkPolicy", place: Namespaced, name: None, read: calico::read_policy },
    Kind { api: CALICO, kind: "GlobalNetworkPolicy", place: Cluster, name: None, read: calico::read_policy },
    Kind { api: CALICO, kind: "StagedNetworkPolicy", place: Namespaced, name: None, read: calico::read_policy },
    Kind { api: CALICO, kind: "StagedGlobalNetworkPolicy", place: Cluster, name: None, read: calico::read_policy },
    Kind { api: CALICO, kind: "StagedKubernetesNetworkPolicy", place: Namespaced, name: Some(Name::Subdomain), read: kubernetes::read_policy },
    Kind { api: CALICO, kind: "Tier", place: Cluster, name: Some(Name::Label), read: calico::read_tier },
    Kind { api: CALICO, kind: "NetworkSet", place: Namespaced, name: Some(Name::Subdomain), read: calico::read_set },
    Kind { api: CALICO, kind: "GlobalNetworkSet", place: Cluster, name: Some(Name::Subdomain), read: calico::read_set },
    Kind { api: CALICO, kind: "IPPool", place: Cluster, name: Some(Name::Subdomain), read: pool::read },
];

/// Reads all sources.
pub fn load(found: Found) -> Result<Loaded, Invalid> {
    let Found { sources, paths, mut errors } = found;
    let mut collected = Collected::default();
    let mut warnings = Vec::new();
    // Documents and errors before each source, and at the end.
    let mut marks = Vec::with_capacity(sources.len() + 1);
    for source in &sources {
        marks.push((collected.documents, errors.len()));
        let report = Report::new(source.name.as_str().into());
        read_source(source, &report, &mut collected);
        let (wrong, doubtful) = report.into_parts();
        errors.extend(wrong);
        warnings.extend(doubtful);
    }
    marks.push((collected.documents, errors.len()));
    let without = paths.into_iter().filter(|path| !path.is_empty() && marks[path.start] == marks[path.end]);
    errors.extend(without.map(|path| empty(&sources[path.start])));
    let (documents, policies) = (collected.documents, collected.policy_documents);
    let known_namespaces = std::mem::take(&mut collected.known_namespaces);
    let world = assemble(collected, &mut errors);
    errors.extend(published::conflicts(&world));
    if errors.is_empty() {
        warnings.extend(lint::lint(&world, &known_namespaces));
    }
    for list in [&mut errors, &mut warnings] {
        list.sort_by(|a, b| place(a).cmp(&place(b)));
    }
    if !errors.is_empty() {
        return Err(Invalid { errors, warnings, sources });
    }
    Ok(Loaded { world, warnings, policies, documents, sources })
}

fn place(diagnostic: &Diagnostic) -> (&str, u32, u32) {
    let Origin { file, line, column } = &diagnostic.origin;
    (file, *line, *column)
}

/// A PATH without any document, of which `first` is the first file.
fn empty(first: &Source) -> Diagnostic {
    let file: Arc<str> = first.name.as_str().into();
    Diagnostic {
        origin: Origin { file, line: 1, column: 1 },
        message: "no document here".to_owned(),
        help: Some("a document begins with `apiVersion:` and `kind:`".to_owned()),
    }
}

fn assemble(mut collected: Collected, errors: &mut Vec<Diagnostic>) -> World {
    let policies = std::mem::take(&mut collected.policies);
    for namespace in policies.iter().filter_map(|ranked| ranked.policy.namespace.clone()).collect::<Vec<_>>() {
        collected.namespace(&namespace);
    }
    for namespace in collected.sets.iter().filter_map(|set| set.namespace.clone()).collect::<Vec<_>>() {
        collected.namespace(&namespace);
    }
    let Collected { namespaces, endpoints, sets, tiers, services, slices, pools, .. } = collected;
    let tiers = tiers::order(policies, tiers, errors);
    let mut world = World { namespaces, endpoints, sets, services, slices, pools, tiers, ..World::default() };
    calico::derive_labels(&mut world);
    world
}

fn read_source(source: &Source, report: &Report, collected: &mut Collected) {
    let start = Pos { line: 1, column: 1 };
    if source.text.len() > MAX_BYTES {
        let message =
            format!("{} MiB are more than the {} MiB that a file may have", source.text.len() >> 20, MAX_BYTES >> 20);
        report.error_help(start, message, "split it into several files");
        return;
    }
    let text = match std::str::from_utf8(&source.text) {
        Ok(text) => text,
        Err(error) => {
            let (at, byte) = bad_byte(&source.text, error.valid_up_to());
            report.error_help(at, format!("not UTF-8: the byte 0x{byte:02x}"), "save the file as UTF-8");
            return;
        }
    };
    let chunks = node::documents(text);
    if let Some(over) = chunks.get(node::MAX_DOCUMENTS) {
        let at = Pos { line: over.skipped + 1, column: 1 };
        let message = format!("more than {} documents in one file", node::MAX_DOCUMENTS);
        report.error_help(at, message, "split it into several files");
        return;
    }
    for chunk in chunks {
        match node::parse(chunk) {
            Ok(Some(root)) => read_document(&root, report, collected),
            Ok(None) => {}
            Err(malformed) => {
                for node::Malformed { at, message, help } in malformed {
                    match help {
                        Some(help) => report.error_help(at, message, help),
                        None => report.error(at, message),
                    }
                }
            }
        }
    }
}

/// The position of the first byte that is no UTF-8, and the byte.
fn bad_byte(text: &[u8], valid: usize) -> (Pos, u8) {
    let before = String::from_utf8_lossy(&text[..valid]);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (Pos { line: line as u32, column: column as u32 }, text[valid])
}

fn read_document(root: &Node, report: &Report, collected: &mut Collected) {
    let is_list = |entries: &[(node::Key, Node)]| {
        let is = |key: &str, want: &str| {
            entries.iter().any(|(k, node)| k.text == key && matches!(&node.value, Value::Scalar(s) if s.text == want))
        };
        is("apiVersion", "v1") && is("kind", "List")
    };
    match &root.value {
        Value::Map(entries) if is_list(entries) => {
            let Some(mut fields) = report.fields(root, "document") else { return };
            fields.ignore(&["apiVersion", "kind", "metadata"]);
            for item in fields.list("items").unwrap_or_default() {
                read_object(item, report, collected);
            }
        }
        Value::Map(_) => read_object(root, report, collected),
        _ => {
            let message =
                format!("a document is a map that begins with `apiVersion:` and `kind:`, found {}", root.describe());
            report.error(root.at, message);
        }
    }
}

fn read_object(root: &Node, report: &Report, collected: &mut Collected) {
    collected.documents += 1;
    let Some(mut fields) = report.fields(root, "document") else { return };
    let api = fields.text("apiVersion");
    let kind = fields.text("kind");
    let (api, kind) = (fields.require("apiVersion", api), fields.require("kind", kind));
    let (Some(api), Some(kind)) = (api, kind) else { return fields.abandon() };
    let Some(kind) = find_kind(api, kind, report) else { return fields.abandon() };
    fields.ignore(&["status"]);
    let spec = fields.node("spec");
    let metadata = fields.fields("metadata");
    let Some(metadata) = fields.require("metadata", metadata) else { return };
    let Some(Metadata { name, namespace, labels, annotations }) = read_metadata(metadata, kind, report) else { return };
    let spec = spec.and_then(|node| report.fields(node, "spec"));
    let audit = annotations.is_some_and(|annotations| is_audited(annotations, kind, report));
    let object = Object { report, kind, at: root.at, name, namespace, labels, audit, spec, body: fields, annotations };
    collected.claim(&object);
    (kind.read)(object, collected);
}

impl Collected {
    /// Reports a second object of the same kind, namespace and name.
    fn claim(&mut self, object: &Object<'_>) {
        let Object { kind, name, namespace, .. } = object;
        let group = kind.api.split_once('/').map_or("", |(group, _)| group);
        let key = (group, kind.kind, namespace.clone().unwrap_or_default(), name.text.to_owned());
        if let Some(first) = self.objects.get(&key) {
            let full = namespace.iter().map(String::as_str).chain([name.text]).collect::<Vec<_>>().join("/");
            let message = format!("there are two of {} `{full}`", kind.kind);
            let help = format!("the first is at {}:{}; rename or remove one of them", first, first.column);
            object.report.error_help(name.at, message, help);
            return;
        }
        self.objects.insert(key, object.report.origin(name.at));
    }
}

fn find_kind(api: Text<'_>, kind: Text<'_>, report: &Report) -> Option<&'static Kind> {
    let found = KINDS.iter().find(|known| known.api == api.text && known.kind == kind.text);
    if found.is_some() {
        return found;
    }
    let apis: Vec<&str> = KINDS.iter().filter(|known| known.kind == kind.text).map(|known| known.api).collect();
    let kinds: Vec<&str> = KINDS.iter().filter(|known| known.api == api.text).map(|known| known.kind).collect();
    if !apis.is_empty() {
        let message = format!("`{}` of `{}` is not known", kind.text, node::shorten(api.text));
        let help = match nearest(api.text, &apis) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("`{}` belongs to `{}`", kind.text, apis.join("` or `")),
        };
        report.error_help(api.at, message, help);
    } else if !kinds.is_empty() {
        let message = format!("`{}` has no kind `{}`", api.text, node::shorten(kind.text));
        report.error_help(kind.at, message, did_you_mean(kind.text, &kinds));
    } else {
        let all: Vec<String> = KINDS.iter().map(|known| format!("{} {}", known.api, known.kind)).collect();
        let found = format!("{} {}", api.text, kind.text);
        let message = format!("`{}` is no kind of document that netpol knows", node::shorten(&found));
        report.error_help(kind.at, message, did_you_mean(&found, &all));
    }
    None
}

struct Metadata<'a> {
    name: Text<'a>,
    namespace: Option<String>,
    labels: Labels,
    annotations: Option<&'a Node>,
}

/// What a server writes into `metadata`.
const SERVERS: [&str; 9] = [
    "creationTimestamp",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "uid",
];

fn read_metadata<'a>(mut metadata: Fields<'a>, kind: &'static Kind, report: &'a Report) -> Option<Metadata<'a>> {
    metadata.ignore(&SERVERS);
    let annotations = metadata.node("annotations");
    let labels = labels(&mut metadata, "labels");
    let namespace = metadata.text("namespace");
    let namespace = match (kind.place, namespace) {
        (Namespaced, Some(namespace)) => {
            Name::Label.check(report, namespace);
            Some(namespace.text.to_owned())
        }
        (Namespaced, None) => Some("default".to_owned()),
        (Cluster, Some(namespace)) => {
            report.error_help(namespace.at, format!("a {} has no namespace", kind.kind), "leave `namespace` out");
            None
        }
        (Cluster, None) => None,
    };
    let name = metadata.text("name");
    let name = metadata.require("name", name)?;
    if let Some(rule) = kind.name {
        rule.check(report, name);
    }
    Some(Metadata { name, namespace, labels, annotations })
}

/// Reads our own annotations, and none of the others.
fn is_audited(annotations: &Node, kind: &Kind, report: &Report) -> bool {
    let Value::Map(entries) = &annotations.value else { return false };
    let is_policy = kind.kind.ends_with("Policy");
    let mut audit = false;
    for (key, value) in entries.iter().filter(|(key, _)| key.text.starts_with(OWN)) {
        match (key.text.as_str(), is_policy) {
            (AUDIT, true) => {
                let word = report.text(value, AUDIT);
                let word = word.and_then(|word| choose(report, word, AUDIT, &[("true", true), ("false", false)]));
                audit = word.unwrap_or_default();
            }
            (AUDIT, false) => {
                let message = format!("`{AUDIT}` has no effect on a document of kind `{}`", kind.kind);
                report.warning(key.at, message, "it belongs to a policy");
            }
            (other, true) => {
                let message = format!("unknown annotation `{}`", node::shorten(other));
                report.warning(key.at, message, did_you_mean(other, &[AUDIT]));
            }
            (_, false) => {}
        }
    }
    audit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_names_every_kind() {
        let docs = include_str!("../../../docs/policies.md");
        for Kind { api, kind, .. } in KINDS {
            let line =
                docs.lines().find(|line| line.contains(&format!("`{api}`")) && line.contains(&format!("`{kind}`")));
            assert!(line.is_some(), "{api} {kind}");
        }
    }
}
