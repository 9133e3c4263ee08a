//! Classifiers on interfaces, by TCX and by clsact: the same policy holds, nothing of others is
//! touched, and changing from one way to the other leaves no packet unjudged.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    net::UdpSocket,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use aya::programs::{
    SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
};
use netpol_common::tables::IfIndex;
use netpol_user::datapath::{Datapath, Error, Hook, Pins, Role, Way};
use support::{Endpoint, Host, Ran, Seen, pair};

/// `b` answers `a` on port 80, and nobody else.
const ONLY_A: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: b, namespace: shop}
spec:
  podSelector: {matchLabels: {app: b}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: a}}}]
    ports: [{port: 80, protocol: TCP}, {port: 53, protocol: UDP}]
";
/// `b` answers nobody.
const NOBODY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: b, namespace: shop}
spec: {podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress]}
";
/// A program of somebody else that passes every packet on: it returns -1.
const PASSES_ON: &str = "1,6 0 0 4294967295";

struct Shop {
    host: Host,
    a: Endpoint,
    b: Endpoint,
    c: Endpoint,
}

impl Shop {
    fn new() -> Self {
        let (host, a, b) = pair();
        let c = host.numbered("c", 30);
        Self { host, a, b, c }
    }

    /// A file with the three endpoints and `policy`.
    fn documents(&self, policy: &str) -> String {
        let mut text = String::new();
        for endpoint in [&self.a, &self.b, &self.c] {
            let (name, netns) = (&endpoint.name, endpoint.netns().display());
            text.push_str(&format!(
                "apiVersion: netpol.dev/v1\nkind: Endpoint\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\nspec: {{netns: \"{netns}\"}}\n---\n"
            ));
        }
        self.host.documents("shop.yaml", &(text + policy))
    }

    fn load(&self, policy: &str, flags: &[&str]) -> serde_json::Value {
        let documents = self.documents(policy);
        let ran = self.host.netpol(&[&["load", &documents, "-o", "json"], flags].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.json()
    }

    /// The programs of TCX on both sides of an interface.
    fn programs(&self, interface: &str) -> Vec<String> {
        let sides = [TcAttachType::Ingress, TcAttachType::Egress];
        let query = |side| SchedClassifier::query_tcx(interface, side).unwrap().1;
        let programs = self.host.namespace.enter(|| sides.map(query)).unwrap();
        programs.iter().flatten().map(|program| program.name_as_str().unwrap().to_owned()).collect()
    }

    /// What `tc` shows of one side of an interface.
    fn filters(&self, interface: &str, side: &str) -> String {
        self.host.run("tc", &["filter", "show", "dev", interface, side])
    }

    /// The numbers of the TCX links that are pinned.
    fn links(&self) -> BTreeMap<String, u32> {
        let entries = fs::read_dir(self.host.bpffs().join("links")).unwrap().map(Result::unwrap);
        let id = |entry: fs::DirEntry| {
            let link = PinnedLink::from_pin(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), FdLink::from(link).info().unwrap().id())
        };
        entries.map(id).collect()
    }

    fn status(&self) -> serde_json::Value {
        self.host.netpol(&["status", "-o", "json"]).json()
    }

    #[track_caller]
    fn assert_only_a_is_answered(&self) {
        let _servers = (self.b.serve_tcp(80), self.b.serve_udp(53));
        for (client, expected) in [(&self.a, Seen::Answered), (&self.c, Seen::Silent)] {
            for to in ["10.0.0.20", "[fd00::20]"] {
                assert_eq!(client.tcp(&format!("{to}:80")), expected, "{} to {to}", client.name);
            }
            assert_eq!(client.udp("10.0.0.20:53"), expected, "{}", client.name);
        }
        assert_eq!(self.a.ping(self.b.ipv4()), Seen::Silent);
        assert_eq!(self.b.ping(self.c.ipv4()), Seen::Answered);
    }
}

fn allows_and_denies(way: &str) {
    let shop = Shop::new();
    for forwarding in ["direct", "stack"] {
        shop.load(ONLY_A, &["--attach", way, "--forwarding", forwarding]);
        shop.assert_only_a_is_answered();
    }
    let status = shop.status();
    assert_eq!(status["enforced"], true, "{status}");
    let says_cls = status["settings"].as_array().unwrap().iter().any(|setting| setting == "attach cls");
    assert_eq!(says_cls, way == "cls");
}

