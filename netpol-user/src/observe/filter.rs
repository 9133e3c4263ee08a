//! Which flows somebody wants to see, in one line: `from:shop/api port:5432 not verdict:allowed`.
//!
//! Terms are separated by blanks, and all of them must hold. `-` or `not` before a term turns it
//! around; quotes keep blanks and colons together. A word without a field is searched everywhere.

use std::{net::IpAddr, ops::RangeInclusive, str::FromStr};

use ipnet::IpNet;
use netpol_common::wire::Protocol;

use super::flow::{Flow, Peer};
use crate::{datapath::Drop, state::Rule};

/// The fields, for help and errors: name, what it takes.
pub const FIELDS: &[(&str, &str)] = &[
    ("from", "namespace/name, a name, an address or a network; * stands for anything"),
    ("to", "the same, of who is spoken to"),
    ("port", "5432 or 8000-8099, of either end"),
    ("proto", "tcp, udp, icmp, icmpv6, sctp or a number"),
    ("verdict", "allowed, denied, or would-drop: allowed, and audited policies would deny it"),
    ("reason", "why it was dropped: policy-ingress, spoofed, vlan, ...; * stands for anything"),
    ("rule", "a part of the rule's name or place, default-deny, or none"),
];

/// Terms that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    text: String,
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    negated: bool,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    From(End),
    To(End),
    Port(RangeInclusive<u16>),
    Protocol(Protocol),
    Denied(bool),
    WouldDrop,
    /// In lower case, with `*`.
    Reason(String),
    DefaultDeny,
    NoPolicy,
    /// In lower case.
    Rule(String),
    /// In lower case.
    Text(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Network(IpNet),
    /// `namespace/name`, with `*`.
    Full(String),
    Name(String),
}

/// What is wrong with a filter, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct FilterError {
    /// In characters, from 1.
    pub column: usize,
    pub message: String,
}

impl Filter {
    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// It holds for everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    pub fn matches(&self, flow: &Flow<'_>) -> bool {
        self.terms.iter().all(|term| term.test.holds(flow) != term.negated)
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let mut terms = Vec::new();
        let mut not: Option<usize> = None;
        for word in words(text)? {
            if word.is("not") {
                if not.replace(word.column).is_some() {
                    return Err(word.error("`not` twice"));
                }
                continue;
            }
            let (minus, word) = word.without_minus()?;
            terms.push(Term { negated: minus != not.take().is_some(), test: test(&word)? });
        }
        match not {
            Some(column) => Err(FilterError { column, message: "`not` what?".into() }),
            None => Ok(Self { text: text.trim().to_owned(), terms }),
        }
    }
}

/// A part between blanks, without its quotes.
struct Word {
    /// Of its first character, from 1.
    column: usize,
    text: String,
    /// Where quotes began, in characters of `text`: what follows is text, whatever it looks like.
    quoted_from: Option<usize>,
}

impl Word {
    fn is(&self, text: &str) -> bool {
        self.quoted_from.is_none() && self.text.eq_ignore_ascii_case(text)
    }

    fn error(&self, message: impl Into<String>) -> FilterError {
        FilterError { column: self.column, message: message.into() }
    }

    fn without_minus(self) -> Result<(bool, Self), FilterError> {
        match self.text.strip_prefix('-') {
            Some(_) if self.quoted_from == Some(0) => Ok((false, self)),
            Some("") if self.quoted_from.is_none() => {
                Err(self.error("`-` stands directly before what it turns around"))
            }
            Some(rest) => {
                let quoted_from = self.quoted_from.map(|from| from - 1);
                Ok((true, Self { column: self.column + 1, text: rest.to_owned(), quoted_from }))
            }
            None => Ok((false, self)),
        }
    }

    /// Field and value, where it begins like one: letters and a colon. (Addresses have colons, too.)
    fn field(&self) -> Option<(&str, &str)> {
        let (field, value) = self.text.split_once(':')?;
        let plain = !field.is_empty() && field.chars().all(|c| c.is_ascii_alphabetic());
        let unquoted = self.quoted_from.is_none_or(|from| from > field.len());
        let is_address = self.text.parse::<IpAddr>().is_ok() || self.text.parse::<IpNet>().is_ok();
        (plain && unquoted && !is_address).then_some((field, value))
    }
}

fn words(text: &str) -> Result<Vec<Word>, FilterError> {
    let mut words: Vec<Word> = Vec::new();
    let mut word: Option<Word> = None;
    let mut quote: Option<(usize, char)> = None;
    for (column, c) in (1..).zip(text.chars()) {
        match (quote, c) {
            (Some((_, open)), c) if c == open => quote = None,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            _ => {
                let word = word.get_or_insert(Word { column, text: String::new(), quoted_from: None });
                if quote.is_none() && matches!(c, '"' | '\'') {
                    quote = Some((column, c));
                    word.quoted_from.get_or_insert(word.text.chars().count());
                } else {
                    word.text.push(c);
                }
            }
        }
    }
    if let Some((column, c)) = quote {
        return Err(FilterError { column, message: format!("{c} is not closed") });
    }
    words.extend(word);
    Ok(words)
}

