//! Endpoints with the same labels are one workload; a workload is chosen by as few labels as tell it
//! from the others of its namespace.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Endpoint, Labels, ObjectName};

/// Endpoints of one namespace whose labels are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub namespace: String,
    /// In order; never empty.
    pub members: Vec<ObjectName>,
    pub selector: Selector,
}

/// Chooses exactly one workload within its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    pub equal: BTreeMap<String, String>,
    /// Keys that must not be there.
    pub absent: BTreeSet<String>,
}

/// Keys that people know a workload by, the best first.
const KNOWN: [&str; 8] = ["app", "app.kubernetes.io/name", "k8s-app", "name", "component", "role", "service", "tier"];
/// Labels that nobody wrote: Calico derives them for every endpoint.
const DERIVED: [&str; 2] = ["projectcalico.org/namespace", "projectcalico.org/orchestrator"];

/// The workloads, in the order of their namespaces and of their first endpoints' names.
pub fn group(endpoints: &[Endpoint]) -> Vec<Workload> {
    let mut namespaces: BTreeMap<&str, BTreeMap<Labels, Vec<ObjectName>>> = BTreeMap::new();
    for endpoint in endpoints {
        let mut labels = endpoint.labels.clone();
        labels.retain(|key, _| !DERIVED.contains(&key.as_str()));
        let members = namespaces.entry(&endpoint.name.namespace).or_default().entry(labels).or_default();
        members.push(endpoint.name.clone());
    }
    let workloads = namespaces.into_iter().flat_map(|(namespace, workloads)| {
        let labels: Vec<Labels> = workloads.keys().cloned().collect();
        let workload = move |(index, mut members): (usize, Vec<ObjectName>)| {
            members.sort();
            Workload { namespace: namespace.to_owned(), members, selector: choose(&labels, index) }
        };
        workloads.into_values().enumerate().map(workload).collect::<Vec<_>>()
    });
    let mut workloads: Vec<_> = workloads.collect();
    workloads.sort_by(|a, b| a.members[0].cmp(&b.members[0]));
    workloads
}

/// A condition of a selector.
#[derive(Clone, Debug)]
enum Term<'a> {
    Equal(&'a str, &'a str),
    Absent(&'a str),
}

impl Term<'_> {
    fn holds(&self, labels: &Labels) -> bool {
        match *self {
            Self::Equal(key, value) => labels.get(key).is_some_and(|found| found == value),
            Self::Absent(key) => !labels.contains_key(key),
        }
    }
}

/// The fewest terms that hold for the labels at `own` and for none of the others. A workload that has
/// labels is chosen by one at least, so that it does not stand for everything that may come.
fn choose(all: &[Labels], own: usize) -> Selector {
    /// Up to three terms of so many are tried in every combination.
    const MOST: usize = 40;
    let others: Vec<&Labels> = all.iter().enumerate().filter(|(index, _)| *index != own).map(|(_, l)| l).collect();
    let own = &all[own];
    let mut equal: Vec<Term<'_>> = own.iter().map(|(key, value)| Term::Equal(key, value)).collect();
    let rank = |term: &Term<'_>| match term {
        Term::Equal(key, _) => KNOWN.iter().position(|known| known == key).unwrap_or(KNOWN.len()),
        Term::Absent(_) => KNOWN.len() + 1,
    };
    equal.sort_by_key(rank);
    let foreign: BTreeSet<&str> = others.iter().flat_map(|labels| labels.keys()).map(String::as_str).collect();
    let absent = foreign.into_iter().filter(|key| !own.contains_key(*key)).map(Term::Absent);
    let terms: Vec<Term<'_>> = equal.into_iter().chain(absent).collect();
    let is_exact = |chosen: &[&Term<'_>]| others.iter().all(|other| chosen.iter().any(|term| !term.holds(other)));
    let is_named = |chosen: &[&Term<'_>]| own.is_empty() || matches!(chosen.first(), Some(Term::Equal(..)));
    let tried = if terms.len() <= MOST { &terms[..] } else { &[] };
    let found = combinations(tried).find(|chosen| is_named(chosen) && is_exact(chosen));
    Selector::of(&found.unwrap_or_else(|| cover(&terms, &others)))
}

/// Every choice of up to three, the fewest and the first ones first.
fn combinations<'t, 'a>(terms: &'t [Term<'a>]) -> impl Iterator<Item = Vec<&'t Term<'a>>> {
    let count = terms.len();
    let none = std::iter::once(vec![]);
    let one = (0..count).map(|a| vec![a]);
    let two = (0..count).flat_map(move |a| (a + 1..count).map(move |b| vec![a, b]));
    let three =
        (0..count).flat_map(move |a| (a + 1..count).flat_map(move |b| (b + 1..count).map(move |c| vec![a, b, c])));
    let all = none.chain(one).chain(two).chain(three);
    all.map(move |chosen| chosen.into_iter().map(|index| &terms[index]).collect())
}

