//! What is legal and probably not meant.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::Diagnostic;
use crate::model::{Action, EntityMatch, Labels, Origin, Policy, PortMatch, Protocol, Rule, Selector, World};

/// Warnings about what `world` says. `namespaces` are those that have a document or an endpoint.
pub fn lint(world: &World, namespaces: &BTreeSet<String>) -> Vec<Diagnostic> {
    let mut lint = Lint { world, chosen: HashMap::new(), warnings: Vec::new() };
    for policy in world.tiers.iter().flat_map(|tier| &tier.policies) {
        lint.policy(policy, namespaces);
    }
    lint.warnings
}

struct Lint<'a> {
    world: &'a World,
    /// Whether anything is chosen by a selector: many rules share few selectors.
    chosen: HashMap<&'a Selector, bool>,
    warnings: Vec<Diagnostic>,
}

impl<'a> Lint<'a> {
    fn warn(&mut self, origin: &Origin, message: String, help: &str) {
        self.warnings.push(Diagnostic { origin: origin.clone(), message, help: Some(help.to_owned()) });
    }

    fn policy(&mut self, policy: &'a Policy, namespaces: &BTreeSet<String>) {
        // Documents without any endpoint are policies alone: nothing can be said about whom they select.
        let has_endpoints = !self.world.endpoints.is_empty();
        match &policy.namespace {
            Some(namespace) if !namespaces.is_empty() && !namespaces.contains(namespace) => {
                let message = format!("`{}` is in namespace `{namespace}`, where nothing is", policy.name);
                self.warn(&policy.origin, message, "no Namespace and no Endpoint mentions it; is it spelt right?");
            }
            _ if has_endpoints && !self.world_chooses_endpoint(&policy.subject) => {
                let message = format!("`{}` selects no endpoint", policy.name);
                self.warn(&policy.origin, message, "it has no effect until an endpoint has such labels");
            }
            _ => {}
        }
        let mut seen = HashSet::new();
        for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
            if rule.action == Action::Log && seen.insert((&rule.origin, None)) {
                let help = "the drops and flows of every rule are shown by `netpol flows`";
                self.warn(&rule.origin, "`Log` has no effect yet".to_owned(), help);
            }
            if has_endpoints {
                self.rule(rule, &mut seen);
            }
        }
    }

    fn rule(&mut self, rule: &'a Rule, seen: &mut HashSet<(&'a Origin, Option<&'a Selector>)>) {
        for (end, name) in [(&rule.matches.source, "source"), (&rule.matches.destination, "destination")] {
            if let Some(selector) = &end.selector
                && !self.chooses(selector)
                && seen.insert((&rule.origin, Some(selector)))
            {
                let message = format!("nothing that is loaded is selected as the rule's {name}");
                self.warn(&rule.origin, message, "neither an endpoint nor a network set has such labels");
            }
            self.ports(rule, end);
        }
    }

    fn ports(&mut self, rule: &Rule, end: &EntityMatch) {
        for port in end.ports.iter().flatten().chain(&end.not_ports) {
            let PortMatch::Named(name) = port else { continue };
            if !self.declares(name, rule.matches.protocol) {
                let message = format!("no endpoint declares a port named `{name}`");
                self.warn(
                    &rule.origin,
                    message,
                    "a rule about it never matches; name it in `spec.ports` of an Endpoint",
                );
            }
        }
    }

    fn declares(&self, name: &str, protocol: Option<Protocol>) -> bool {
        self.world
            .endpoints
            .iter()
            .flat_map(|endpoint| &endpoint.ports)
            .any(|port| port.name.as_deref() == Some(name) && protocol.is_none_or(|protocol| protocol == port.protocol))
    }

    fn world_chooses_endpoint(&self, selector: &Selector) -> bool {
        let selects = |namespace: &str, labels: &Labels| selector.selects(self.world, Some(namespace), labels);
        self.world.endpoints.iter().any(|endpoint| selects(&endpoint.name.namespace, &endpoint.labels))
    }

    fn chooses(&mut self, selector: &'a Selector) -> bool {
        if let Some(known) = self.chosen.get(selector) {
            return *known;
        }
        let world = self.world;
        let chooses = self.world_chooses_endpoint(selector)
            || world.sets.iter().any(|set| selector.selects(world, set.namespace.as_deref(), &set.labels));
        self.chosen.insert(selector, chooses);
        chooses
    }
}
