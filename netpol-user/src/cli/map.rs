use std::{io::Write as _, net::SocketAddr, time::Duration};

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{
    Instance, Outcome,
    listen::{self, HostArgs},
};
use crate::{
    map::{Opened, Picture, Reading, dot::dot, mermaid::mermaid, page, svg::svg},
    privileges,
};

/// Show who talks to whom, who is denied, and by which rule: a page that follows what happens, or a file.
///
/// The page is for this machine (127.0.0.1); from another one: ssh -L 8088:127.0.0.1:8088 HOST.
#[derive(Args)]
pub struct Map {
    /// Where to listen. The page asks nobody who they are: beyond this machine, everybody who reaches the port sees it.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8088", conflicts_with = "output")]
    listen: SocketAddr,
    #[command(flatten)]
    hosts: HostArgs,
    /// Print the picture of this moment instead, with the rates of one second.
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Svg,
    /// Graphviz.
    Dot,
    Mermaid,
    /// The graph itself; field names are stable.
    Json,
}

impl Map {
    pub fn run(&self, instance: &Instance) -> Result<Outcome> {
        // without it nothing is found, and "not enforced" would be a lie
        privileges::require(&[privileges::OPEN_PINS])?;
        let instance = instance.open();
        let Some(output) = self.output else {
            listen::open(self.listen, "/")?.serve(&self.hosts.hosts, page::routes(instance))?;
            return Ok(Outcome::Done);
        };
        let before = Reading::take(&instance, None)?;
        std::thread::sleep(Duration::from_secs(1));
        let Reading { graph, .. } = Reading::take(&instance, Some(&before))?;
        let text = match output {
            Output::Svg => svg(&graph, &Picture::of(&graph, &Opened::default())),
            Output::Dot => dot(&graph),
            Output::Mermaid => mermaid(&graph),
            Output::Json => serde_json::to_string_pretty(&graph)? + "\n",
        };
        write!(std::io::stdout(), "{text}")?;
        Ok(Outcome::Done)
    }
}
