use std::{io::Write as _, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Result;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use clap::Args;

use super::{
    Instance, Outcome,
    listen::{self, HostArgs},
};
use crate::{
    metrics::{CONTENT_TYPE, Sample},
    privileges,
    web::Kept,
};

/// Serve numbers for Prometheus: packets, maps, rules, and whether the policy is enforced.
///
/// Each scrape reads the kernel. contrib/ has a dashboard for Grafana and alerts.
#[derive(Args)]
pub struct Metrics {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9464")]
    listen: SocketAddr,
    /// Print the numbers, and listen nowhere.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    hosts: HostArgs,
}

/// Several scrapers of one moment are told the same.
const GOOD_FOR: Duration = Duration::from_secs(1);

impl Metrics {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        // without it nothing is found, and "not enforced" would be a lie
        privileges::require(&[privileges::OPEN_PINS])?;
        let instance = instance.open();
        if self.once {
            write!(std::io::stdout(), "{}", Sample::read(&instance)?.text())?;
            return Ok(Outcome::Done);
        }
        let read = move |_: Option<&String>| match Sample::read(&instance) {
            Ok(sample) => Ok(sample.text()),
            Err(error) => Err(format!("{:#}", anyhow::Error::from(error))),
        };
        let kept = Arc::new(Kept::new(GOOD_FOR, read));
        let routes = Router::new().route("/metrics", get(metrics)).with_state(kept);
        listen::open(self.listen, "/metrics")?.serve(&self.hosts.hosts, routes)?;
        Ok(Outcome::Done)
    }
}

async fn metrics(State(kept): State<Arc<Kept<String>>>) -> Response {
    match kept.get().await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text.as_ref().clone()).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
