//! The syntax of names, labels, ports and networks, as Kubernetes and Calico define it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    node::{Pos, shorten},
    reader::{Report, Text},
};

/// Which alphabet and length a name has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// RFC 1123 label: a namespace, a tier.
    Label,
    /// RFC 1123 subdomain: most objects.
    Subdomain,
}

impl Name {
    pub fn holds(self, name: &str) -> bool {
        match self {
            Self::Label => is_label(name) && name.len() <= 63,
            Self::Subdomain => name.len() <= 253 && name.split('.').all(is_label),
        }
    }

    const fn rule(self) -> &'static str {
        match self {
            Self::Label => {
                "lower-case letters, digits and `-`, beginning and ending with a letter or digit, at most 63"
            }
            Self::Subdomain => {
                "lower-case letters, digits, `-` and `.`, beginning and ending with a letter or digit, at most 253"
            }
        }
    }

    /// Reports a name that is none.
    pub fn check(self, report: &Report, name: Text<'_>) -> bool {
        let holds = self.holds(name.text);
        if !holds {
            report.error_help(name.at, format!("`{}` is not a valid name", shorten(name.text)), self.rule());
        }
        holds
    }
}

fn is_label(part: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
}

/// Letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit.
fn is_qualified_part(part: &str) -> bool {
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    part.len() <= 63 && part.bytes().all(inner) && edge(part.bytes().next()) && edge(part.bytes().last())
}

/// `[prefix/]name`, as keys of labels and annotations are.
pub fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => Name::Subdomain.holds(prefix) && is_qualified_part(name),
        None => is_qualified_part(key),
    }
}

pub fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_qualified_part(value)
}

pub fn label_key(report: &Report, key: Text<'_>) {
    if !is_label_key(key.text) {
        let help = "at most 63 letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit, \
                    after an optional DNS name and `/`";
        report.error_help(key.at, format!("`{}` is not a valid label key", shorten(key.text)), help);
    }
}

pub fn label_value(report: &Report, value: Text<'_>) {
    if !is_label_value(value.text) {
        let help = "at most 63 letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit";
        report.error_help(value.at, format!("`{}` is not a valid label value", shorten(value.text)), help);
    }
}

pub fn label(report: &Report, key: Text<'_>, value: Text<'_>) {
    label_key(report, key);
    label_value(report, value);
}

/// A port number from 1.
pub fn port(report: &Report, number: i64, at: Pos) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    if port.is_none() {
        report.error_help(at, format!("{number} is not a port"), "ports go from 1 to 65535");
    }
    port
}

/// The name of a port of a container, as Kubernetes wants it (RFC 6335).
pub fn port_name(report: &Report, name: Text<'_>) -> Option<String> {
    let text = name.text;
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let holds = (1..=15).contains(&text.len())
        && text.bytes().all(inner)
        && text.bytes().any(|c| c.is_ascii_lowercase())
        && !text.contains("--")
        && !text.starts_with('-')
        && !text.ends_with('-');
    if holds {
        return Some(text.to_owned());
    }
    let help = match text.parse::<u16>() {
        Ok(number) => format!("a port's number is written without quotes: `{number}`"),
        Err(_) => "at most 15 lower-case letters, digits and single `-`, at least one letter".to_owned(),
    };
    report.error_help(name.at, format!("`{}` is not the name of a port", shorten(text)), help);
    None
}

/// `address/length`. Bits behind the length are accepted and say nothing, as in Kubernetes.
pub fn cidr(report: &Report, text: Text<'_>) -> Option<IpNet> {
    let parsed: Option<IpNet> = text.text.parse().ok();
    if parsed.is_none() {
        let help = match text.text.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => format!("a single address is `{address}/32`"),
            Ok(IpAddr::V6(address)) => format!("a single address is `{address}/128`"),
            Err(_) => "write address/length, such as `10.0.0.0/8` or `fd00::/8`".to_owned(),
        };
        report.error_help(text.at, format!("`{}` is not a CIDR", shorten(text.text)), help);
    }
    parsed.map(|net| net.trunc())
}

/// A CIDR or a single address.
pub fn cidr_or_address(report: &Report, text: Text<'_>) -> Option<IpNet> {
    match text.text.parse::<IpAddr>() {
        Ok(address) => Some(address.into()),
        Err(_) => cidr(report, text),
    }
}

pub fn address(report: &Report, text: Text<'_>) -> Option<IpAddr> {
    let parsed: Option<IpAddr> = text.text.parse().ok();
    if parsed.is_none() {
        let help = match text.text.parse::<IpNet>() {
            Ok(net) => format!("without the length: `{}`", net.addr()),
            Err(_) => "write `10.0.0.10` or `fd00::10`".to_owned(),
        };
        report.error_help(text.at, format!("`{}` is not an address", shorten(text.text)), help);
    }
    parsed
}
