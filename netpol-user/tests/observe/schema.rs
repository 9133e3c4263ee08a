//! The fields of every kind of event, by real traffic, and that users are told of the same ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    between,
    support::{
        Attempt::Tcp,
        Family, Scene,
        Seen::{Answered, Silent},
        check, packet,
        policy::{anybody, egress, from, ingress, to},
        translated::{service, virtual_address},
    },
};

/// How [`EVENT`]'s letters are in order; each is provoked in the test.
const KINDS: [&str; 6] = ["new", "new, translated", "new, audited", "drop", "closed", "flow"];

/// Fields of what happens to packets, and what they are of each of [`KINDS`]: a (s)tring, a (n)umber, a (b)oolean, an
/// (o)bject, or `-`, null.
const EVENT: [(&str, &str); 33] = [
    ("type", "ssssss"),
    ("time", "ssssss"),
    ("verdict", "ssssss"),
    ("drop_reason", "---s--"),
    ("source", "oooooo"),
    ("destination", "oooooo"),
    ("protocol", "ssssss"),
    ("direction", "ssssss"),
    ("is_reply", "bbbbbb"),
    ("rule", "oooooo"),
    ("egress_rule", "ooo-oo"),
    ("ingress_rule", "oo-ooo"),
    ("explanation", "ssssss"),
    ("would_drop", "--s---"),
    ("audit_rule", "--o---"),
    ("audit_explanation", "--s---"),
    ("packets", "nnnnnn"),
    ("bytes", "nnnnnn"),
    ("idle_seconds", "nnnnnn"),
    ("tcp_flags", "ssssss"),
    ("delivery", "ssssss"),
    ("current", "bbbbbb"),
    ("interface", "ssssss"),
    ("translated", "-o----"),
    ("service", "-s----"),
    ("at", "ssssss"),
    ("was_allowed", "bbbbbb"),
    ("suppressed", "nnnnnn"),
    ("reply_packets", "----n-"),
    ("reply_bytes", "----n-"),
    ("reply_tcp_flags", "----s-"),
    ("tcp_state", "----s-"),
    ("frame", "ooooo-"),
];

/// Where an object is, where the document describes it, and its fields. (Names of labels are the user's.)
type Part = (&'static [&'static str], &'static str, &'static [(&'static str, &'static str)]);

const PARTS: [Part; 4] = [
    (
        &["source", "destination"],
        "Ends",
        &[("namespace", "s"), ("name", "s"), ("labels", "o"), ("identity", "n"), ("address", "s"), ("port", "n")],
    ),
    (
        &["rule", "egress_rule", "ingress_rule", "audit_rule"],
        "Rules",
        // a default deny has no index
        &[("kind", "s"), ("namespace", "s"), ("name", "s"), ("direction", "s"), ("index", "n-"), ("source", "s")],
    ),
    (&["translated"], "Translations", &[("source", "s"), ("destination", "s")]),
    (&["frame"], "Frames", &[("ethertype", "s"), ("source_mac", "s"), ("destination_mac", "s"), ("length", "n")]),
];

const SUPPRESSED: [(&str, &str); 3] = [("type", "s"), ("time", "s"), ("suppressed", "n")];
const LOST: [(&str, &str); 3] = [("type", "s"), ("time", "s"), ("lost", "n")];
const GAP: [(&str, &str); 4] = [("type", "s"), ("time", "s"), ("lost", "-"), ("seconds", "n")];

fn letter(value: &Value) -> char {
    match value {
        Value::Null => '-',
        Value::Bool(_) => 'b',
        Value::Number(_) => 'n',
        Value::String(_) => 's',
        Value::Object(_) => 'o',
        Value::Array(_) => 'a',
    }
}

/// It has these fields, each of its type, and no other.
#[track_caller]
fn assert_fields<'a>(object: &Value, fields: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let wanted: BTreeMap<_, _> = fields.into_iter().collect();
    let has = object.as_object().expect("an object");
    let names: Vec<_> = has.keys().map(String::as_str).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, wanted.keys().copied().collect::<Vec<_>>(), "in {object:#}");
    for (name, value) in has {
        assert!(wanted[name.as_str()].contains(letter(value)), "{name}: not {} in {object:#}", wanted[name.as_str()]);
    }
}

/// It is as [`EVENT`] says of this kind, and so are its parts.
#[track_caller]
fn assert_event(event: &Value, kind: &str) {
    let place = KINDS.iter().position(|of| *of == kind).expect("one of them");
    assert_fields(event, EVENT.map(|(name, letters)| (name, &letters[place..=place])));
    for (name, _, fields) in
        PARTS.iter().flat_map(|(names, title, fields)| names.iter().map(move |name| (name, title, fields)))
    {
        if event[name].is_object() {
            assert_fields(&event[name], fields.iter().copied());
        }
    }
}