fn test(word: &Word) -> Result<Test, FilterError> {
    let Some((field, value)) = word.field() else { return Ok(Test::Text(word.text.to_lowercase())) };
    // the value's, after the colon
    let error = |message: String| FilterError { column: word.column + field.len() + 1, message };
    let lower = field.to_lowercase();
    if !FIELDS.iter().any(|(known, _)| *known == lower) {
        return Err(word.error(unknown(&lower)));
    }
    if value.is_empty() {
        return Err(error(format!("`{lower}:` what?")));
    }
    match lower.as_str() {
        "from" => Ok(Test::From(End::from(value))),
        "to" => Ok(Test::To(End::from(value))),
        "port" => {
            ports(value).map(Test::Port).ok_or_else(|| error(format!("`{value}` is no port, nor ports like 80-90")))
        }
        "proto" => protocol(value)
            .map(Test::Protocol)
            .ok_or_else(|| error(format!("`{value}` is no protocol's name or number"))),
        "verdict" => match value.to_lowercase().as_str() {
            "allowed" => Ok(Test::Denied(false)),
            "denied" => Ok(Test::Denied(true)),
            "would-drop" => Ok(Test::WouldDrop),
            _ => Err(error(format!("a verdict is allowed, denied or would-drop, not `{value}`"))),
        },
        "reason" => reason(&value.to_lowercase()).map(Test::Reason).map_err(error),
        _ => Ok(match value.to_lowercase().as_str() {
            "default-deny" => Test::DefaultDeny,
            "none" => Test::NoPolicy,
            part => Test::Rule(part.to_owned()),
        }),
    }
}

/// A reason's name, or a pattern that some have.
fn reason(value: &str) -> Result<String, String> {
    let names = || Drop::ALL.iter().map(|drop| drop.name());
    if names().any(|name| glob(value.as_bytes(), name.as_bytes())) {
        return Ok(value.to_owned());
    }
    match nearest(value, names()) {
        Some(known) => Err(format!("no packet is dropped for `{value}`; did you mean `{known}`?")),
        None => Err(format!("no packet is dropped for `{value}`, only {}", names().collect::<Vec<_>>().join(", "))),
    }
}

fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |known: &str| strsim::normalized_damerau_levenshtein(known, word);
    known.max_by(|a, b| likeness(a).total_cmp(&likeness(b))).filter(|known| likeness(known) >= 0.5)
}

fn unknown(field: &str) -> String {
    match nearest(field, FIELDS.iter().map(|(known, _)| *known)) {
        Some(known) => format!("no field `{field}:`; did you mean `{known}:`?"),
        None => {
            let known: Vec<_> = FIELDS.iter().map(|(known, _)| format!("{known}:")).collect();
            format!("no field `{field}:`, only {} (quotes make it text)", known.join(" "))
        }
    }
}

fn ports(value: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = value.split_once('-').unwrap_or((value, value));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

fn protocol(value: &str) -> Option<Protocol> {
    let named = (0..=u8::MAX).map(Protocol).find(|p| p.name().is_some_and(|name| name.eq_ignore_ascii_case(value)));
    named.or_else(|| value.parse().ok().map(Protocol))
}

impl From<&str> for End {
    fn from(value: &str) -> Self {
        let address = value.parse::<IpAddr>().map(IpNet::from);
        match address.or_else(|_| value.parse()) {
            Ok(network) => Self::Network(network),
            Err(_) if value.contains('/') => Self::Full(value.to_owned()),
            Err(_) => Self::Name(value.to_owned()),
        }
    }
}

impl End {
    fn is(&self, peer: &Peer<'_>) -> bool {
        match (self, peer.namespace, peer.name) {
            (Self::Network(network), ..) => network.contains(&peer.address),
            (Self::Name(pattern), _, Some(name)) => glob(pattern.as_bytes(), name.as_bytes()),
            (Self::Full(pattern), Some(namespace), Some(name)) => {
                let (wanted, rest) = pattern.split_once('/').unwrap_or_default();
                glob(wanted.as_bytes(), namespace.as_bytes())
                    && (rest.is_empty() || glob(rest.as_bytes(), name.as_bytes()))
            }
            _ => false,
        }
    }
}

impl Test {
    fn holds(&self, flow: &Flow<'_>) -> bool {
        match self {
            Self::From(end) => end.is(&flow.source),
            Self::To(end) => end.is(&flow.destination),
            Self::Port(ports) => {
                [flow.source.port, flow.destination.port].into_iter().flatten().any(|port| ports.contains(&port))
            }
            Self::Protocol(protocol) => flow.protocol == *protocol,
            Self::Denied(denied) => (flow.verdict == "denied") == *denied,
            Self::WouldDrop => flow.would_drop.is_some(),
            Self::Reason(pattern) => flow.drop_reason.is_some_and(|reason| glob(pattern.as_bytes(), reason.as_bytes())),
            Self::DefaultDeny => rules(flow).any(|rule| rule.index.is_none()),
            Self::NoPolicy => rules(flow).next().is_none(),
            Self::Rule(part) => rules(flow).any(|rule| rule.describe().to_lowercase().contains(part)),
            Self::Text(part) => everything(flow).to_lowercase().contains(part),
        }
    }
}

/// The rule that decided, and the one that would.
fn rules<'a>(flow: &Flow<'a>) -> impl Iterator<Item = &'a Rule> + use<'a> {
    flow.rule.into_iter().chain(flow.audit_rule)
}

/// What free text is searched in.
fn everything(flow: &Flow<'_>) -> String {
    let Flow { verdict, source, destination, protocol, explanation, interface, .. } = flow;
    let reason = flow.drop_reason.unwrap_or_default();
    let (from, to) = (source.describe(), destination.describe());
    let would = flow.audit_explanation.map(|words| format!(" would-drop {words}")).unwrap_or_default();
    format!(
        "{verdict} {reason} {from} {} {to} {} {protocol} {explanation} {interface}{would}",
        source.address, destination.address
    )
}

/// `*` stands for any text. (Without backtracking over more than the last star: linear in practice, never
/// more than the product of both lengths.)
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, from)) = star {
            (p, t) = (at + 1, from + 1);
            star = Some((at, from + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests;
