//! Who observes, and what becomes of those who are too slow, or gone.

use std::{ops::Range, time::Duration};

use aya::maps::{Array, Map, MapData, PerCpuArray};
use netpol_common::event::Lease;
use nix::{
    sys::signal::Signal,
    time::{ClockId, clock_gettime},
};
use serde_json::json;

use crate::{
    between, loaded,
    schema::assert_gap,
    support::{
        Attempt::{Tcp, Udp},
        Family, Host, Scene,
        Seen::{Answered, Silent},
        check, packet,
        policy::{anybody, ingress},
        wait_until,
    },
};

#[test]
fn observers_are_told_what_they_asked_for() {
    let Scene { host, a, b, c, .. } = &loaded();
    let _server = b.serve_tcp(80);
    let mut drops = host.observe(&["--type", "drop", "from:default/c"]);
    let mut opened = host.observe(&["--type", "new", "to:b", "port:80"]);
    let mut nothing = host.observe(&["reason:spoofed"]);
    assert_eq!(host.observers(), 3);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (c, Tcp(b.at(Family::V4, 80)), Silent)]);
    check(&[(a, Udp(b.at(Family::V4, 80)), Silent)]);
    opened.event("a to b", between("new", "a", "b", 80));
    drops.event("c to b", between("drop", "c", "b", 80));
    for watch in [&mut drops, &mut opened, &mut nothing] {
        watch.end();
    }
    assert!(drops.all("new").is_empty() && drops.all("drop").iter().all(|event| event["source"]["name"] == "c"));
    assert!(opened.all("drop").is_empty() && opened.all("closed").is_empty());
    assert_eq!(opened.all("new").len(), 1);
    assert!(nothing.all("drop").is_empty() && nothing.all("new").is_empty());
}

#[test]
fn nobody_observes_and_the_classifiers_know() {
    let Scene { host, .. } = &loaded();
    assert!(!host.is_observed());
    let mut first = host.observe(&[]);
    let mut second = host.observe(&[]);
    assert!(host.is_observed());
    first.end();
    assert!(host.is_observed());
    second.end();
    assert!(!host.is_observed());
}

#[test]
fn status_tells_how_many_observe_and_what_they_were_not_told() {
    let scene = loaded();
    let host = &scene.host;
    assert_eq!(host.status()["observers"], json!({"count": 0, "lost_events": 0, "suppressed_drops": 0}));
    let watches = [host.observe(&[]), host.observe(&["--type", "drop"])];
    for _ in 0..20 {
        check(&[(&scene.c, Udp(scene.b.at(Family::V4, 53)), Silent)]);
    }
    let observers = &host.status()["observers"];
    assert_eq!((&observers["count"], &observers["lost_events"]), (&json!(2), &json!(0)), "{observers}");
    let told = host.netpol(&["status"]).ok();
    assert!(
        told.contains("\nobservers\n  2 now; not told to observers until now: 0 events for want of room"),
        "{told}"
    );
    drop(watches);
    wait_until("nobody observes", || host.status()["observers"]["count"] == 0);
}

/// Anybody may ask `b` on port 53.
fn asked_by_anybody() -> Scene {
    let scene = Scene::bridged();
    scene.host.load(&scene.all(), &[ingress("b", &[anybody(&["53/UDP"])])]);
    scene
}

/// New flows from `a` to that port, one for each of its own.
fn ask(Scene { a, b, .. }: &Scene, ports: Range<u16>) {
    let (socket, source, target) = (a.raw(), a.mac(), b.mac());
    for port in ports {
        let (from, to) = (a.socket(Family::V4, port), b.socket(Family::V4, 53));
        socket.send(&packet::frame(target, source, &packet::udp(from, to, b"hello")));
    }
}

#[test]
fn stalled_observer_is_told_how_much_it_lost_and_others_lose_nothing() {
    const FLOWS: u16 = 400;
    let scene = asked_by_anybody();
    let host = &scene.host;
    // the smallest ring has room for some 25 events
    let mut stalled = host.observe(&["--type", "new", "--buffer", "4", "to:b port:53"]);
    let mut awake = host.observe(&["--type", "new", "to:b port:53"]);
    ask(&scene, 1999..2000);
    stalled.event("the first", between("new", "a", "b", 53));
    stalled.signal(Signal::SIGSTOP);
    ask(&scene, 2000..2000 + FLOWS);
    awake.event("the last", |event| event["source"]["port"] == 1999 + FLOWS);
    stalled.signal(Signal::SIGCONT);
    stalled.event("the loss", |event| event["type"] == "lost");
    stalled.end();
    awake.end();
    let lost = stalled.sum("lost", "lost");
    assert!(lost > 0);
    assert_eq!(stalled.all("new").len() as u64 + lost, u64::from(FLOWS) + 1);
    assert_eq!(awake.all("new").len(), usize::from(FLOWS) + 1);
    assert_eq!(awake.sum("lost", "lost"), 0);
    let metrics = host.netpol(&["metrics", "--once"]).ok();
    assert!(metrics.contains(&format!("netpol_observer_lost_events_total {lost}\n")), "{metrics}");
}