/// How long an observer was stopped, in the fields of that.
#[track_caller]
pub fn assert_gap(event: &Value) {
    assert_fields(event, GAP);
}

#[test]
fn every_kind_of_event_has_exactly_the_fields_that_scripts_rely_on() {
    let scene = Scene::bridged();
    let Scene { host, a, b, c, .. } = &scene;
    let audited = ingress("c", &[]).replace("metadata: {", "metadata: {annotations: {netpol.dev/audit: 'true'}, ");
    let policies = [
        service("b"),
        ingress("b", &[from("a", &["80/TCP", "8080/TCP"]), anybody(&["53/UDP"])]),
        egress("a", &[to("b", &[]), to("c", &[])]),
        audited,
    ];
    scene.load_nat(&[], &policies);
    let _servers = [b.serve_tcp(80), b.serve_tcp(8080), c.serve_tcp(80)];
    let mut watch = host.observe(&[]);
    check(&[
        (a, Tcp(b.at(Family::V4, 80)), Answered),
        (a, Tcp(virtual_address(Family::V4)), Answered),
        (a, Tcp(c.at(Family::V4, 80)), Answered),
        (c, Tcp(b.at(Family::V4, 80)), Silent),
    ]);
    let plain = |kind| move |event: &Value| between(kind, "a", "b", 80)(event) && event["service"].is_null();
    assert_event(&watch.event("a to b", plain("new")), "new");
    let translated = |event: &Value| event["type"] == "new" && event["translated"].is_object();
    assert_event(&watch.event("a to the service", translated), "new, translated");
    assert_event(&watch.event("a to c", between("new", "a", "c", 80)), "new, audited");
    assert_event(&watch.event("c to b", between("drop", "c", "b", 80)), "drop");
    assert_event(&watch.event("the end", plain("closed")), "closed");
    let last = host.netpol(&["observe", "-o", "json", "--last", "1", "from:a to:10.0.0.20 port:80"]).ok();
    assert_event(&serde_json::from_str(&last).expect("one line"), "flow");

    // the same drop again and again, and more flows than a ring has room for
    let (source, target) = (a.mac(), b.mac());
    let many = |port: fn(u16) -> (u16, u16)| {
        let socket = a.raw();
        for (from, to) in (0..400).map(port) {
            let (from, to) = (a.socket(Family::V4, from), b.socket(Family::V4, to));
            socket.send(&packet::frame(target, source, &packet::udp(from, to, b"hello")));
        }
    };
    many(|_| (1000, 9));
    assert_fields(&watch.event("what was suppressed", |event| event["type"] == "suppressed"), SUPPRESSED);
    watch.end();
    let mut slow = host.observe(&["--type", "new", "--buffer", "4"]);
    slow.signal(Signal::SIGSTOP);
    many(|number| (2000 + number, 53));
    slow.signal(Signal::SIGCONT);
    assert_fields(&slow.event("the loss", |event| event["type"] == "lost"), LOST);
    slow.end();
}

/// Rows of tables in Markdown by the heading above them: names in backticks, and the cell beside.
fn documented() -> BTreeMap<String, BTreeMap<String, String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/events.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut sections = BTreeMap::<_, BTreeMap<_, _>>::new();
    let mut title = String::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix('#') {
            title = heading.trim_start_matches('#').trim().to_owned();
        } else if let Some((names, rest)) = line.strip_prefix("| `").and_then(|row| row.split_once('|')) {
            let kind = rest.split('|').next().unwrap_or_default().trim();
            for name in names.split(',').map(|name| name.trim().trim_matches('`')) {
                sections.entry(title.clone()).or_default().insert(name.to_owned(), kind.to_owned());
            }
        }
    }
    sections
}

#[test]
fn fields_of_events_are_documented_with_their_types() {
    let documented = documented();
    let word = |letter| match letter {
        '-' => "null",
        'b' => "boolean",
        'n' => "number",
        's' => "string",
        _ => "object",
    };
    let missed = SUPPRESSED.into_iter().chain(LOST).chain(GAP);
    let sections = [("Flows", "Events", EVENT.to_vec()), ("What was not told", "", missed.collect())];
    let parts = PARTS.map(|(_, title, fields)| (title, "", fields.to_vec()));
    for (title, more, fields) in sections.into_iter().chain(parts) {
        let mut rows = documented[title].clone();
        rows.extend(documented.get(more).cloned().unwrap_or_default());
        let names: BTreeSet<_> = fields.iter().map(|(name, _)| *name).collect();
        assert_eq!(rows.keys().map(String::as_str).collect::<BTreeSet<_>>(), names, "in {title}");
        for (name, letters) in fields {
            let kind = &rows[name];
            for letter in letters.chars() {
                assert!(kind.split(" or ").any(|kind| kind == word(letter)), "{title}: `{name}` is not only {kind}");
            }
        }
    }
}
