//! Files, documents, kinds, names, endpoints: everything around the policies.

use std::{fs, path::PathBuf};

use super::{endpoint, errors, load, network_policy, only_error, show, source, warnings, world};
use crate::{
    format::{Invalid, parse, read},
    model::{Attachment, EndpointPort, Protocol},
};

const ENDPOINT: &str = "\
apiVersion: netpol.dev/v1
kind: Endpoint
metadata:
  name: nginx-lb
  namespace: shop
  labels: {app: nginx, tier: edge}
spec:
  netns: nginx-lb
  interface: eth0
  addresses: [10.0.0.10, \"fd00::10\"]
  ports: [{name: http, port: 80, protocol: TCP}, {port: 53, protocol: UDP}]
";

#[test]
fn an_endpoint_is_read_whole() {
    let world = world(ENDPOINT);
    let endpoint = &world.endpoints[0];
    assert_eq!(endpoint.name.to_string(), "shop/nginx-lb");
    assert_eq!(endpoint.labels.get("tier").map(String::as_str), Some("edge"));
    assert_eq!(endpoint.addresses, ["10.0.0.10".parse::<std::net::IpAddr>().unwrap(), "fd00::10".parse().unwrap()]);
    let http = EndpointPort { name: Some("http".to_owned()), port: 80, protocol: Protocol::TCP };
    assert_eq!(endpoint.ports, [http, EndpointPort { name: None, port: 53, protocol: Protocol::UDP }]);
    let netns = PathBuf::from("/run/netns/nginx-lb");
    assert_eq!(endpoint.attachment, Some(Attachment { netns, interface: Some("eth0".to_owned()) }));
    assert_eq!(world.namespaces["shop"]["kubernetes.io/metadata.name"], "shop");
}

#[test]
fn an_endpoint_needs_no_spec_and_may_name_its_namespace_by_path() {
    let bare = world("apiVersion: netpol.dev/v1\nkind: Endpoint\nmetadata: {name: a}\n");
    assert_eq!(bare.endpoints[0].name.to_string(), "default/a");
    assert_eq!(bare.endpoints[0].attachment, None);
    let path = world(&endpoint("x", "a").replace("netns: a", "netns: /proc/1/ns/net"));
    assert_eq!(path.endpoints[0].attachment.as_ref().unwrap().netns, PathBuf::from("/proc/1/ns/net"));
}

#[test]
fn what_is_wrong_with_an_endpoint_is_said_at_its_place() {
    for (from, to, wanted) in [
        ("netns: nginx-lb", "netns: a/b", "8:10 `a/b` is no network namespace"),
        ("eth0", "an-interface-of-17", "9:14 `an-interface-of-17` is no name of an interface"),
        ("10.0.0.10", "10.0.0.10/24", "10:15 `10.0.0.10/24` is not an address"),
        ("\"fd00::10\"", "10.0.0.10", "10:26 `10.0.0.10` is given twice"),
        ("port: 53", "port: 66000", "11:57 66000 is not a port"),
        ("{port: 53, protocol: UDP}", "{name: http, port: 81}", "11:57 two TCP ports are named `http`"),
        ("labels: {app: nginx", "labels: {app: -nginx", "6:17 `-nginx` is not a valid label value"),
        ("name: nginx-lb", "name: NginX", "4:9 `NginX` is not a valid name"),
        ("namespace: shop", "namespace: a.b", "5:14 `a.b` is not a valid name"),
        ("  name: nginx-lb\n", "", "4:3 `name` is missing"),
        ("spec:", "specs:", "7:1 unknown field `specs`"),
    ] {
        assert_eq!(only_error(&ENDPOINT.replacen(from, to, 1)), wanted);
    }
}

#[test]
fn an_unknown_kind_names_the_nearest() {
    let head = |api: &str, kind: &str| errors(&format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: a}}\n"));
    assert_eq!(
        head("networking.k8s.io/v1", "NetworkPolicies"),
        ["2:7 `networking.k8s.io/v1` has no kind `NetworkPolicies` | did you mean `NetworkPolicy`?"]
    );
    assert_eq!(
        head("networking.k8s.io/v1beta1", "ClusterNetworkPolicy"),
        [
            "1:13 `ClusterNetworkPolicy` of `networking.k8s.io/v1beta1` is not known | did you mean `policy.networking.k8s.io/v1alpha2`?"
        ]
    );
    assert_eq!(
        head("crd.projectcalico.org/v1", "GlobalNetworkPolicy"),
        [
            "1:13 `GlobalNetworkPolicy` of `crd.projectcalico.org/v1` is not known | did you mean `projectcalico.org/v3`?"
        ]
    );
    let unknown = head("apps/v1", "Deployment");
    assert!(unknown[0].starts_with("2:7 `apps/v1 Deployment` is no kind of document that netpol knows"), "{unknown:?}");
}

