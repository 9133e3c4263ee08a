//! The kernel says something else, or cannot be asked.

use netpol_user::{
    compile::{Workload, compile},
    datapath::{Datapath, Pins},
    enforce::Instance,
    format::{self, Source},
    model::{probe::Place, row::Traffic},
    source::{Known, discover},
    state::{Names, State},
    trace::{self, Live, Target, explain},
};
use serde_json::json;

use super::{agreed, ask};
use crate::support::{
    Endpoint, Folder, Host, Scene,
    policy::{documents, from, ingress},
};

/// Publishes other policies behind netpol's back: its names say what they said before.
fn smuggle(host: &Host, endpoints: &[&Endpoint], policies: &[String]) {
    let text = documents(endpoints, policies);
    let source = Source { name: "smuggled.yaml".to_owned(), text: text.into_bytes() };
    let world = format::parse(vec![source]).expect("valid documents").world;
    let datapath = Datapath::open(&Pins::at(host.bpffs())).unwrap();
    let found = host.namespace.enter(|| discover(&world, Known::default())).unwrap().unwrap();
    let workloads: Vec<Workload> = found.workloads.iter().map(|found| found.workload.clone()).collect();
    let snapshot = compile(&world, &workloads, &found.host_addresses).unwrap();
    let live = datapath.live().unwrap();
    let state = State::at(&host.folder().join("state"));
    let names = state.read(live.generation.0).unwrap().expect("names");
    state.write(&Names { generation: live.generation.0 + 1, ..names }).unwrap();
    datapath.publish(&snapshot, live.settings).unwrap();
}

#[test]
fn verdict_that_is_not_the_rules_is_an_error() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    host.load(&scene.all(), &[ingress("b", &[from("a", &["80/TCP"])])]);
    assert_eq!(agreed(host, "c", "b", "80/tcp")["allowed"], false);
    smuggle(host, &scene.all(), &[]);
    let (code, said) = ask(host, "c", "b", "80/tcp");
    assert_eq!((code, &said["allowed"], &said["kernel"]["allowed"]), (1, &json!(false), &json!(true)), "{said:#}");
    let difference = said["kernel"]["differences"][0].as_str().unwrap();
    assert!(difference.contains("the rules deny it (isolated by NetworkPolicy default/b-ingress"), "{difference}");
    assert!(difference.contains("the kernel lets it pass, by no rule and no rule"), "{difference}");
    let told = host.netpol(&["trace", "--from", "c", "--to", "b", "--port", "80/tcp"]);
    assert!(told.code == 1 && told.stdout.contains("differs: tcp/80 from default/c to default/b"), "{told:?}");

    smuggle(host, &scene.all(), &[ingress("b", &[])]);
    let (code, said) = ask(host, "a", "b", "80/tcp");
    assert_eq!((code, &said["kernel"]["drop_reason"]), (1, &json!("policy-ingress")));
    let difference = said["kernel"]["differences"][0].as_str().unwrap();
    assert!(difference.contains("the rules allow it (rule 0 of NetworkPolicy default/b-ingress"), "{difference}");
    assert!(difference.contains("the kernel drops it: policy-ingress"), "{difference}");
    host.load(&[a, b], &[]);
    agreed(host, "a", "b", "80/tcp");
}

#[test]
fn another_program_in_front_and_missing_classifiers_are_errors() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    host.load_with(&["--attach", "cls"], &[a, b], &[]);
    agreed(host, "a", "b", "80/tcp");
    host.run("tc", &["qdisc", "del", "dev", "v-a", "clsact"]);
    let (code, said) = ask(host, "a", "b", "80/tcp");
    let expected = json!(["nothing of netpol is attached to v-a; run `netpol load` again"]);
    assert_eq!((code, &said["kernel"]["differences"]), (1, &expected), "{said:#}");
    assert_eq!(ask(host, "b", "a", "80/tcp").0, 0);
    let foreign =
        ["filter", "add", "dev", "v-b", "ingress", "prio", "1", "bpf", "da", "bytecode", "1,6 0 0 4294967295"];
    host.run("tc", &foreign);
    let (code, said) = ask(host, "b", "a", "80/tcp");
    assert_eq!(code, 1, "{said:#}");
    assert!(said["kernel"]["differences"][0].as_str().unwrap().contains("on v-b is in front of netpol"), "{said:#}");
}

#[test]
fn classifiers_of_another_build_are_an_error() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    host.load(&[a, b], &[]);
    // what another build would have pinned there: any program that is not this one
    let programs = host.bpffs().join("programs");
    std::fs::remove_file(programs.join("from_workload")).unwrap();
    std::fs::hard_link(programs.join("to_uplink"), programs.join("from_workload")).unwrap();
    let (code, said) = ask(host, "a", "b", "80/tcp");
    assert_eq!((code, &said["kernel"]["same_code"]), (1, &json!(false)), "{said:#}");
    let difference = said["kernel"]["differences"][0].as_str().unwrap();
    assert!(difference.contains("are not those of this netpol (from_workload differ)"), "{difference}");
}

