//! Documents in, worlds or exact positions out.

use super::{Invalid, Loaded, Source, parse};

fn load(text: &str) -> Result<Loaded, Invalid> {
    parse(vec![Source { name: "t.yaml".to_owned(), text: text.as_bytes().to_vec() }])
}

/// `line:column message | help` of every error.
fn errors(text: &str) -> Vec<String> {
    let Err(invalid) = load(text) else { return vec![] };
    invalid
        .errors
        .iter()
        .map(|e| {
            let help = e.help.as_ref().map(|help| format!(" | {help}")).unwrap_or_default();
            format!("{}:{} {}{help}", e.origin.line, e.origin.column, e.message)
        })
        .collect()
}

#[test]
fn two_documents_are_two_objects() {
    let loaded = load("apiVersion: netpol.dev/v1\nkind: Endpoint\nmetadata: {name: a}\nspec: {netns: a}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny}\nspec: {podSelector: {}}\n").unwrap();
    assert_eq!(loaded.world.endpoints.len(), 1);
    assert_eq!(loaded.world.tiers.len(), 1);
    assert_eq!(loaded.policies, 1);
}

#[test]
fn a_misspelt_field_names_the_nearest_one() {
    let text =
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny}\nspec:\n  podSelecter: {}\n";
    assert_eq!(errors(text), ["5:3 unknown field `podSelecter` | did you mean `podSelector`?"]);
}
