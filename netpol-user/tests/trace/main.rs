//! `netpol trace`: what a connection becomes, who judges it, and that the kernel says the same.
//!
//! | file | what |
//! |---|---|
//! | `paper` | from documents alone |
//! | `live` | of what is loaded, beside the kernel's own answer |
//! | `differs` | the kernel says something else, or cannot be asked |
//! | `random` | many questions about the examples: both always say the same, and nobody notices |

mod differs;
mod live;
mod paper;
mod random;

#[path = "../support/mod.rs"]
mod support;

use serde_json::Value;
use support::Host;

/// What `trace` says as JSON, with its exit code.
fn ask(host: &Host, from: &str, to: &str, port: &str) -> (i32, Value) {
    let ran = host.netpol(&["trace", "--from", from, "--to", to, "--port", port, "-o", "json"]);
    (ran.code, ran.json())
}

/// The same, where rules and kernel must agree.
#[track_caller]
fn agreed(host: &Host, from: &str, to: &str, port: &str) -> Value {
    let (code, said) = ask(host, from, to, port);
    assert_eq!((code, &said["kernel"]["differences"]), (0, &serde_json::json!([])), "{from} {to} {port}: {said:#}");
    assert_eq!(said["kernel"]["allowed"], said["allowed"], "{from} {to} {port}: {said:#}");
    assert_eq!(said["kernel"]["same_code"], true);
    said
}
