//! The demo as it is told: before, then each state of the policies with its proof, then what the kernel remembers.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use super::{
    examples::{Example, Expected, LOCALHOST, Request, Scene},
    interrupt,
    topology::{CUSTOMER, CUSTOMER_ADDRESS, HOST, HOST_ADDRESS, INTERNET, STATE, UPDATES, inside, pins},
};
use crate::{say, shell};

/// curl's exit code for a time-out: what a dropped packet looks like from inside.
const TIMED_OUT: i32 = 28;

pub struct Stage {
    example: &'static Example,
    netpol: PathBuf,
    started: Instant,
    /// What did not come out as the policies say.
    pub(super) surprises: Vec<String>,
}

impl Stage {
    pub fn new(example: &'static Example, netpol: PathBuf) -> Stage {
        Stage { example, netpol, started: Instant::now(), surprises: vec![] }
    }

    pub fn play(&mut self) -> Result<()> {
        self.introduce();
        self.before()?;
        for scene in self.example.scenes {
            self.scene(scene)?;
        }
        if !self.example.translated.is_empty() {
            self.translated()?;
        }
        say::heading("What the kernel remembers");
        say::note("Each connection with who spoke, and each drop with the rule that asked for it; the latest first.");
        self.netpol(&["flows"], Length::Latest)?;
        say::then("Who is who to the policies: what none of them can tell apart shares an identity.");
        self.netpol(&["identities"], Length::Whole)?;
        say::heading("What is enforced");
        say::note("No netpol process is running: programs and maps are in the kernel, pinned.");
        self.netpol(&["status"], Length::Whole)
    }

    /// Fails when something was not as the policies say.
    pub fn conclusion(&self) -> Result<()> {
        if !self.surprises.is_empty() {
            bail!("not as the policies say: {}", self.surprises.join("; "));
        }
        say::done(format_args!("{}: everything as the policies say, in {:.1} s", self.example.name, self.seconds()));
        Ok(())
    }

    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    pub(super) fn introduce(&self) {
        let Example { name, about, bridge, gateway, prefix, services, .. } = self.example;
        say::heading(format_args!("{name}: {about}"));
        say::note(format_args!("bridge {bridge}, {gateway}/{prefix}, on a host that is itself a network namespace"));
        for service in *services {
            let ports: Vec<String> = service.ports.iter().map(u16::to_string).collect();
            say::note(format_args!("{:<24} {:<12} listens on {}", service.endpoint, service.address, ports.join(", ")));
        }
        say::note(format_args!("{:<24} {HOST_ADDRESS:<12} where the host is from outside", "host"));
        say::note(format_args!("{:<24} {UPDATES:<12} a server outside, where the default route leads", "internet"));
        say::note(format_args!("{:<24} {CUSTOMER_ADDRESS:<12} a machine outside", "customer"));
    }

    fn before(&mut self) -> Result<()> {
        say::heading("Before: no policy");
        say::note("Whoever shares a bridge can reach everything on it.");
        let forbidden = self.example.scenes[0].requests.iter().filter(|request| request.expected == Expected::Silence);
        let open: Vec<Request> = forbidden.map(|request| Request { expected: Expected::Answer, ..*request }).collect();
        self.requests(&open, Reasons::Hidden)
    }

    fn scene(&mut self, scene: &Scene) -> Result<()> {
        say::heading(scene.title);
        say::note(scene.about);
        say::note("Who may talk to whom, computed from the files alone:");
        self.netpol(&[&["matrix"], scene.paths, scene.ports].concat(), Length::Whole)?;
        say::then("Into the kernel, as one atomic write:");
        self.netpol(&[&["load"], scene.paths].concat(), Length::Whole)?;
        say::then("The proof: a real connection from everybody to every port that somebody declares, allowed or not.");
        self.netpol(&["verify"], Length::Whole)?;
        say::heading(format_args!("{}: real requests", scene.title));
        self.requests(scene.requests, Reasons::Shown)
    }

    /// Published ports and masquerading, and that nobody else does it.
    fn translated(&mut self) -> Result<()> {
        say::heading("Through the host's own address");
        say::note(
            "Published ports, and masquerading for what leaves: in the same classifiers, under the same policies.",
        );
        self.netpol(&["services"], Length::Whole)?;
        println!();
        self.requests(self.example.translated, Reasons::Shown)?;
        say::then("Nobody else translates anything here:");
        self.no_rules("nft", &["list", "ruleset"])?;
        self.no_rules("iptables-save", &[])
    }

    /// Shows that a command that lists rules has none to list, on the demo's host.
    fn no_rules(&mut self, program: &str, args: &[&str]) -> Result<()> {
        let mut command = Command::new(program);
        command.args(args);
        let line = shell::Line(&command).to_string();
        say::command(&line);
        let output = shell::quietly(inside(HOST, program).args(args))?;
        let output = String::from_utf8_lossy(&output.stdout);
        print!("{output}");
        if output.trim().is_empty() {
            say::done("not one rule");
        } else {
            self.surprises.push(format!("`{line}` has something to say"));
        }
        Ok(())
    }

