//! Which endpoints and network sets a selector chooses: asked of an index from labels to their
//! holders, so that a selector costs what it finds and not a look at everybody.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

use super::bits::Bits;
use crate::model::{Expr, Labels, Scope, Selector, World};

/// Who carries which label.
struct LabelIndex<'w> {
    holders: HashMap<&'w str, BTreeMap<&'w str, Vec<usize>>>,
    len: usize,
}

impl<'w> LabelIndex<'w> {
    fn new(objects: impl Iterator<Item = &'w Labels>) -> Self {
        let mut index = Self { holders: HashMap::new(), len: 0 };
        for labels in objects {
            for (key, value) in labels {
                index.holders.entry(key).or_default().entry(value).or_default().push(index.len);
            }
            index.len += 1;
        }
        index
    }

    fn matching(&self, expr: &Expr) -> Bits {
        let inverted = |mut bits: Bits| {
            bits.invert();
            bits
        };
        match expr {
            Expr::All => Bits::all(self.len),
            Expr::Has(key) => self.with_value(key, |_| true),
            Expr::Eq(key, want) => self.having(key, std::slice::from_ref(want)),
            Expr::Ne(key, unwanted) => inverted(self.having(key, std::slice::from_ref(unwanted))),
            Expr::In(key, set) => self.having(key, set),
            Expr::NotIn(key, set) => inverted(self.having(key, set)),
            Expr::Contains(key, part) => self.with_value(key, |value| value.contains(part.as_str())),
            Expr::StartsWith(key, part) => self.with_value(key, |value| value.starts_with(part.as_str())),
            Expr::EndsWith(key, part) => self.with_value(key, |value| value.ends_with(part.as_str())),
            Expr::Not(expr) => inverted(self.matching(expr)),
            Expr::And(all) => all.iter().fold(Bits::all(self.len), |mut bits, expr| {
                bits.intersect(&self.matching(expr));
                bits
            }),
            Expr::Or(any) => any.iter().fold(Bits::none(self.len), |mut bits, expr| {
                bits.union(&self.matching(expr));
                bits
            }),
        }
    }

    fn having(&self, key: &str, values: &[String]) -> Bits {
        let mut bits = Bits::none(self.len);
        let Some(holders) = self.holders.get(key) else { return bits };
        for value in values {
            holders.get(value.as_str()).into_iter().flatten().for_each(|&object| bits.insert(object));
        }
        bits
    }

    fn with_value(&self, key: &str, accept: impl Fn(&str) -> bool) -> Bits {
        let mut bits = Bits::none(self.len);
        for (value, holders) in self.holders.get(key).into_iter().flatten() {
            if accept(value) {
                holders.iter().for_each(|&object| bits.insert(object));
            }
        }
        bits
    }
}

/// Answers selectors about a world's objects: its endpoints, then its network sets.
pub(super) struct Objects<'w> {
    world: &'w World,
    labels: LabelIndex<'w>,
    namespaces: LabelIndex<'w>,
    namespace_names: Vec<&'w str>,
    /// Objects by namespace; `None` has the global network sets.
    members: HashMap<Option<&'w str>, Vec<usize>>,
    /// Many selectors share a scope: a namespace's policies.
    scopes: HashMap<&'w Scope, Bits>,
}

impl<'w> Objects<'w> {
    pub fn new(world: &'w World) -> Self {
        let endpoints = world.endpoints.iter().map(|e| (Some(e.name.namespace.as_str()), &e.labels));
        let sets = world.sets.iter().map(|s| (s.namespace.as_deref(), &s.labels));
        let mut members: HashMap<_, Vec<_>> = HashMap::new();
        for (object, (namespace, _)) in endpoints.clone().chain(sets.clone()).enumerate() {
            members.entry(namespace).or_default().push(object);
        }
        Self {
            world,
            labels: LabelIndex::new(endpoints.chain(sets).map(|(_, labels)| labels)),
            namespaces: LabelIndex::new(world.namespaces.values()),
            namespace_names: world.namespaces.keys().map(String::as_str).collect(),
            members,
            scopes: HashMap::new(),
        }
    }

    /// Bit `i` is endpoint `i`; the network sets follow the endpoints.
    pub fn selected_by(&mut self, selector: &'w Selector) -> Bits {
        let mut bits = self.labels.matching(&selector.labels);
        if selector.scope == Scope::Any {
            return bits;
        }
        if !self.scopes.contains_key(&selector.scope) {
            self.scopes.insert(&selector.scope, self.in_scope(&selector.scope));
        }
        bits.intersect(&self.scopes[&selector.scope]);
        bits
    }

    fn in_scope(&self, scope: &Scope) -> Bits {
        match scope {
            Scope::Any => Bits::all(self.world.endpoints.len() + self.world.sets.len()),
            Scope::Namespace(name) => self.in_namespaces([Some(name.as_str())]),
            Scope::Global => self.in_namespaces([None]),
            Scope::Matching(expr) => {
                let named = self.namespaces.matching(expr);
                let names = named.iter().map(|at| Some(self.namespace_names[at]));
                let global = expr.matches(&Labels::new()).then_some(None);
                self.in_namespaces(names.chain(global))
            }
        }
    }

    fn in_namespaces<'n>(&self, names: impl IntoIterator<Item = Option<&'n str>>) -> Bits {
        let mut bits = Bits::none(self.world.endpoints.len() + self.world.sets.len());
        for name in names {
            self.members.get(&name).into_iter().flatten().for_each(|&object| bits.insert(object));
        }
        bits
    }
}

/// Gives equal things the same small number, in the order of their first appearance.
pub(super) struct Numbering<T> {
    numbers: HashMap<T, usize>,
}

impl<T: Eq + Hash> Default for Numbering<T> {
    fn default() -> Self {
        Self { numbers: HashMap::new() }
    }
}

impl<T: Eq + Hash> Numbering<T> {
    /// The number, and whether it is new.
    pub fn number(&mut self, thing: T) -> (usize, bool) {
        let next = self.numbers.len();
        let number = *self.numbers.entry(thing).or_insert(next);
        (number, number == next)
    }
}
