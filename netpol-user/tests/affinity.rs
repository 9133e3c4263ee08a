//! Session affinity: a client address stays with its backend for as long as the service says, and no longer.

mod support;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use support::{
    Endpoint, FAMILIES, Family, Scene,
    policy::documents,
    translated::{service, virtual_address},
};

const PATIENCE: Duration = Duration::from_secs(2);
/// So many that not all of them stay by chance.
const CLIENTS: u8 = 60;

/// The service of all endpoints that have its label.
fn sticky(seconds: u32) -> String {
    let spec = format!(
        "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}\n  ports:"
    );
    service("tier").replace("selector: {app: tier}", "selector: {tier: web}").replace("  ports:", &spec)
}

fn load(scene: &Scene, backends: &[&Endpoint], seconds: u32) {
    let endpoint = |endpoint: &&Endpoint| {
        let is_backend = backends.iter().any(|backend| backend.name == endpoint.name);
        let label = if is_backend { "labels: {tier: web, " } else { "labels: {" };
        endpoint.document().replace("labels: {", label)
    };
    let all: Vec<_> = scene.all().iter().map(endpoint).collect();
    let documents = documents(&[], &[&all[..], &[sticky(seconds)]].concat());
    let path = scene.host.documents("affinity.yaml", &documents);
    scene.host.netpol(&["load", "--uplink", "v-outside", &path]).ok();
}

fn address(family: Family, number: u8) -> IpAddr {
    let text = if family == Family::V4 { format!("192.0.2.{}", 100 + number) } else { format!("2001:db8::1:{number}") };
    text.parse().expect("an address")
}

/// Who answers a new connection from that address of the machine outside: `b` does, and at `a` nobody listens.
#[track_caller]
fn is_answered(scene: &Scene, family: Family, number: u8) -> bool {
    let from = SocketAddr::new(address(family, number), 0);
    let socket = scene.outside.enter(|| UdpSocket::bind(from)).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.connect(virtual_address(family)).expect("an address");
    socket.send(b"who?").expect("a datagram");
    match socket.recv(&mut [0; 16]) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{family:?} {number}");
            false
        }
    }
}

#[test]
fn a_client_stays_with_its_backend_until_it_was_silent_for_as_long_as_the_timeout_says() {
    let scene = Scene::bridged();
    scene.unlimited_errors(&[]);
    scene.outside.net(async |net| {
        for (family, width) in FAMILIES.into_iter().zip(["24", "64"]) {
            for number in 0..CLIENTS {
                let own = format!("{}/{width}", address(family, number));
                net.address("eth0", own.parse().expect("an address")).await;
            }
        }
        net.settle("eth0").await;
    });
    let _server = scene.b.serve_udp(8080);
    let all = |family| (0..CLIENTS).map(move |number| (family, number));
    load(&scene, &[&scene.b], 3600);
    for (family, number) in FAMILIES.into_iter().flat_map(all) {
        assert!(is_answered(&scene, family, number), "there is no other");
    }
    // now half of them would be led to the other
    load(&scene, &[&scene.a, &scene.b], 3600);
    for (family, number) in FAMILIES.into_iter().flat_map(all) {
        assert!(is_answered(&scene, family, number), "{family:?} {number} is moved before its time");
    }
    load(&scene, &[&scene.a, &scene.b], 1);
    for family in FAMILIES {
        // each asks once: who asks again in time stays
        let begin = Instant::now();
        let moved = all(family).find(|&(family, number)| {
            thread::sleep(Duration::from_millis(50));
            !is_answered(&scene, family, number)
        });
        let (family, number) = moved.unwrap_or_else(|| panic!("{family:?}: all stay, after {:?}", begin.elapsed()));
        for _ in 0..5 {
            assert!(!is_answered(&scene, family, number), "{family:?} {number} does not stay where it is now");
        }
    }
}