/// Terms that leave nobody else, each of which is needed: first those that keep most others out.
fn cover<'t, 'a>(terms: &'t [Term<'a>], others: &[&Labels]) -> Vec<&'t Term<'a>> {
    let mut left: Vec<&Labels> = others.to_vec();
    let mut chosen: Vec<&Term<'a>> = terms.first().into_iter().collect();
    left.retain(|other| chosen.iter().all(|term| term.holds(other)));
    while !left.is_empty() {
        let excluded = |term: &&Term<'a>| left.iter().filter(|other| !term.holds(other)).count();
        // the first of the best
        let Some(best) = terms.iter().rev().max_by_key(excluded).filter(|best| excluded(best) > 0) else { break };
        left.retain(|other| best.holds(other));
        chosen.push(best);
    }
    for index in (0..chosen.len()).rev() {
        let mut fewer = chosen.clone();
        fewer.remove(index);
        if !fewer.is_empty() && others.iter().all(|other| fewer.iter().any(|term| !term.holds(other))) {
            chosen = fewer;
        }
    }
    chosen
}

impl Selector {
    fn of(terms: &[&Term<'_>]) -> Self {
        let mut selector = Self::default();
        for term in terms {
            match **term {
                Term::Equal(key, value) => _ = selector.equal.insert(key.to_owned(), value.to_owned()),
                Term::Absent(key) => _ = selector.absent.insert(key.to_owned()),
            }
        }
        selector
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample::{endpoint, labels};

    /// The selectors of endpoints `x/0`, `x/1`... with these labels, by the first member.
    fn selectors(all: &[&str]) -> Vec<String> {
        let labelled = |(index, text): (usize, &&str)| {
            let mut endpoint = endpoint(&format!("x/{index}"), "");
            endpoint.labels = labels(text);
            endpoint
        };
        let endpoints: Vec<_> = all.iter().enumerate().map(labelled).collect();
        let text = |workload: &Workload| {
            let equal = workload.selector.equal.iter().map(|(key, value)| format!("{key}={value}"));
            let absent = workload.selector.absent.iter().map(|key| format!("!{key}"));
            equal.chain(absent).collect::<Vec<_>>().join(",")
        };
        group(&endpoints).iter().map(text).collect()
    }

    #[test]
    fn one_label_is_enough_where_it_tells_them_apart() {
        assert_eq!(selectors(&["app=a,tier=x", "app=b,tier=x"]), ["app=a", "app=b"]);
        assert_eq!(selectors(&["app=a,zone=1", "app=a,zone=2"]), ["zone=1", "zone=2"]);
        assert_eq!(selectors(&["release=7,app=a"]), ["app=a"], "alone in its namespace, and yet not everything");
    }

    #[test]
    fn two_labels_where_one_is_shared_with_each_other_workload() {
        assert_eq!(selectors(&["app=a,tier=x", "app=a,tier=y", "app=b,tier=x"]), ["app=a,tier=x", "tier=y", "app=b"]);
    }

    #[test]
    fn absence_tells_fewer_labels_from_more() {
        assert_eq!(selectors(&["app=a", "app=a,canary=yes"]), ["app=a,!canary", "canary=yes"]);
        assert_eq!(selectors(&["", "app=a"]), ["!app", "app=a"]);
        assert_eq!(selectors(&[""]), [""]);
    }

    #[test]
    fn same_labels_are_one_workload() {
        assert_eq!(selectors(&["app=a", "app=a", "app=b"]), ["app=a", "app=b"]);
    }

    #[test]
    fn many_labels_are_covered_by_terms_that_are_all_needed() {
        let base: Vec<String> = (0..45).map(|index| format!("k{index:02}=v")).collect();
        let without = |missing: usize| {
            let rest: Vec<_> = base.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, l)| l.clone()).collect();
            rest.join(",")
        };
        let all = [base.join(","), without(3), without(17), without(40), without(44)];
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert_eq!(selectors(&all)[0], "k03=v,k17=v,k40=v,k44=v");
    }
}