#[test]
fn who_does_not_run_is_explained_and_the_kernel_not_asked() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    let gone = "apiVersion: netpol.dev/v1\nkind: Endpoint\nmetadata: {name: gone, labels: {app: gone}}\n\
                spec: {netns: npt-not-there}\n";
    host.load(&[a, b], &[gone.to_owned(), ingress("b", &[from("gone", &[])])]);
    for (from, to, allowed) in [("gone", "b", true), ("a", "gone", true)] {
        let (code, said) = ask(host, from, to, "80/tcp");
        assert_eq!(
            (code, &said["allowed"], &said["kernel"]["allowed"]),
            (0, &json!(allowed), &json!(null)),
            "{said:#}"
        );
        assert_eq!(said["kernel"]["not_asked"], "default/gone does not run");
    }
    let (code, said) = ask(host, "a", "b", "icmp/3/4");
    assert_eq!((code, &said["kernel"]["allowed"]), (0, &json!(null)));
    assert_eq!(said["kernel"]["not_asked"], "an ICMP error passes if the packet that it quotes did");
}

#[test]
fn what_cannot_be_asked_says_why() {
    let scene = Scene::bridged();
    let Scene { host, a, b, c, .. } = &scene;
    let trace = ["trace", "--from", "a", "--to", "b", "--port", "80/tcp"];
    let nothing = host.netpol(&trace);
    assert_eq!((nothing.code, nothing.stdout.as_str()), (1, ""));
    assert!(nothing.stderr.contains("run `netpol load PATH`"), "{}", nothing.stderr);
    host.load(&[a, b], &[]);
    let state = host.folder().join("state");
    let instance = ["--bpffs", host.bpffs().to_str().unwrap(), "--state", state.to_str().unwrap()];
    let arguments = [&instance[..], &trace].concat();
    let elsewhere = c.enter(|| std::process::Command::new(env!("CARGO_BIN_EXE_netpol")).args(&arguments).output());
    let elsewhere = elsewhere.unwrap();
    assert_eq!(elsewhere.status.code(), Some(1));
    let error = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert!(error.contains("another network namespace") && error.contains("nsenter"), "{error}");
    for (missing, expected) in [("bpf", "CAP_BPF"), ("net_admin", "CAP_NET_ADMIN"), ("perfmon", "CAP_PERFMON")] {
        // CAP_SYS_ADMIN stands for two of them
        let bounding = format!("--bounding-set=-{missing},-sys_admin");
        let less = [bounding.as_str(), "--inh-caps=-all", env!("CARGO_BIN_EXE_netpol")];
        let ran = host.command("setpriv", &[&less[..], &arguments].concat());
        assert_eq!(ran.status.code(), Some(1), "{missing}");
        let error = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(error.contains(expected) && error.contains("run it as root"), "{missing}: {error}");
    }
    assert!(
        Folder::with(&[]).netpol(&[&["--bpffs", "nowhere"][..], &trace].concat()).stderr.contains("nothing is loaded")
    );
}

#[test]
fn interface_that_is_gone_is_an_error_beside_the_explanation() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    host.load(&[a, b], &[]);
    host.net(async |net| net.delete("v-a").await);
    let (code, said) = ask(host, "a", "b", "80/tcp");
    assert_eq!((code, &said["allowed"], &said["kernel"]["allowed"]), (1, &json!(true), &json!(null)), "{said:#}");
    assert_eq!(said["kernel"]["differences"], json!(["v-a is gone, where it was loaded; run `netpol load` again"]));
}

#[test]
fn publication_meanwhile_is_noticed() {
    let scene = Scene::bridged();
    let Scene { host, a, b, .. } = &scene;
    host.load(&[a, b], &[]);
    let instance = Instance::new(host.bpffs(), &host.folder().join("state"));
    let mut live = host.namespace.enter(|| Live::open(&instance)).unwrap().unwrap();
    host.load(&[a, b], &[ingress("b", &[])]);
    let (from, to) = (Place::Endpoint(0), Target::Place(Place::Endpoint(1)));
    let traffic = Traffic { probe: "80/tcp".parse().unwrap(), source_port: None };
    let mut said = explain(&live.asked(from, to, traffic, trace::Host::default()));
    let answer = host.namespace.enter(|| live.answer(from, &mut said, trace::Host::default())).unwrap();
    assert!(matches!(answer, Err(trace::Error::Changed)), "{answer:?}");
    // the command asks anew
    assert_eq!(agreed(host, "a", "b", "80/tcp")["allowed"], false);
}