#[test]
fn a_document_without_kind_name_or_shape_is_refused() {
    assert_eq!(errors("metadata: {name: a}\n"), ["1:1 `apiVersion` is missing", "1:1 `kind` is missing"]);
    assert_eq!(only_error("- a\n"), "1:1 a document is a map that begins with `apiVersion:` and `kind:`, found a list");
    assert_eq!(only_error("apiVersion: v1\nkind: Namespace\n"), "1:1 `metadata` is missing");
    assert_eq!(only_error("apiVersion: v1\nkind: Namespace\nmetadata: {}\n"), "3:11 `name` is missing");
    assert_eq!(only_error("# nothing\n---\n"), "1:1 no document here");
}

#[test]
fn two_objects_of_one_name_name_both_places() {
    let text = format!("{}---\n{}", network_policy("{}"), network_policy("{}"));
    assert_eq!(
        errors(&text),
        ["8:18 there are two of NetworkPolicy `x/p` | the first is at t.yaml:3:18; rename or remove one of them"]
    );
    let calico = super::calico_policy("{}");
    assert!(load(&format!("{}---\n{calico}", network_policy("{}"))).is_ok(), "of different groups");
    let other = network_policy("{}").replace("namespace: x", "namespace: y");
    assert!(load(&format!("{}---\n{other}", network_policy("{}"))).is_ok(), "of different namespaces");
}

#[test]
fn a_key_given_twice_is_an_error() {
    assert_eq!(
        errors("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\nkind: Namespace\n"),
        ["4:1 `kind` is given twice, first in line 2 | keep one of the two"]
    );
}

#[test]
fn a_syntax_error_hides_no_other_document() {
    let text = format!("a: [b\n---\n{}...\n---\nkind: {{\n", network_policy("{podSelecter: {}}"));
    let places: Vec<String> =
        errors(&text).iter().map(|error| error.split(' ').next().unwrap_or("").to_owned()).collect();
    assert_eq!(places, ["1:4", "6:8", "9:7"]);
}

#[test]
fn documents_may_begin_with_directives_marks_and_comments() {
    let text = format!("\u{feff}%YAML 1.2\n--- # one\n{}...\n# two\n---\n{}", network_policy("{}"), endpoint("x", "a"));
    let loaded = load(&text).expect("valid");
    assert_eq!((loaded.documents, loaded.policies, loaded.world.endpoints.len()), (2, 1, 1));
}

#[test]
fn lines_may_end_as_on_windows() {
    let text = format!("{}---\n{}", network_policy("{podSelecter: {}}"), endpoint("x", "a")).replace('\n', "\r\n");
    assert_eq!(only_error(&text), "4:8 unknown field `podSelecter`");
}

#[test]
fn a_list_is_its_items_and_json_is_yaml() {
    let text = "{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\
                {\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}},\
                {\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"b\", \"uid\": \"1\"}, \"status\": {}}]}";
    assert_eq!(world(text).namespaces.len(), 2);
}

#[test]
fn anchors_aliases_and_merges_are_read() {
    let text = "apiVersion: netpol.dev/v1\nkind: Endpoint\nmetadata: {name: a, labels: &l {app: a, x: \"1\"}}\n\
                spec: {netns: &n ns, interface: *n}\n";
    assert_eq!(world(text).endpoints[0].attachment.as_ref().unwrap().interface.as_deref(), Some("ns"));
    let merged = "apiVersion: v1\nkind: Namespace\nmetadata:\n  annotations: &a {k: v, l: w}\n  labels:\n    <<: *a\n    k: own\n  name: n\n";
    let world = world(merged);
    assert_eq!((world.namespaces["n"]["k"].as_str(), world.namespaces["n"]["l"].as_str()), ("own", "w"));
}

