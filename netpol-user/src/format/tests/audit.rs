//! The annotation that makes a policy an audited one.

use super::*;

/// The same document with annotations.
fn annotated(document: &str, annotations: &str) -> String {
    document.replacen("metadata: {", &format!("metadata: {{annotations: {{{annotations}}}, "), 1)
}

const YES: &str = "netpol.dev/audit: \"true\"";

#[test]
fn every_kind_of_policy_can_be_audited() {
    let former = |kind: &str, name: &str, priority: &str| {
        format!(
            "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\n\
             spec: {{{priority}subject: {{namespaces: {{}}}}}}\n"
        )
    };
    let policies = [
        network_policy("{}"),
        cluster_policy(""),
        former("AdminNetworkPolicy", "p", "priority: 1, "),
        former("BaselineAdminNetworkPolicy", "default", ""),
        calico_policy("{}"),
        global_policy("{}"),
    ];
    for policy in &policies {
        let audit = |text: &str| only_policy(&world(text)).audit;
        assert!(!audit(policy), "{policy}");
        assert!(audit(&annotated(policy, YES)), "{policy}");
        assert!(audit(&annotated(policy, &format!("note: 1, {YES}, other/thing: x"))), "{policy}");
        assert!(!audit(&annotated(policy, "netpol.dev/audit: \"false\"")), "{policy}");
        assert!(!audit(&annotated(policy, "audit: \"true\"")), "{policy}");
    }
}

#[test]
fn staged_kinds_stay_audited_whatever_the_annotation_says() {
    for kind in ["StagedNetworkPolicy", "StagedGlobalNetworkPolicy", "StagedKubernetesNetworkPolicy"] {
        let namespace = if kind.contains("Global") { "" } else { ", namespace: x" };
        let staged =
            format!("apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: p{namespace}}}\nspec: {{}}\n");
        for annotations in ["", "netpol.dev/audit: \"false\"", YES] {
            assert!(only_policy(&world(&annotated(&staged, annotations))).audit, "{kind} {annotations}");
        }
    }
}

#[test]
fn what_is_neither_true_nor_false_is_an_error() {
    let said = |value: &str| only_error(&annotated(&network_policy("{}"), &format!("netpol.dev/audit: {value}")));
    assert_eq!(said("true"), "3:44 `netpol.dev/audit` must be a string, and `true` without quotes is a boolean");
    assert_eq!(said("\"yes\""), "3:44 `yes` is no `netpol.dev/audit`");
    assert_eq!(said("\"True\""), "3:44 `True` is no `netpol.dev/audit`");
}

#[test]
fn annotation_that_has_no_effect_is_told() {
    let misspelt = annotated(&network_policy("{}"), "netpol.dev/adit: \"true\"");
    assert_eq!(warnings(&misspelt), ["3:26 unknown annotation `netpol.dev/adit` | did you mean `netpol.dev/audit`?"]);
    let endpoint = annotated(endpoint("x", "web").trim_start_matches("---\n"), YES);
    assert_eq!(
        warnings(&endpoint),
        ["3:26 `netpol.dev/audit` has no effect on a document of kind `Endpoint` | it belongs to a policy"]
    );
}

#[test]
fn audited_policy_changes_no_verdict() {
    let denies = annotated(&network_policy("{podSelector: {matchLabels: {app: db}}}"), YES);
    let world = world(&[denies, endpoint("x", "web"), endpoint("x", "db")].concat());
    assert!(allowed(&world, "x/web", "x/db", 80));
}