fn reload_attaches_nothing_anew_and_changes_the_policy(way: &str) {
    let shop = Shop::new();
    let first = shop.load(ONLY_A, &["--attach", way]);
    assert_eq!(first["attached"].as_array().unwrap().len(), 3);
    let again = shop.load(ONLY_A, &["--attach", way]);
    assert_eq!((&again["changed"], &again["attached"]), (&false.into(), &serde_json::json!([])));
    let _server = shop.b.serve_tcp(80);
    assert_eq!(shop.a.tcp("10.0.0.20:80"), Seen::Answered);
    let other = shop.load(NOBODY, &["--attach", way]);
    assert_eq!((&other["changed"], &other["attached"]), (&true.into(), &serde_json::json!([])));
    assert_eq!(shop.a.tcp("10.0.0.20:80"), Seen::Silent);
}

fn endpoint_that_is_no_longer_wanted_is_left(way: &str) {
    let shop = Shop::new();
    shop.load(ONLY_A, &["--attach", way]);
    let _server = shop.b.serve_tcp(80);
    assert_eq!(shop.c.tcp("10.0.0.20:80"), Seen::Silent);
    let nothing = shop.host.documents("shop.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    let report = shop.host.netpol(&["load", &nothing, "--attach", way, "-o", "json"]).json();
    assert_eq!(shop.programs("v-c"), [""; 0], "when it returns nothing is attached");
    assert_eq!(report["detached"], 3, "{report}");
    assert_eq!(shop.c.tcp("10.0.0.20:80"), Seen::Answered);
}

fn unload_leaves_filters_of_others(way: &str) {
    let shop = Shop::new();
    shop.host.run("tc", &["qdisc", "add", "dev", "v-b", "clsact"]);
    let foreign = ["filter", "add", "dev", "v-b", "egress", "prio", "7", "bpf", "da", "bytecode", PASSES_ON];
    shop.host.run("tc", &foreign);
    let before = shop.filters("v-b", "egress");
    shop.load(ONLY_A, &["--attach", way]);
    assert_eq!(shop.status()["enforced"], true);
    shop.host.netpol(&["unload"]).ok();
    assert_eq!(shop.filters("v-b", "egress"), before);
    for interface in ["v-a", "v-c"] {
        assert_eq!(shop.filters(interface, "ingress") + &shop.filters(interface, "egress"), "");
        assert!(!shop.host.run("tc", &["qdisc", "show", "dev", interface]).contains("clsact"));
    }
    assert!(!shop.host.bpffs().exists());
    let _server = shop.b.serve_tcp(80);
    assert_eq!(shop.c.tcp("10.0.0.20:80"), Seen::Answered);
}

fn nothing_is_attached_when_unload_returns(way: &str) {
    let shop = Shop::new();
    let _server = shop.b.serve_tcp(80);
    for _ in 0..5 {
        shop.load(ONLY_A, &["--attach", way]);
        assert_eq!(shop.programs("v-b").len(), if way == "tcx" { 2 } else { 0 });
        let state = shop.host.folder().join("state");
        shop.host.netpol(&["unload"]).ok();
        assert_eq!(shop.programs("v-b"), [""; 0]);
        // the first packet, not one after some tries
        assert_eq!(shop.c.tcp("10.0.0.20:80"), Seen::Answered);
        assert!(!state.exists() && !shop.host.bpffs().exists());
    }
}

/// Classifiers of another build look like those of a state that names another version.
fn upgrade_replaces_in_place(way: &str) {
    let shop = Shop::new();
    shop.load(ONLY_A, &["--attach", way]);
    let (links, filters) = (shop.links(), shop.filters("v-b", "egress"));
    let names = shop.host.folder().join("state/names-1.json");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&names).unwrap()).unwrap();
    state["version"] = 0.into();
    fs::write(&names, state.to_string()).unwrap();
    let report = shop.load(ONLY_A, &["--attach", way]);
    assert_eq!(report["attached"].as_array().unwrap().len(), 3, "{report}");
    assert_eq!(shop.links(), links);
    let handle = |filters: &str| -> Vec<String> {
        let words = filters.split_whitespace().skip_while(|word| *word != "handle");
        words.take(3).map(ToOwned::to_owned).collect()
    };
    let replaced = shop.filters("v-b", "egress");
    assert_eq!(replaced.lines().count(), filters.lines().count(), "{replaced}");
    assert_eq!(handle(&replaced), handle(&filters));
    assert_eq!(replaced != filters, way == "cls", "another program under the same handle: {replaced}");
    assert_eq!(shop.status()["enforced"], true);
    shop.assert_only_a_is_answered();
}