#[test]
fn numbers_and_booleans_are_no_strings_unless_quoted_or_tagged() {
    let labels =
        |value: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {{k: {value}}}}}\n");
    for value in ["\"1\"", "'yes'", "!!str 1", "1a", "y", "1.2.3", ""] {
        assert_eq!(errors(&labels(value)), Vec::<String>::new(), "{value}");
    }
    for value in ["1", "1.5", "-3", "true", "No", "on"] {
        assert!(only_error(&labels(value)).contains("must be a string"), "{value}");
    }
    assert!(errors(&labels("on"))[0].ends_with("| write `\"on\"`"));
    assert!(only_error(&labels("!mine x")).contains("the tag `!mine` has no meaning here"));
}

#[test]
fn a_byte_that_is_no_utf8_has_a_line_and_a_column() {
    let text = b"apiVersion: v1\nkind: Namespace\nmetadata: {name: \xc3\xa9\xff}\n".to_vec();
    let Err(Invalid { errors, .. }) = parse(vec![crate::format::Source { name: "t".to_owned(), text }]) else {
        panic!("invalid UTF-8 was accepted")
    };
    assert_eq!(show(&errors), ["3:19 not UTF-8: the byte 0xff | save the file as UTF-8"]);
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let text = network_policy(
        "\n  podSelector: {matchLabels: {app: b}}\n  ingress:\n    - from: [{podSelector: {matchLabels: {app: c}}}]\n      ports: [{port: http}]",
    ) + &endpoint("x", "a");
    assert_eq!(
        warnings(&text),
        [
            "1:1 `p` selects no endpoint | it has no effect until an endpoint has such labels",
            "7:7 nothing that is loaded is selected as the rule's source | neither an endpoint nor a network set has such labels",
            "7:7 no endpoint declares a port named `http` | a rule about it never matches; name it in `spec.ports` of an Endpoint",
        ]
    );
    let elsewhere = network_policy("{}") + &endpoint("y", "a");
    assert_eq!(
        warnings(&elsewhere),
        [
            "1:1 `p` is in namespace `x`, where nothing is | no Namespace and no Endpoint mentions it; is it spelt right?"
        ]
    );
    assert_eq!(warnings(&network_policy("{}")), Vec::<String>::new(), "of policies alone nothing can be said");
}

#[test]
fn a_folder_is_read_in_order_and_each_file_once() {
    let folder = std::env::temp_dir().join(format!("npt-format-{}", std::process::id()));
    fs::create_dir_all(folder.join("b")).unwrap();
    fs::write(folder.join("b/1.yml"), network_policy("{}")).unwrap();
    fs::write(
        folder.join("a.json"),
        "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"x\"}}",
    )
    .unwrap();
    fs::write(folder.join("README.md"), "no document").unwrap();
    fs::write(folder.join(".hidden.yaml"), "no: document").unwrap();
    let loaded = read(&[folder.clone(), folder.join("a.json")]);
    let missing = read(&[folder.join("b"), folder.join("c.yaml")]);
    fs::write(folder.join("comment.yaml"), "# nothing yet\n").unwrap();
    let beside = read(std::slice::from_ref(&folder));
    let alone = read(&[folder.join("a.json"), folder.join("comment.yaml")]);
    fs::remove_file(folder.join("b/1.yml")).unwrap();
    let empty = read(&[folder.join("b")]);
    fs::remove_dir_all(&folder).unwrap();
    let loaded = loaded.expect("valid");
    assert_eq!(loaded.documents, 2);
    assert!(loaded.sources[0].name.ends_with("a.json") && loaded.sources[1].name.ends_with("b/1.yml"));
    let missing = missing.expect_err("a path that does not exist");
    assert_eq!(show(&missing.errors), ["0:0 No such file or directory (os error 2)"]);
    assert_eq!(beside.expect("valid").documents, 2, "a file without documents among others");
    let alone = alone.expect_err("a path without documents");
    assert_eq!(show(&alone.errors), ["1:1 no document here | a document begins with `apiVersion:` and `kind:`"]);
    let empty = empty.expect_err("a folder without documents");
    assert_eq!(
        show(&empty.errors),
        ["0:0 no policy documents below this folder | files here end in .yaml, .yml, .json"]
    );
}

#[test]
fn errors_of_all_sources_are_reported_in_their_order() {
    let bad = network_policy("{podSelecter: {}}");
    let invalid = parse(vec![source("b.yaml", &bad), source("a.yaml", "a: [")]).expect_err("both are wrong");
    let files: Vec<&str> = invalid.errors.iter().map(|error| &*error.origin.file).collect();
    assert_eq!(files, ["a.yaml", "b.yaml"]);
}
