//! `cargo xtask run shop --real`: the shop with the programs that one would really use.
//!
//! An order goes through all of them, without policies and with them. Then somebody has broken into product-service.

mod programs;

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
pub use programs::{PROGRAMS, end};

use super::{
    examples::{Example, SHOP, service},
    interrupt,
    stage::{Length, Stage},
    topology::{CUSTOMER, ELSEWHERE, HOST_ADDRESS, inside},
};
use crate::say;

/// The shop with the real programs, and a second gateway behind nginx.
pub static REAL: Example = Example {
    about: "The e-commerce platform with nginx, Redis, PostgreSQL, and services in Python.",
    services: &[
        SHOP.services[0],
        SHOP.services[1],
        service("shop/api-gateway-2", "api-gateway-2", "10.0.0.21", &[80]),
        SHOP.services[2],
        SHOP.services[3],
        SHOP.services[4],
        SHOP.services[5],
    ],
    scenes: &[],
    ..SHOP
};

const POLICIES: &str = "policies/shop";
const SECOND_GATEWAY: &str = "xtask/src/demo/real/second-gateway.yaml";
const QUARANTINE: &str = "xtask/src/demo/real/quarantine";
/// What a customer orders.
const ORDER: &str = r#"{"product": 7}"#;

/// What the burglar tries, in the order in which `break_in.py` tells.
const TARGETS: [&str; 4] = ["postgres", "redis", "order-service", "internet"];

pub fn play(stage: &mut Stage) -> Result<()> {
    stage.introduce();
    programs::start()?;

    say::heading("Without policies");
    say::note(
        "An order goes from nginx to a gateway, which asks product-service for the price and has order-service keep it.",
    );
    order(stage, "10.0.0.10", "postgres")?;
    say::then("Somebody breaks into product-service:");
    break_in(stage, [true; 4])?;

    say::heading("Least privilege");
    say::note("The shop's policies, and the second gateway, which they cover by its label.");
    stage.netpol(&["load", POLICIES, SECOND_GATEWAY], Length::Whole)?;
    stage.netpol(&["services"], Length::Whole)?;
    say::then("Orders go through, by the published port; nginx takes turns between the gateways:");
    let host = format!("{HOST_ADDRESS}:8080");
    let first = order(stage, &host, "redis")?;
    let second = order(stage, &host, "redis")?;
    if first == second {
        stage.surprises.push("nginx used one gateway only".to_owned());
    }
    say::then("Whoever is in product-service has what that service needs for its work, and nothing else:");
    break_in(stage, [true, true, false, false])?;

    say::heading("Quarantine");
    say::note("One policy more, ahead of the others: product-service opens no connection any more.");
    stage.netpol(&["load", POLICIES, SECOND_GATEWAY, QUARANTINE], Length::Whole)?;
    println!();
    break_in(stage, [false; 4])?;
    say::then("The rest of the shop goes on:");
    let said = request(&[&format!("http://{host}/orders")])?;
    expect(stage, "customer looks at the orders", &said, "\"orders\": ");
    say::then("And who was stopped, by which rule:");
    stage.netpol(&["flows", "--verdict", "denied"], Length::Latest)
}

/// Places an order; which gateway it went through.
fn order(stage: &mut Stage, at: &str, price_from: &str) -> Result<String> {
    let said = request(&["--data", ORDER, &format!("http://{at}/orders")])?;
    expect(
        stage,
        &format!("customer orders at {at}"),
        &said,
        &format!("\"price from\": \"{price_from}\", \"order\": "),
    );
    Ok(said.rsplit("\"through\": ").next().unwrap_or_default().to_owned())
}

/// What a customer's request is answered with.
fn request(args: &[&str]) -> Result<String> {
    interrupt::check()?;
    let mut curl = inside(CUSTOMER, "curl");
    curl.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "10"]).args(args);
    let output = curl.stdin(Stdio::null()).output().context("nsenter")?;
    let said = if output.status.success() { output.stdout } else { output.stderr };
    Ok(String::from_utf8_lossy(&said).trim().to_owned())
}

fn expect(stage: &mut Stage, what: &str, said: &str, wanted: &str) {
    let line = format!("{what:<38} {}", say::faint(said));
    if said.contains(wanted) {
        say::done(line);
    } else {
        say::failed(line);
        stage.surprises.push(format!("{what}: {said}"));
    }
}

/// Tries everything from inside product-service; `reached`: what of it should work.
fn break_in(stage: &mut Stage, reached: [bool; 4]) -> Result<()> {
    interrupt::check()?;
    let mut burglar: Command = programs::python("product-service", "break_in.py");
    let output = burglar.arg(ELSEWHERE).stdin(Stdio::null()).output().context("nsenter")?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = told.lines().collect();
    if lines.len() != TARGETS.len() {
        bail!("break_in.py failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    for ((line, target), reached) in lines.into_iter().zip(TARGETS).zip(reached) {
        let mut fields = line.split('\t');
        let (name, outcome) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let detail = fields.next().unwrap_or_default();
        let way = format!("product-service → {name}");
        let told = format!("{way:<38} {outcome}  {}", say::faint(detail));
        // Silence, and not some error of ours.
        let is_right = if reached { outcome == "reached" } else { outcome == "stopped" && detail == "timed out" };
        if name == target && is_right {
            say::done(told);
        } else {
            say::failed(&told);
            stage.surprises.push(format!("{way}: {outcome}, {detail}"));
        }
    }
    Ok(())
}
