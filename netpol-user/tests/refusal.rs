//! A service that nobody is behind refuses at once, instead of letting its clients wait.

mod support;

use std::io::{ErrorKind, Read as _, Write as _};

use support::{Attempt, FAMILIES, Family, HOST, LAYOUTS, Scene, Seen, check, exchange, policy::documents};

const VIRTUAL: [&str; 2] = ["10.96.0.10", "fd96::10"];

fn at(addresses: [&str; 2], family: Family, port: u16) -> String {
    let [four, six] = addresses;
    if family == Family::V4 { format!("{four}:{port}") } else { format!("[{six}]:{port}") }
}

/// Port 80 of the virtual addresses and port 8000 of the host are 8080 of `app`.
fn service(app: &str) -> String {
    let [four, six] = VIRTUAL;
    let port = |protocol: &str| {
        format!(
            "{{name: {}, port: 80, targetPort: 8080, nodePort: 8000, protocol: {protocol}}}",
            protocol.to_lowercase()
        )
    };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec:\n  type: NodePort\n  selector: {{app: {app}}}\n  \
         clusterIPs: ['{four}', '{six}']\n  clusterIP: '{four}'\n  ports: [{}, {}]\n",
        port("TCP"),
        port("UDP")
    )
}

const WAYS: [&[&str]; 2] = [&[], &["--forwarding", "stack"]];

#[track_caller]
fn load(scene: &Scene, way: &[&str], service: &str) {
    let path = scene.host.documents("services.yaml", &documents(&scene.all(), &[service.to_owned()]));
    scene.host.netpol(&[&["load", "--uplink", "v-outside"], way, &[&path]].concat()).ok();
}

#[test]
fn a_service_without_a_backend_refuses_whoever_asks() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { host, a, outside, .. } = &scene;
        for way in WAYS {
            load(&scene, way, &service("nobody"));
            for family in FAMILIES {
                let (inside, published) = (at(VIRTUAL, family, 80), at(HOST, family, 8000));
                check(&[
                    (a, Attempt::Tcp(inside.clone()), Seen::Refused),
                    (a, Attempt::Udp(inside), Seen::Refused),
                    (a, Attempt::Tcp(published.clone()), Seen::Refused),
                    (a, Attempt::Udp(published.clone()), Seen::Refused),
                    (outside, Attempt::Tcp(published.clone()), Seen::Refused),
                    (outside, Attempt::Udp(published), Seen::Refused),
                ]);
            }
        }
        let drops = host.netpol(&["status", "-o", "json"]).json();
        assert!(drops["counters"].to_string().contains("no-backend"), "{drops}");
    }
}

#[test]
fn a_connection_ends_with_its_backend() {
    for layout in LAYOUTS {
        let scene = Scene::new(layout);
        let Scene { a, b, outside, .. } = &scene;
        let _server = b.serve_tcp(8080);
        for way in WAYS {
            for family in FAMILIES {
                load(&scene, way, &service("b"));
                let clients = [(a, at(VIRTUAL, family, 80)), (outside, at(HOST, family, 8000))];
                let mut open: Vec<_> = clients.iter().map(|(client, to)| client.connect(to)).collect();
                for stream in &mut open {
                    assert_eq!(exchange(stream), Seen::Answered);
                }
                load(&scene, way, &service("nobody"));
                for stream in &mut open {
                    stream.write_all(b"still there?").expect("room to send");
                    let ended = stream.read(&mut [0; 16]).map_err(|error| error.kind());
                    assert_eq!(ended, Err(ErrorKind::ConnectionReset), "{layout:?} {way:?} {family:?}");
                }
            }
        }
    }
}