/// A veth that was made anew under the same name while a load was under way.
fn interface_that_only_has_the_name_is_left_alone(way: &str) {
    let shop = Shop::new();
    shop.load(ONLY_A, &["--attach", way]);
    shop.host
        .namespace
        .enter(|| {
            let mut datapath = Datapath::open(&Pins::at(shop.host.bpffs())).unwrap();
            let way = if way == "tcx" { Way::Tcx } else { Way::Cls };
            let hook = Hook { interface: "br0".to_owned(), ifindex: IfIndex(9_999), role: Role::Workload };
            let error = datapath.attach(&hook, way).unwrap_err();
            if way == Way::Tcx {
                assert!(matches!(&error, Error::Gone { interface } if interface == "br0"), "{error:?}");
            }
        })
        .unwrap();
    assert_eq!(shop.programs("br0"), [""; 0]);
    assert_eq!(shop.filters("br0", "ingress") + &shop.filters("br0", "egress"), "");
    assert!(!shop.host.bpffs().join("links/9999-from_workload").exists());
}

macro_rules! both_ways {
    ($($test:ident),* $(,)?) => {
        mod tcx {
            $(#[test] fn $test() { super::$test("tcx") })*
        }
        mod cls {
            $(#[test] fn $test() { super::$test("cls") })*
        }
    };
}

both_ways!(
    allows_and_denies,
    reload_attaches_nothing_anew_and_changes_the_policy,
    endpoint_that_is_no_longer_wanted_is_left,
    unload_leaves_filters_of_others,
    nothing_is_attached_when_unload_returns,
    interface_that_only_has_the_name_is_left_alone,
    upgrade_replaces_in_place,
);

#[test]
fn unload_and_load_at_once_end_in_one_of_both() {
    let shop = Shop::new();
    let documents = shop.documents(ONLY_A);
    for _ in 0..8 {
        thread::scope(|scope| {
            let loading = scope.spawn(|| shop.host.netpol(&["load", &documents]));
            let unloading = scope.spawn(|| shop.host.netpol(&["unload"]));
            unloading.join().unwrap().ok();
            loading.join().unwrap().ok();
        });
        let state = shop.host.folder().join("state");
        let enforced = shop.status()["enforced"] == true;
        assert_eq!((state.exists(), shop.programs("v-b").len()), (enforced, if enforced { 2 } else { 0 }));
    }
}

#[test]
fn newest_of_two_instances_is_in_front_and_each_removes_its_own() {
    let shop = Shop::new();
    let second = shop
        .host
        .bpffs()
        .with_file_name(format!("{}-second", shop.host.bpffs().file_name().unwrap().to_string_lossy()));
    let state = shop.host.folder().join("second");
    let other = |arguments: &[&str]| {
        let instance = ["--bpffs", second.to_str().unwrap(), "--state", state.to_str().unwrap()];
        shop.host.run(env!("CARGO_BIN_EXE_netpol"), &[&instance[..], arguments].concat())
    };
    shop.load(ONLY_A, &["--attach", "cls"]);
    // packets meet TCX before clsact
    for way in ["cls", "tcx"] {
        other(&["load", &shop.documents(ONLY_A), "--attach", way]);
        let status = shop.status();
        assert_eq!(status["enforced"], false);
        let problem = status["problems"][0].as_str().unwrap();
        assert!(problem.contains("is in front of netpol"), "{problem}");
        shop.assert_only_a_is_answered();
        other(&["unload"]);
        assert_eq!(shop.status()["enforced"], true);
        shop.assert_only_a_is_answered();
    }
}

#[test]
fn filter_of_another_kind_in_front_is_reported() {
    let shop = Shop::new();
    shop.host.run("tc", &["qdisc", "add", "dev", "v-c", "clsact"]);
    let foreign = ["filter", "add", "dev", "v-c", "ingress", "prio", "1", "u32", "match", "u32", "0", "0"];
    shop.host.run("tc", &[&foreign[..], &["classid", "1:1"]].concat());
    shop.load(ONLY_A, &["--attach", "cls"]);
    let status = shop.status();
    assert_eq!(status["enforced"], false);
    let problems = status["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].as_str().unwrap().contains("(a filter of kind u32) on v-c is in front"), "{problems:?}");
    shop.host.run("tc", &["filter", "del", "dev", "v-c", "ingress", "prio", "1"]);
    assert_eq!(shop.status()["enforced"], true);
}

#[test]
fn program_that_came_later_at_the_same_priority_is_in_front() {
    let shop = Shop::new();
    shop.load(ONLY_A, &["--attach", "cls"]);
    shop.host.run("tc", &["filter", "add", "dev", "v-c", "ingress", "prio", "1", "bpf", "da", "bytecode", PASSES_ON]);
    assert_eq!(shop.status()["enforced"], false);
}

#[test]
fn filter_that_somebody_removed_is_missed_and_comes_back() {
    let shop = Shop::new();
    shop.load(ONLY_A, &["--attach", "cls"]);
    shop.host.run("tc", &["qdisc", "del", "dev", "v-b", "clsact"]);
    let status = shop.status();
    assert_eq!(status["enforced"], false);
    assert!(status["problems"][0].as_str().unwrap().contains("nothing is attached to v-b"), "{status}");
    assert_eq!(shop.load(ONLY_A, &["--attach", "cls"])["attached"], serde_json::json!(["v-b"]));
    shop.assert_only_a_is_answered();
}

#[test]
fn unload_elsewhere_is_refused_because_filters_would_stay() {
    let shop = Shop::new();
    shop.load(ONLY_A, &["--attach", "cls"]);
    let state = shop.host.folder().join("state");
    let instance = ["--bpffs", shop.host.bpffs().to_str().unwrap(), "--state", state.to_str().unwrap(), "unload"];
    let elsewhere = shop.c.enter(|| std::process::Command::new(env!("CARGO_BIN_EXE_netpol")).args(instance).output());
    let elsewhere = elsewhere.unwrap();
    assert_eq!(elsewhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&elsewhere.stderr).contains("another network namespace"));
    shop.assert_only_a_is_answered();
}

/// `c` floods `b` while the way changes: not one packet gets through, and not one of `a` is lost.
#[test]
fn changing_the_way_under_a_flood_leaks_nothing() {
    let shop = Shop::new();
    shop.load(ONLY_A, &["--attach", "tcx"]);
    let receiver = shop.b.enter(|| UdpSocket::bind("0.0.0.0:53")).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let sender = |endpoint: &Endpoint| {
        let socket = endpoint.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.connect("10.0.0.20:53").unwrap();
        socket
    };
    let (denied, allowed) = (sender(&shop.c), sender(&shop.a));
    let (stop, sent, asked) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (mut leaked, mut heard) = (0u64, 0u64);
    let (documents, mut reports) = (shop.documents(ONLY_A), Vec::new());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // what the network does with it is not the sender's to know
                sent.fetch_add(u64::from(denied.send(b"denied").is_ok()), Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                asked.fetch_add(u64::from(allowed.send(b"allowed").is_ok()), Ordering::Relaxed);
                thread::sleep(Duration::from_micros(200));
            }
        });
        scope.spawn(|| {
            let mut buffer = [0; 64];
            loop {
                match receiver.recv(&mut buffer) {
                    Ok(length) if &buffer[..length] == b"allowed" => heard += 1,
                    Ok(_) => leaked += 1,
                    Err(_) if stop.load(Ordering::Relaxed) => break,
                    Err(_) => {}
                }
            }
        });
        for way in ["cls", "tcx", "cls", "tcx"] {
            reports.push(shop.host.netpol(&["load", &documents, "-o", "json", "--attach", way]));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (sent, asked) = (sent.into_inner(), asked.into_inner());
    for report in reports.iter().map(Ran::json) {
        assert_eq!(
            (report["attached"].as_array().map(Vec::len), &report["detached"]),
            (Some(3), &0.into()),
            "{report}"
        );
    }
    assert!(sent > 1000 && asked > 0, "{sent} denied and {asked} allowed packets were sent");
    assert_eq!((leaked, heard), (0, asked), "of {sent} denied packets and {asked} allowed ones");
    assert_eq!(shop.filters("v-b", "ingress") + &shop.filters("v-b", "egress"), "");
}
