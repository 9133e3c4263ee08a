//! `netpol observe`: what happens to real packets is told as it happens, to several at once, and what is not told is
//! counted.
//!
//! | file | what |
//! |---|---|
//! | `events` | connections, from the first packet to the last |
//! | `drops` | each by its reason, and a flood of them |
//! | `observers` | several of them, slow ones and dead ones |
//! | `output` | words for people, packets in a file |
//! | `schema` | the fields of each kind of event, and where they are documented |

mod drops;
mod events;
mod observers;
mod output;
mod schema;

#[path = "../support/mod.rs"]
mod support;

use serde_json::Value;
use support::{
    Scene,
    policy::{from, ingress},
};

/// `b` answers `a` on port 80 and nobody else.
fn loaded() -> Scene {
    let scene = Scene::bridged();
    scene.host.load(&scene.all(), &[ingress("b", &[from("a", &["80/TCP"])])]);
    scene
}

/// An event about packets between these, to this port.
fn between<'a>(kind: &'a str, from: &'a str, to: &'a str, port: u16) -> impl Fn(&Value) -> bool {
    move |event| {
        event["type"] == kind
            && event["source"]["name"] == from
            && event["destination"]["name"] == to
            && event["destination"]["port"] == port
    }
}
