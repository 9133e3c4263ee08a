//! Services, slices and pools.

use super::*;
use crate::model::{Expr, IpVersion, Target, Traffic};

/// A Service `x/s` with this spec in flow style; line 4 is its spec.
fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: x}}\nspec: {spec}\n")
}

/// A slice of `x/s` with these fields in flow style; line 4 has them.
fn slice(fields: &str) -> String {
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice,\n\
         metadata: {{name: e, namespace: x, labels: {{kubernetes.io/service-name: s}},\n\
         annotations: {{netpol.dev/weight: \"10\"}}}},\n{fields}}}\n"
    )
}

fn pool(name: &str, spec: &str) -> String {
    format!("apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

#[test]
fn every_field_of_a_service_that_means_something_is_read() {
    let text = service(
        "{type: NodePort, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd96::a\"], externalIPs: [192.0.2.1], \
         selector: {app: web, tier: edge}, sessionAffinity: ClientIP, ipFamilies: [IPv4], \
         sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, internalTrafficPolicy: Local, \
         externalTrafficPolicy: Cluster, publishNotReadyAddresses: true, ports: [\
         {name: http, port: 80, targetPort: web, nodePort: 8080}, {name: dns, port: 53, protocol: UDP, nodePort: 53}]}",
    );
    assert_eq!(warnings(&text), Vec::<String>::new());
    let world = world(&text);
    let [service] = world.services.as_slice() else { panic!("one service") };
    let addresses: Vec<_> = service.addresses.iter().map(|a| (a.address.to_string(), a.is_external)).collect();
    let expected = [("10.96.0.10", false), ("fd96::a", false), ("192.0.2.1", true)];
    assert_eq!(addresses, expected.map(|(address, is_external)| (address.to_owned(), is_external)));
    assert_eq!((service.internal_traffic, service.external_traffic), (Traffic::Local, Traffic::Cluster));
    let labels = ["app", "tier"].into_iter().zip(["web", "edge"]);
    let labels = labels.map(|(key, value)| Expr::Eq(key.to_owned(), value.to_owned())).collect();
    let selector = service.selector.as_ref().unwrap();
    assert_eq!((&selector.scope, &selector.labels), (&crate::model::Scope::Namespace("x".into()), &Expr::And(labels)));
    assert_eq!((service.affinity, service.family, service.publish_not_ready), (Some(60), Some(IpVersion::V4), true));
    let [http, dns] = service.ports.as_slice() else { panic!("two ports") };
    assert_eq!((http.port, &http.target, http.node_port), (80, &Target::Named("web".into()), Some(8080)));
    assert_eq!((dns.protocol, &dns.target, dns.node_port), (Protocol::UDP, &Target::Number(53), Some(53)));
}

#[test]
fn left_out_fields_of_a_service_mean_what_kubernetes_says() {
    let world = world(&service("{clusterIP: 10.96.0.1, selector: {}, sessionAffinity: ClientIP, ports: [{port: 80}]}"));
    let service = &world.services[0];
    assert_eq!(service.selector, None, "an empty selector selects nothing");
    assert_eq!(service.affinity, Some(10_800));
    assert_eq!((service.ports[0].protocol, &service.ports[0].target), (Protocol::TCP, &Target::Number(80)));
}

#[test]
fn headless_services_and_balanced_ones_are_understood() {
    let headless =
        service("{clusterIP: None, internalTrafficPolicy: Cluster, selector: {app: a}, ports: [{port: 80}]}");
    assert_eq!(warnings(&headless), Vec::<String>::new());
    assert_eq!(world(&headless).services[0].addresses, []);
    let balanced = "{type: LoadBalancer, loadBalancerIP: 192.0.2.9, externalTrafficPolicy: Local, ports: [{port: 80}]}";
    assert_eq!(warnings(&service(balanced)), Vec::<String>::new());
    assert_eq!(world(&service(balanced)).services[0].addresses[0].address.to_string(), "192.0.2.9");
    let nowhere = service("{ports: [{port: 80}]}");
    assert_eq!(
        warnings(&nowhere),
        ["3:18 service `x/s` has no address | give it a `clusterIP`, `externalIPs`, or `type: NodePort` and \
             `nodePort`s: nobody hands them out"]
    );
}

#[test]
fn what_a_service_cannot_mean_here_is_refused_with_the_place() {
    for (spec, expected) in [
        ("{type: ExternalName, externalName: a.b}", "4:14 `type: ExternalName` has no meaning without a DNS server"),
        ("{clusterIP: 10.0.0.999}", "4:19 `10.0.0.999` is not an address"),
        ("{clusterIP: 127.0.0.1}", "4:19 `127.0.0.1` is no address that everybody can reach"),
        ("{externalIPs: [\"fe80::1\"]}", "4:22 `fe80::1` is no address that everybody can reach"),
        ("{externalIPs: [224.0.0.1]}", "4:22 `224.0.0.1` is no address that everybody can reach"),
        (
            "{clusterIP: 10.0.0.1, clusterIPs: [10.0.0.2]}",
            "4:42 the first of `clusterIPs` is `10.0.0.1`, not `10.0.0.2`",
        ),
        ("{clusterIPs: [None, 10.0.0.2]}", "4:27 a service is headless or has addresses, not both"),
        ("{type: NodePort, clusterIP: None}", "4:24 a headless service publishes nothing"),
        ("{type: NodePort, ports: [{port: 80}]}", "4:32 `nodePort` is missing"),
        ("{type: NodePort, ports: [{port: 80, nodePort: 70000}]}", "4:53 70000 is not a port"),
        ("{clusterIP: 10.0.0.1, ports: [{port: 80, nodePort: 8080}]}", "4:58 `nodePort` belongs to `type: NodePort`"),
        ("{clusterIP: 10.0.0.1, ports: [{port: 80, protocol: SCTP}]}", "4:58 SCTP is not translated"),
        ("{clusterIP: 10.0.0.1, ports: [{port: 80, targetPort: \"80\"}]}", "4:60 `80` is not the name of a port"),
        ("{clusterIP: 10.0.0.1, ports: [{port: 80, targetPort: 0}]}", "4:60 0 is not a port"),
        ("{clusterIP: 10.0.0.1, ports: [{name: a, port: 80}, {name: a, port: 81}]}", "4:58 two ports are named `a`"),
        ("{clusterIP: 10.0.0.1, ports: [{name: a, port: 80}, {name: b, port: 80}]}", "4:58 port 80/TCP is given twice"),
        ("{clusterIP: 10.0.0.1, ports: [{name: a, port: 80}, {port: 81}]}", "4:58 `name` is missing"),
        (
            "{clusterIP: 10.0.0.1, externalTrafficPolicy: Local}",
            "4:29 `externalTrafficPolicy` has no meaning for a service that is not published outside",
        ),
        (
            "{clusterIP: None, externalTrafficPolicy: Cluster}",
            "4:25 `externalTrafficPolicy` has no meaning for a service that is not published outside",
        ),
        (
            "{clusterIP: None, internalTrafficPolicy: Local}",
            "4:25 `internalTrafficPolicy: Local` has no meaning for a headless service",
        ),
        ("{clusterIP: 10.0.0.1, internalTrafficPolicy: Nearby}", "4:52 `Nearby` is no `internalTrafficPolicy`"),
        (
            "{type: LoadBalancer, loadBalancerIP: 192.0.2.1, loadBalancerSourceRanges: [10.0.0.0/8]}",
            "4:55 `loadBalancerSourceRanges` has no meaning without a load balancer in front",
        ),
        ("{clusterIP: 10.0.0.1, loadBalancerIP: 192.0.2.1}", "4:45 `loadBalancerIP` belongs to `type: LoadBalancer`"),
        ("{clusterIP: 10.0.0.1, sessionAfinity: None}", "4:29 unknown field `sessionAfinity`"),
        (
            "{clusterIP: 10.0.0.1, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}",
            "4:80 `timeoutSeconds` goes from 1 to 86400, found 0",
        ),
    ] {
        assert_eq!(only_error(&service(spec)), expected, "{spec}");
    }
}

#[test]
fn slices_are_read_with_the_field_names_of_kubernetes() {
    let text = service("{clusterIP: 10.96.0.1, ports: [{port: 80}]}")
        + "---\n"
        + &slice(
            "addressType: IPv4, ports: [{name: \"\", port: 8080, protocol: TCP, appProtocol: http}],\n\
             endpoints: [{addresses: [192.0.2.7], conditions: {ready: true, serving: true}, nodeName: n, zone: z},\n\
             {addresses: [192.0.2.8], conditions: {ready: false}}, {addresses: [192.0.2.9]}]",
        );
    assert_eq!(warnings(&text), Vec::<String>::new());
    let world = world(&text);
    let slice = &world.slices[0];
    assert_eq!((slice.service.as_deref(), slice.weight), (Some("s"), 10));
    assert_eq!((slice.ports[0].name.as_ref(), slice.ports[0].port), (None, 8080));
    let endpoints: Vec<_> = slice.endpoints.iter().map(|e| (e.address.to_string(), e.ready)).collect();
    assert_eq!(endpoints, [("192.0.2.7".into(), true), ("192.0.2.8".into(), false), ("192.0.2.9".into(), true)]);
}

#[test]
fn what_is_wrong_with_a_slice_is_said_with_the_place() {
    for (fields, expected) in [
        ("endpoints: []", "1:1 `addressType` is missing"),
        ("addressType: FQDN", "4:14 `FQDN` is no `addressType`"),
        (
            "addressType: IPv6, endpoints: [{addresses: [192.0.2.7]}]",
            "4:45 `192.0.2.7` is no IPv6 address, which `addressType` says they are",
        ),
        (
            "addressType: IPv4, endpoints: [{addresses: [127.0.0.1]}]",
            "4:45 `127.0.0.1` is no address that everybody can reach",
        ),
        ("addressType: IPv4, endpoints: [{}]", "4:32 `addresses` is missing"),
        ("addressType: IPv4, ports: [{name: a}]", "4:28 `port` is missing"),
        ("addressType: IPv4, spec: {}", "4:26 an EndpointSlice has no `spec`"),
        ("addressType: IPv4, endpoint: []", "4:20 unknown field `endpoint`"),
    ] {
        assert_eq!(only_error(&slice(fields)), expected, "{fields}");
    }
    let text = slice("addressType: IPv4");
    let nobody = "1:1 slice `x/e` belongs to `x/s`, and there is no such service | nothing is done with it; is the label \
                  spelt right?";
    assert_eq!(warnings(&text), [nobody]);
    let unlabelled = text.replace("kubernetes.io/service-name: s", "");
    assert_eq!(
        warnings(&unlabelled),
        ["2:18 slice `x/e` belongs to no service | name its service in the label `kubernetes.io/service-name`"]
    );
}

#[test]
fn slices_and_services_that_do_not_meet_are_warnings() {
    let both = |port: &str| {
        service("{clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}")
            + "---\n"
            + &slice(&format!("addressType: IPv4, ports: [{port}], endpoints: [{{addresses: [192.0.2.7]}}]"))
    };
    assert_eq!(warnings(&both("{name: http, port: 80}")), Vec::<String>::new());
    let help = "nothing is sent there; give both the same name and protocol";
    for (port, called) in [
        ("{name: htpp, port: 80}", "TCP port named `htpp`"),
        ("{port: 80}", "TCP port without a name"),
        ("{name: http, port: 80, protocol: UDP}", "UDP port named `http`"),
    ] {
        let expected = format!("6:1 service `x/s` has no {called}, as slice `x/e` has | {help}");
        assert_eq!(warnings(&both(port)), [expected], "{port}");
    }
    let alone = service("{clusterIP: 10.96.0.1, ports: [{port: 80}]}");
    assert_eq!(
        warnings(&(alone.clone() + &endpoint("x", "a"))),
        ["1:1 service `x/s` has neither a selector nor an EndpointSlice | whoever calls it is refused"]
    );
    assert_eq!(warnings(&alone), Vec::<String>::new(), "of services alone nothing can be said");
}

#[test]
fn weights_are_annotations_from_one_to_a_hundred() {
    let weighted = |weight: &str| {
        format!(
            "apiVersion: netpol.dev/v1\nkind: Endpoint\n\
             metadata: {{name: a, annotations: {{other: 1, netpol.dev/weight: {weight}}}}}\n"
        )
    };
    assert_eq!(world(&weighted("\"100\"")).endpoints[0].weight, 100);
    assert_eq!(world(&endpoint("x", "a")).endpoints[0].weight, 1);
    for (weight, expected) in [
        ("\"0\"", "3:64 `0` is no weight"),
        ("\"101\"", "3:64 `101` is no weight"),
        ("heavy", "3:64 `heavy` is no weight"),
        ("5", "3:64 `netpol.dev/weight` must be a string, and `5` without quotes is a number"),
    ] {
        assert_eq!(only_error(&weighted(weight)), expected, "{weight}");
    }
}

#[test]
fn pools_inside_each_other_must_say_the_same() {
    let nat = "{cidr: 10.0.0.0/16, natOutgoing: true, ipipMode: Never, blockSize: 26}";
    let same = pool("a", nat) + "---\n" + &pool("b", "{cidr: 10.0.7.0/24, natOutgoing: true}");
    assert!(world(&same).pools.iter().all(|pool| pool.masquerades()));
    let disabled = pool("a", "{cidr: \"fd00::/64\", natOutgoing: true, disabled: true}");
    assert!(!world(&disabled).pools[0].masquerades());
    let apart = pool("a", nat) + "---\n" + &pool("b", "{cidr: 10.1.0.0/16}") + "---\n" + &pool("c", "{cidr: \"::/0\"}");
    assert_eq!(warnings(&apart), Vec::<String>::new());
    let other = pool("a", nat) + "---\n" + &pool("b", "{cidr: 10.0.7.0/24}");
    assert_eq!(
        errors(&other),
        [
            "9:14 pools `a` and `b` overlap and have different settings | the other is at t.yaml:4:14; make `natOutgoing` \
             and `disabled` the same, or the CIDRs apart"
        ]
    );
}

#[test]
fn two_services_at_one_place_are_an_error_that_names_both() {
    let two = |first: &str, second: &str| {
        errors(&(service(first) + "---\n" + &service(second).replace("name: s,", "name: t,")))
    };
    let (a, b) = ("{clusterIP: 10.96.0.1, ports: [{port: 80}]}", "{externalIPs: [10.96.0.1], ports: [{port: 80}]}");
    assert_eq!(
        two(a, b),
        ["9:22 services `x/s` and `x/t` both publish 10.96.0.1 port 80/TCP | the other is at t.yaml:4:19; give one \
             another address or port"]
    );
    let node = |port: u16, protocol: &str| {
        format!("{{type: NodePort, ports: [{{port: {port}, protocol: {protocol}, nodePort: 8080}}]}}")
    };
    assert_eq!(
        two(&node(80, "TCP"), &node(81, "TCP")),
        ["9:32 services `x/s` and `x/t` both publish node port 8080/TCP | the other is at t.yaml:4:32; give one \
             another address or port"]
    );
    assert_eq!(two(&node(80, "TCP"), &node(80, "UDP")), Vec::<String>::new());
    assert_eq!(two(a, "{clusterIP: 10.96.0.1, ports: [{port: 81}]}"), Vec::<String>::new());
}

#[test]
fn a_service_with_the_address_of_an_endpoint_is_an_error() {
    let endpoint =
        "---\napiVersion: netpol.dev/v1\nkind: Endpoint\nmetadata: {name: a}\nspec: {addresses: [10.0.0.10]}\n";
    let text = service("{clusterIP: 10.0.0.10, ports: [{port: 80}]}") + endpoint;
    assert_eq!(
        errors(&text),
        ["4:19 service `x/s` has the address of endpoint `default/a`, 10.0.0.10 | give the service an address that \
             nobody has"]
    );
}

#[test]
fn services_that_nobody_answers_are_warnings() {
    let to = |app: &str| {
        service(&format!("{{clusterIP: 10.96.0.1, selector: {{app: {app}}}, ports: [{{port: 80, targetPort: web}}]}}"))
    };
    assert_eq!(
        warnings(&(to("b") + &endpoint("x", "a") + &endpoint("y", "b"))),
        ["1:1 service `x/s` selects no endpoint | whoever calls it is refused until an endpoint of its namespace has \
             such labels"]
    );
    assert_eq!(
        warnings(&(to("a") + &endpoint("x", "a"))),
        [
            "4:58 no endpoint that `x/s` selects declares a TCP port `web` | name it in `spec.ports` of the Endpoints, or \
             write its number"
        ]
    );
    let declared = endpoint("x", "a").replace("{netns: a}", "{netns: a, ports: [{name: web, port: 8080}]}");
    assert_eq!(warnings(&(to("a") + &declared)), Vec::<String>::new());
    assert_eq!(warnings(&to("a")), Vec::<String>::new(), "of services alone nothing can be said");
}
