//! Connections are told when they begin and when they end.

use serde_json::Value;

use crate::{
    between, loaded,
    support::{
        Attempt::Tcp,
        Family, Scene,
        Seen::{Answered, Refused, Silent},
        check, exchange,
        policy::{documents, from, ingress},
        translated::{host_port, published, service, virtual_address},
    },
};

#[test]
fn new_connection_and_denial_are_told_with_their_rules() {
    let Scene { host, a, b, c, .. } = &loaded();
    let _server = b.serve_tcp(80);
    let mut watch = host.observe(&[]);
    for family in [Family::V4, Family::V6] {
        check(&[(a, Tcp(b.at(family, 80)), Answered), (c, Tcp(b.at(family, 80)), Silent)]);
        let address = a.ip(family).to_string();
        let opened = watch.event("a to b", |event| {
            between("new", "a", "b", 80)(event) && event["source"]["address"] == address.as_str()
        });
        assert_eq!(opened["verdict"], "allowed");
        assert_eq!((&opened["direction"], &opened["is_reply"]), (&Value::from("egress"), &Value::from(false)));
        assert_eq!(opened["rule"]["index"], 0);
        assert_eq!(opened["packets"], 1);
        let address = c.ip(family).to_string();
        let denied = watch.event("c to b", |event| {
            between("drop", "c", "b", 80)(event) && event["source"]["address"] == address.as_str()
        });
        assert_eq!((&denied["verdict"], &denied["drop_reason"]), (&"denied".into(), &"policy-ingress".into()));
        assert_eq!(denied["rule"]["index"], Value::Null, "{denied}");
        let source = denied["rule"]["source"].as_str().expect("a file and its line");
        assert!(source.contains("load.yaml:"), "{source}");
        let explanation = denied["explanation"].as_str().expect("words");
        assert!(explanation.contains("no rule allows tcp/80 from default/c"), "{explanation}");
        assert_eq!((&denied["at"], &denied["was_allowed"]), (&"default/c".into(), &false.into()));
    }
    watch.end();
    assert_eq!(watch.sum("lost", "lost"), 0);
}

#[test]
fn closed_connection_is_told_once_with_the_totals_of_both_directions() {
    let Scene { host, a, b, .. } = &loaded();
    let _server = b.serve_tcp(80);
    for filter in [&["--type", "closed"][..], &[]] {
        let mut watch = host.observe(filter);
        let (_, counts) = host.counted(|| {
            check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
            watch.event("the end", between("closed", "a", "b", 80));
        });
        watch.end();
        let closed = watch.all("closed");
        assert_eq!(closed.len(), 1, "{closed:#?}");
        let closed = closed[0];
        assert_eq!(closed["tcp_state"], "CLOSED", "{closed}");
        let total = closed["packets"].as_u64().unwrap() + closed["reply_packets"].as_u64().unwrap();
        assert_eq!(total, counts.of("egress passed direct"), "{closed}");
        // SYN, ACK, request, FIN at least, and what answers them
        assert!(closed["packets"].as_u64().unwrap() >= 4 && closed["reply_packets"].as_u64().unwrap() >= 3, "{closed}");
        let flow = |flow: &&Value| flow["source"]["port"] == closed["source"]["port"] && flow["is_reply"] == false;
        let flow = host.flows().iter().find(flow).expect("its entry").clone();
        assert_eq!((&flow["packets"], &flow["bytes"]), (&closed["packets"], &closed["bytes"]));
    }
}

#[test]
fn connection_that_a_load_revokes_is_told_as_one_that_was_allowed() {
    let Scene { host, a, b, .. } = &loaded();
    let _server = b.serve_tcp(80);
    let mut stream = a.connect(&b.at(Family::V4, 80));
    assert_eq!(exchange(&mut stream), Answered);
    let mut watch = host.observe(&["reason:policy-*"]);
    host.load(&[a, b], &[ingress("b", &[])]);
    assert_eq!(exchange(&mut stream), Silent);
    let revoked = watch.event("the revoked connection", between("drop", "a", "b", 80));
    assert_eq!((&revoked["was_allowed"], &revoked["current"]), (&true.into(), &true.into()));
    watch.end();
}

#[test]
fn translation_is_told_with_the_service() {
    let scene = Scene::bridged();
    let Scene { host, a, b, c, .. } = &scene;
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: b}\n  \
                   clusterIP: 10.96.0.10\n  ports: [{port: 80, targetPort: 8080}]\n";
    let policies = [service.to_owned(), ingress("b", &[from("a", &["8080/TCP"])])];
    let path = host.documents("load.yaml", &documents(&scene.all(), &policies));
    host.netpol(&["load", "--uplink", "v-outside", &path]).ok();
    let _server = b.serve_tcp(8080);
    let mut watch = host.observe(&[]);
    check(&[(a, Tcp("10.96.0.10:80".into()), Answered), (c, Tcp("10.96.0.10:80".into()), Silent)]);
    let told = watch.event("a to the service", |event| event["type"] == "new" && event["source"]["name"] == "a");
    assert_eq!((&told["service"], &told["destination"]["address"]), (&"default/web:80".into(), &"10.96.0.10".into()));
    assert_eq!(
        (&told["destination"]["name"], &told["translated"]["destination"]),
        (&"b".into(), &"10.0.0.20:8080".into())
    );
    let denied = watch.drop_of("policy-ingress");
    assert_eq!((&denied["service"], &denied["destination"]["name"]), (&"default/web:80".into(), &"b".into()));
    let closed = watch.event("the end", |event| event["type"] == "closed" && event["source"]["name"] == "a");
    assert!(closed["reply_packets"].as_u64().unwrap() >= 3, "{closed}");
    watch.end();
}

#[test]
fn refusal_is_told_as_its_client_asked() {
    let scene = Scene::bridged();
    let Scene { host, a, outside, .. } = &scene;
    scene.load_nat(&[], &[service("nobody"), published("nobody")]);
    let mut watch = host.observe(&["--type", "drop"]);
    for (client, to, port) in [(a, virtual_address(Family::V4), 80), (outside, host_port(Family::V4), 8000)] {
        check(&[(client, Tcp(to), Refused)]);
        let is_it = |event: &Value| event["drop_reason"] == "no-backend" && event["destination"]["port"] == port;
        let told = watch.event("the refusal", is_it);
        assert_eq!(told["source"]["address"], client.ip(Family::V4).to_string(), "{told}");
    }
    watch.end();
}

#[test]
fn recent_past_is_told_from_what_is_remembered() {
    let Scene { host, a, b, c, .. } = &loaded();
    let _server = b.serve_tcp(80);
    check(&[(c, Tcp(b.at(Family::V4, 80)), Silent)]);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
    let lines = |arguments: &[&str]| -> Vec<Value> {
        let told = host.netpol(&[&["observe", "-o", "json"], arguments].concat()).ok();
        told.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let told = lines(&["--last", "100", "to:b"]);
    let kinds: Vec<_> = told.iter().map(|event| (&event["type"], &event["source"]["name"])).collect();
    assert_eq!(kinds, [(&"drop".into(), &"c".into()), (&"flow".into(), &"a".into())], "the latest last");
    let last = lines(&["--last", "1", "to:b"]);
    assert!(last.len() == 1 && last[0]["source"] == told[1]["source"], "{last:#?}");
    assert!(lines(&["--last", "100", "--type", "drop", "reason:spoofed"]).is_empty());
    assert!(!host.is_observed());
}
