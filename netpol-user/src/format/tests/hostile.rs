//! Documents made to exhaust or break the reader. That a test ends at all is part of what it says.

use proptest::prelude::*;

use super::{calico_policy, cluster_policy, endpoint, errors, load, network_policy, only_error, show};
use crate::format::{Source, parse};

#[test]
fn aliases_of_aliases_are_counted_at_their_full_size() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let before = format!("*a{}", level - 1);
        text += &format!("a{level}: &a{level} [{}]\n", [before.as_str(); 10].join(", "));
    }
    assert!(only_error(&text).ends_with("the document holds more than 1000000 values"));
}

#[test]
fn an_alias_of_what_holds_it_is_refused() {
    assert_eq!(only_error("a: &a [*a]\n"), "1:8 an alias inside of what it stands for");
    assert_eq!(only_error("a: *nobody\n").split(' ').next(), Some("1:4"));
}

#[test]
fn depth_is_bounded_also_through_aliases() {
    for text in ["[".repeat(100_000), "{a: ".repeat(100_000), "- ".repeat(100_000), "? ".repeat(100_000)] {
        assert_eq!(errors(&text).len(), 1, "{}", &text[..8]);
    }
    let block: String = (0..300).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert_eq!(errors(&block).len(), 1);
    let mut chain = "a0: &a0 [x]\n".to_owned();
    for level in 1..100 {
        chain += &format!("a{level}: &a{level} [*a{}]\n", level - 1);
    }
    assert!(only_error(&chain).ends_with("more than 64 lists and maps inside each other"));
}

#[test]
fn a_hundred_megabytes_are_refused_at_once() {
    let text = vec![b'a'; 100 << 20];
    let invalid = parse(vec![Source { name: "t".to_owned(), text }]).expect_err("too large");
    assert_eq!(
        show(&invalid.errors),
        ["1:1 100 MiB are more than the 64 MiB that a file may have | split it into several files"]
    );
}

#[test]
fn errors_of_a_file_are_bounded() {
    let text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: a}}\n{}",
        (0..5_000).map(|n| format!("f{n}: 1\n")).collect::<String>()
    );
    let errors = errors(&text);
    assert_eq!(errors.len(), 1_001);
    assert!(errors[1_000].ends_with("more than 1000 in this file; the rest is left out"));
}

#[test]
fn documents_of_a_file_are_bounded() {
    let text = "---\na\n".repeat(200_000);
    assert_eq!(only_error(&text), "200001:1 more than 100000 documents in one file");
    assert_eq!(only_error(&"---\n".repeat(200_000)), "1:1 no document here");
}

#[test]
fn a_rule_does_not_multiply_beyond_its_text() {
    let peers = "{namespaces: {}}, ".repeat(1_000);
    let protocols = "{sctp: {}}, ".repeat(1_000);
    let text = cluster_policy(&format!("ingress: [{{action: Deny, from: [{peers}], protocols: [{protocols}]}}]"));
    assert!(only_error(&text).ends_with("the rule names 1000 peers and 1000 ports"));
}

#[test]
fn long_words_are_cut_in_messages() {
    let text = format!("apiVersion: v1\nkind: {}\nmetadata: {{name: a}}\n", "x".repeat(1 << 20));
    assert!(errors(&text)[0].len() < 500);
}

/// Documents of every family, to be damaged.
fn sound() -> String {
    [
        network_policy("{podSelector: {matchLabels: {a: b}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80, endPort: 90}]}]}"),
        cluster_policy("ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}]"),
        calico_policy("{order: 1, selector: \"a == 'b'\", ingress: [{action: Allow, protocol: TCP, destination: {ports: [\"1:10\", x]}}]}"),
        "apiVersion: v1\nkind: Service\nmetadata: &m {name: s}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n".to_owned(),
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: {kubernetes.io/service-name: s}, annotations: {netpol.dev/weight: \"9\"}}\naddressType: IPv4\nendpoints: [{addresses: [192.0.2.7]}]\nports: [{port: 80}]\n".to_owned(),
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.0.0.0/16, natOutgoing: true}\n".to_owned(),
    ]
    .join("---\n")
        + &endpoint("x", "a")
}

#[test]
fn the_document_that_is_damaged_below_is_sound() {
    assert_eq!(errors(&sound()), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn damaged_documents_never_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..12, prop::sample::select(
            vec!["", "{", "}", "[", "]", ":", ": ", "\n", " ", "-", "*m", "&a ", "\"", "'", "!x ", "|", "---\n", "\u{e9}", "\0", "80", "<<: *m", "#"]
        )), 1..6)
    ) {
        let mut text = sound();
        for (place, cut, insert) in damage {
            let mut start = place.index(text.len());
            while !text.is_char_boundary(start) { start -= 1; }
            let mut end = (start + cut).min(text.len());
            while !text.is_char_boundary(end) { end -= 1; }
            text.replace_range(start..end.max(start), insert);
        }
        if let Err(invalid) = load(&text) {
            prop_assert!(!invalid.errors.is_empty());
            let lines = text.lines().count() as u32 + 1;
            for error in &invalid.errors {
                prop_assert!((1..=lines).contains(&error.origin.line), "{error:?}");
                prop_assert!(error.origin.column >= 1, "{error:?}");
            }
        }
    }

    #[test]
    fn bytes_never_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(vec![Source { name: "t".to_owned(), text }]);
    }
}
