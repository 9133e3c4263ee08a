//! What is legal and probably not meant.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::Diagnostic;
use crate::model::{
    Action, Endpoint, EntityMatch, ObjectName, Origin, Policy, PortMatch, Protocol, Rule, Selector, Service,
    ServicePort, Target, World,
};

/// Warnings about what `world` says. `namespaces` are those that have a document or an endpoint.
pub fn lint(world: &World, namespaces: &BTreeSet<String>) -> Vec<Diagnostic> {
    let ports = world.endpoints.iter().flat_map(|endpoint| &endpoint.ports);
    let declared = ports.filter_map(|port| Some((port.name.as_deref()?, port.protocol))).collect();
    let mut lint = Lint { world, declared, chosen: HashMap::new(), left: MOST_LOOKS, warnings: Vec::new() };
    for policy in world.tiers.iter().flat_map(|tier| &tier.policies) {
        lint.policy(policy, namespaces);
    }
    // documents without any endpoint are services alone, as with policies
    if !world.endpoints.is_empty() {
        world.services.iter().for_each(|service| lint.service(service));
    }
    lint.slices();
    lint.warnings
}

/// Selectors times endpoints: more would take long, and nothing here is worth waiting for.
const MOST_LOOKS: usize = 20_000_000;

struct Lint<'a> {
    world: &'a World,
    /// Names of ports.
    declared: HashSet<(&'a str, Protocol)>,
    /// Looks at an endpoint that may still be taken.
    left: usize,
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
            _ if has_endpoints && !self.chooses_endpoint(&policy.subject) => {
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

    fn service(&mut self, service: &'a Service) {
        let Some(selector) = &service.selector else { return };
        if !self.chooses_endpoint(selector) {
            let message = format!("service `{}` selects no endpoint", service.name);
            let help = "whoever calls it is refused until an endpoint of its namespace has such labels";
            return self.warn(&service.origin, message, help);
        }
        for port in &service.ports {
            let Target::Named(name) = &port.target else { continue };
            let world = self.world;
            let Some(left) = self.left.checked_sub(world.endpoints.len()) else { return };
            self.left = left;
            let declares = |endpoint: &Endpoint| {
                let mut ports = endpoint.ports.iter();
                selector.selects(world, Some(&endpoint.name.namespace), &endpoint.labels)
                    && ports.any(|p| p.name.as_ref() == Some(name) && p.protocol == port.protocol)
            };
            if !world.endpoints.iter().any(declares) {
                let protocol = port.protocol;
                let message =
                    format!("no endpoint that `{}` selects declares a {protocol} port `{name}`", service.name);
                self.warn(&port.origin, message, "name it in `spec.ports` of the Endpoints, or write its number");
            }
        }
    }

    /// Slices that nobody asks for, and services that wait for one.
    fn slices(&mut self) {
        let world = self.world;
        let services: HashMap<&ObjectName, &Service> = world.services.iter().map(|s| (&s.name, s)).collect();
        let mut listed = HashSet::new();
        for slice in &world.slices {
            let Some(service) = &slice.service else { continue };
            let name = ObjectName { namespace: slice.name.namespace.clone(), name: service.clone() };
            let Some(service) = services.get(&name) else {
                let message = format!("slice `{}` belongs to `{name}`, and there is no such service", slice.name);
                self.warn(&slice.origin, message, "nothing is done with it; is the label spelt right?");
                continue;
            };
            listed.insert(&service.name);
            for port in &slice.ports {
                let is_asked = |asked: &ServicePort| (&asked.name, asked.protocol) == (&port.name, port.protocol);
                if !service.ports.iter().any(is_asked) {
                    let called =
                        port.name.as_ref().map_or("without a name".to_owned(), |name| format!("named `{name}`"));
                    let message = format!(
                        "service `{name}` has no {} port {called}, as slice `{}` has",
                        port.protocol, slice.name
                    );
                    self.warn(&slice.origin, message, "nothing is sent there; give both the same name and protocol");
                }
            }
        }
        let is_waiting = |s: &&Service| s.selector.is_none() && !s.ports.is_empty() && !listed.contains(&s.name);
        if world.endpoints.is_empty() && world.slices.is_empty() {
            return;
        }
        for service in world.services.iter().filter(is_waiting) {
            let message = format!("service `{}` has neither a selector nor an EndpointSlice", service.name);
            self.warn(&service.origin, message, "whoever calls it is refused");
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
        let any = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
        let mut asked = any.into_iter().filter(|one| protocol.is_none_or(|only| only == *one));
        asked.any(|protocol| self.declared.contains(&(name, protocol)))
    }

    /// Says yes without looking when enough has been looked at.
    fn chooses_endpoint(&mut self, selector: &Selector) -> bool {
        let world = self.world;
        let Some(left) = self.left.checked_sub(world.endpoints.len()) else { return true };
        self.left = left;
        let selects = |endpoint: &Endpoint| selector.selects(world, Some(&endpoint.name.namespace), &endpoint.labels);
        world.endpoints.iter().any(selects)
    }

    fn chooses(&mut self, selector: &'a Selector) -> bool {
        if let Some(known) = self.chosen.get(selector) {
            return *known;
        }
        let world = self.world;
        let chooses = self.chooses_endpoint(selector)
            || world.sets.iter().any(|set| selector.selects(world, set.namespace.as_deref(), &set.labels));
        self.chosen.insert(selector, chooses);
        chooses
    }
}
