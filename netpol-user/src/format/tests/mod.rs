//! Documents in; worlds, or exact positions, out.

mod audit;
mod calico;
mod cluster;
mod documents;
mod hostile;
mod kubernetes;
mod selectors;
mod services;

use super::{Diagnostic, Invalid, Loaded, Source, parse};
use crate::model::{Match, Opening, Party, Policy, PolicyKind, Protocol, Rule, World, judge};

fn source(name: &str, text: &str) -> Source {
    Source { name: name.to_owned(), text: text.as_bytes().to_vec() }
}

fn load(text: &str) -> Result<Loaded, Invalid> {
    parse(vec![source("t.yaml", text)])
}

/// The world of documents that must be right.
fn world(text: &str) -> World {
    match load(text) {
        Ok(loaded) => loaded.world,
        Err(invalid) => panic!("{:#?}", show(&invalid.errors)),
    }
}

fn show(list: &[Diagnostic]) -> Vec<String> {
    let one = |Diagnostic { origin, message, help }: &Diagnostic| {
        let help = help.as_ref().map(|help| format!(" | {help}")).unwrap_or_default();
        format!("{}:{} {message}{help}", origin.line, origin.column)
    };
    list.iter().map(one).collect()
}

/// `line:column message | help` of every error.
fn errors(text: &str) -> Vec<String> {
    match load(text) {
        Ok(_) => Vec::new(),
        Err(invalid) => show(&invalid.errors),
    }
}

/// `line:column message | help` of every warning.
fn warnings(text: &str) -> Vec<String> {
    match load(text) {
        Ok(loaded) => show(&loaded.warnings),
        Err(invalid) => panic!("{:#?}", show(&invalid.errors)),
    }
}

/// `line:column message` of the only error.
fn only_error(text: &str) -> String {
    let errors = errors(text);
    let [error] = errors.as_slice() else { panic!("one error expected: {errors:#?}") };
    error.split(" | ").next().unwrap_or_default().to_owned()
}

fn only_policy(world: &World) -> &Policy {
    let [tier] = world.tiers.as_slice() else { panic!("one tier expected") };
    let [policy] = tier.policies.as_slice() else { panic!("one policy expected") };
    policy
}

fn ingress(world: &World) -> &[Rule] {
    only_policy(world).ingress.as_deref().expect("ingress is isolated")
}

fn only_ingress(world: &World) -> &Match {
    let [rule] = ingress(world) else { panic!("one rule expected") };
    &rule.matches
}

/// Whether the endpoint `from` (`namespace/name`) may open TCP to `port` of `to`.
fn allowed(world: &World, from: &str, to: &str, port: u16) -> bool {
    let party = |name: &str| {
        let index = world.endpoints.iter().position(|endpoint| endpoint.name.to_string() == name);
        let index = index.unwrap_or_else(|| panic!("no endpoint {name}"));
        Party::Endpoint { index, address: world.endpoints[index].addresses.first().copied() }
    };
    let opening = Opening { protocol: Protocol::TCP, source_port: 40_000, destination_port: port, icmp: None };
    judge(world, party(from), party(to), opening).allowed()
}

/// An Endpoint document, with `app: NAME` as its label.
fn endpoint(namespace: &str, name: &str) -> String {
    format!(
        "---\napiVersion: netpol.dev/v1\nkind: Endpoint\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\nspec: {{netns: {name}}}\n"
    )
}

/// A Kubernetes policy of namespace `x` with this spec in flow style.
fn network_policy(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec: {spec}\n"
    )
}

/// A Calico policy of namespace `x` with this spec in flow style.
fn calico_policy(spec: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec: {spec}\n"
    )
}

/// A GlobalNetworkPolicy with this spec in flow style.
fn global_policy(spec: &str) -> String {
    format!("apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n")
}

/// A ClusterNetworkPolicy about every namespace with these fields in flow style.
fn cluster_policy(fields: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\n\
         spec: {{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, {fields}}}\n"
    )
}

#[test]
fn every_kind_of_policy_says_what_it_is() {
    let staged = "apiVersion: projectcalico.org/v3\nkind: StagedKubernetesNetworkPolicy\n\
                  metadata: {name: s, namespace: x}\nspec: {podSelector: {}}\n";
    let text = [network_policy("{}"), global_policy("{}"), calico_policy("{}"), cluster_policy(""), staged.to_owned()];
    let world = world(&text.join("---\n"));
    let kinds: Vec<PolicyKind> = world.tiers.iter().flat_map(|tier| &tier.policies).map(|policy| policy.kind).collect();
    assert_eq!(
        kinds,
        [
            PolicyKind::ClusterNetworkPolicy,
            PolicyKind::NetworkPolicy,
            PolicyKind::StagedKubernetesNetworkPolicy,
            PolicyKind::GlobalNetworkPolicy,
            PolicyKind::CalicoNetworkPolicy
        ]
    );
}