    /// Runs netpol on the demo's host.
    pub(super) fn netpol(&mut self, args: &[&str], length: Length) -> Result<()> {
        interrupt::check()?;
        say::command(format_args!("netpol {}", args.join(" ")));
        let mut command = self.instance();
        command.args(args).current_dir(shell::root());
        let status = match length {
            Length::Whole => command.status(),
            Length::Latest => command.stderr(Stdio::inherit()).output().map(|output| {
                print_latest(&String::from_utf8_lossy(&output.stdout));
                output.status
            }),
        };
        let status = status.with_context(|| shell::Line(&command).to_string())?;
        interrupt::check()?;
        match status.code() {
            Some(0) => {}
            // These two answer a question, and the answer was no: worth seeing the rest.
            Some(1) if matches!(args, ["verify" | "status"]) => {
                self.surprises.push(format!("`netpol {}` says that it does not hold", args[0]));
            }
            _ => bail!("`netpol {}` failed ({status})", args.join(" ")),
        }
        Ok(())
    }

    /// netpol, as the demo's instance of it.
    fn instance(&self) -> Command {
        let mut command = inside(HOST, &self.netpol);
        command.arg("--bpffs").arg(pins()).args(["--state", STATE]);
        command
    }

    /// All at once: the ones that get no answer would each take a second.
    fn requests(&mut self, requests: &[Request], reasons: Reasons) -> Result<()> {
        let running = requests.iter().map(|request| Ok((request, self.curl(request)?)));
        for pair in running.collect::<Result<Vec<_>>>()? {
            let (request, child) = pair;
            let surprise = self.outcome(request, child, reasons)?;
            self.surprises.extend(surprise);
        }
        interrupt::check()
    }

    fn curl(&self, request: &Request) -> Result<Child> {
        let own = self.example.service(request.to).map(|service| service.address);
        let address = request.dialled.or(own).context("a request to nobody")?;
        let mut curl = inside(request.from, "curl");
        curl.args(["--silent", "--show-error", "--noproxy", "*", "--connect-timeout", "1", "--max-time", "2"]);
        curl.arg(format!("http://{address}:{}/", request.port));
        curl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("nsenter")
    }

    /// Tells how it went; what to complain about, if anything.
    fn outcome(&self, request: &Request, child: Child, reasons: Reasons) -> Result<Option<String>> {
        let output = child.wait_with_output()?;
        let body = String::from_utf8_lossy(&output.stdout);
        let (found, said) = match output.status.code() {
            Some(0) if !self.is_answer(request, &body) => (None, body.trim().to_owned()),
            Some(0) if request.dialled.is_some() => {
                (Some(Expected::Answer), format!("answers {}", self.client(request)))
            }
            Some(0) => (Some(Expected::Answer), "answers".to_owned()),
            Some(TIMED_OUT) => (Some(Expected::Silence), "silence".to_owned()),
            _ => (None, String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        };
        let to = match request.dialled {
            None => request.to,
            Some(HOST_ADDRESS) => "host",
            Some(UPDATES) => "internet",
            Some(LOCALHOST) => "localhost",
            Some(other) => other,
        };
        let from = match request.from {
            CUSTOMER => "customer",
            HOST => "host",
            service => service,
        };
        let way = format!("{from} → {to}:{}", request.port);
        let why = if reasons == Reasons::Shown { request.why } else { "" };
        let width = if request.dialled.is_some() { "answers 255.255.255.255".len() } else { "answers".len() };
        let line = format!("{way:<38} {said:<width$}  {}", say::faint(why));
        if found == Some(request.expected) {
            say::done(line.trim_end());
            return Ok(None);
        }
        say::failed(line.trim_end());
        Ok(Some(format!("{way}: {said}")))
    }

    /// Whom the server must take the client for.
    fn client(&self, request: &Request) -> &'static str {
        let own = self.example.service(request.from).map_or(CUSTOMER_ADDRESS, |service| service.address);
        request.taken_for.unwrap_or(own)
    }

    /// Whether the right server answered, and took the client for whom it should.
    fn is_answer(&self, request: &Request, body: &str) -> bool {
        let server = self.example.service(request.to).map_or(INTERNET, |service| service.endpoint);
        body.starts_with(&format!("{server} (")) && body.ends_with(&format!(", asked by {}\n", self.client(request)))
    }

    pub fn how_to_go_on(&self) {
        let Some(first) = self.example.services.first() else { return };
        say::heading("Kept, to go on by hand");
        say::note("netpol on the demo's host:");
        println!("     {} flows", shell::Line(&self.instance()));
        say::note("a shell in a service:");
        println!("     nsenter --net=/run/netns/{} bash", first.netns);
        say::note("and when done:");
        println!("     cargo xtask clean-up");
    }
}

/// How much of what netpol says is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Whole,
    Latest,
}

/// Header and first rows of a listing.
fn print_latest(listing: &str) {
    const ROWS: usize = 10;
    listing.lines().take(1 + ROWS).for_each(|line| println!("{line}"));
    let rest = listing.lines().count().saturating_sub(1 + ROWS);
    if rest > 0 {
        println!("{}", say::faint(format_args!("... and {rest} more, most of them of the proof above")));
    }
}

/// Whether the reason of a request is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reasons {
    Shown,
    Hidden,
}