#[test]
fn killed_observer_leaves_its_place_to_the_next_and_to_a_load() {
    let Scene { host, a, b, .. } = &loaded();
    let _server = b.serve_tcp(80);
    let mut killed: Vec<_> = (0..8).map(|_| host.observe(&[])).collect();
    let refused = host.netpol(&["observe", "--for", "1"]);
    assert!(refused.code == 1 && refused.stderr.contains("8 observers already"), "{refused:?}");
    let mut last = killed.pop().expect("eight");
    for watch in &mut killed {
        watch.signal(Signal::SIGKILL);
        watch.ended();
    }
    // seven leases hold still, and nobody is behind them; the first place is taken over
    let mut next = host.begin_to_observe(&["--count", "1", "--type", "new", "to:b"]);
    wait_until("the next one is told", || {
        check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
        next.has_told()
    });
    assert_eq!((next.ended(), next.all("new").len()), (Some(0), 1));
    last.event("a to b", between("new", "a", "b", 80));
    last.end();
    assert!(host.is_observed(), "by the killed ones");
    host.load(&[a, b], &[]);
    assert!(!host.is_observed());
}

/// What is in a map of eight observers.
#[track_caller]
fn pinned(host: &Host, name: &str) -> MapData {
    MapData::from_pin(host.bpffs().join("maps").join(name)).expect("pinned")
}

#[test]
fn observer_outlives_its_lease_and_the_rings_of_the_dead_and_the_stopped_are_skipped() {
    const FLOWS: u16 = 200;
    let scene = asked_by_anybody();
    let Scene { host, a, b, .. } = &scene;
    let leases: Array<MapData, Lease> = Map::Array(pinned(host, "LEASES")).try_into().expect("leases");
    let lease = |place: u32| leases.get(&(place + 1), 0).expect("a lease");
    let untold: PerCpuArray<MapData, u64> = Map::PerCpuArray(pinned(host, "UNTOLD")).try_into().expect("counts");
    let lost = |place: u32| untold.get(&place, 0).expect("a count").iter().sum::<u64>();
    let holds = |lease: Lease| {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock");
        lease.holds(Duration::from(now).as_nanos() as u64)
    };

    // in this order they have the places 0, 1 and 2; the rings of the latter have room for some 25 events
    let mut living = host.observe(&["--type", "new", "to:b port:53"]);
    let mut killed = host.observe(&["--type", "new", "--buffer", "4"]);
    let mut stopped = host.observe(&["--type", "new", "--buffer", "4", "to:b port:53"]);
    let first = lease(0);
    killed.signal(Signal::SIGKILL);
    killed.ended();
    stopped.signal(Signal::SIGSTOP);
    let all = [first, lease(1), lease(2)];
    wait_until("the leases have run out, but for who renews its own", || !all.into_iter().any(holds));
    assert!(holds(lease(0)) && lease(0).0 > first.0);
    assert_eq!((lease(1), lease(2), host.observers()), (all[1], all[2], 1));
    let before = [lost(1), lost(2)];
    ask(&scene, 2000..2000 + FLOWS);
    living.event("the last", |event| event["source"]["port"] == 1999 + FLOWS);
    assert_eq!((living.all("new").len(), living.sum("lost", "lost")), (usize::from(FLOWS), 0));
    assert_eq!([lost(1), lost(2)], before, "full rings would have lost most of them");

    // who was stopped is told that, and is there again; the dead one's place is cleared
    stopped.signal(Signal::SIGCONT);
    let gap = stopped.event("the gap", |event| event["type"] == "lost" && event["lost"].is_null());
    assert_gap(&gap);
    wait_until("its lease holds again", || host.observers() == 2);
    ask(&scene, 3000..3001);
    stopped.event("what comes after", |event| event["type"] == "new" && event["source"]["port"] == 3000);
    host.load(&[a, b], &[]);
    assert_eq!((lease(1), host.observers()), (Lease::NONE, 2));
    living.end();
    stopped.end();
    assert!(!host.is_observed());
}

#[test]
fn unload_ends_it() {
    let Scene { host, .. } = &loaded();
    let mut watch = host.observe(&[]);
    host.netpol(&["unload"]).ok();
    assert_eq!(watch.ended(), Some(1));
}
