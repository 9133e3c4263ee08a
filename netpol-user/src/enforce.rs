//! From documents to an enforced policy: the order of things, and what happens when one fails.
//!
//! ```text
//! discover -> compile -> (same as what is enforced? done) -> names -> attach -> publish -> clean up
//! ```
//!
//! Until the publication nothing that was enforced has changed: new interfaces wait, old ones go on.
//! If anything fails before, what was attached is taken off again.

mod sockets;

use std::{
    cell::Cell,
    collections::{HashMap, HashSet, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use netpol_common::tables::{AddressFlags, HookValue, IfIndex};

use crate::{
    compile::{self, BackendName, BackendState, CompileError, RuleName, ServiceName, Snapshot},
    datapath::{self, Datapath, Hook, Pins, Role, Settings, Way},
    format::{Diagnostic, Loaded},
    model::{Service, World},
    netns::Namespace,
    privileges,
    source::{self, Delivery, Discovery, Found, Known},
    state::{self, Names, Publication, State},
};

/// How long to wait for another netpol that changes the same instance.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a policy is enforced.
#[derive(Clone, Debug)]
pub struct Options {
    pub settings: Settings,
    /// `None`: the best that the kernel has.
    pub attach: Option<Way>,
    /// Judge all policies for information only, and enforce none.
    pub audit: bool,
    /// Endpoints that are not running are an error.
    pub strict: bool,
    /// Names of the interfaces to the outside; empty: those with a default route.
    pub uplinks: Vec<String>,
    /// Addresses that were added to known interfaces are believed.
    pub accept_addresses: bool,
    /// Room for so many flow entries, for as long as anything is loaded.
    pub flows: Option<u32>,
    /// Find out what would change, and change nothing.
    pub dry_run: bool,
}

/// What a load did.
#[derive(Clone, Debug)]
pub struct Report {
    pub generation: u32,
    pub endpoints: usize,
    pub identities: usize,
    pub policies: usize,
    /// So many of the policies are audited, not enforced.
    pub audited: usize,
    pub changed: bool,
    /// Interfaces that were attached, and those that were taken off.
    pub attached: Vec<String>,
    pub detached: usize,
    pub pending: Vec<state::Pending>,
    /// Addresses that endpoints have and that are not believed.
    pub warnings: Vec<Diagnostic>,
    /// The interfaces to the outside.
    pub uplinks: Vec<String>,
    /// Sockets of the host that were connected with a backend which is none any more.
    pub closed_sockets: usize,
    pub timings: Timings,
}

/// How long the stages took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    pub discover: Duration,
    pub compile: Duration,
    /// Opening or loading the classifiers.
    pub open: Duration,
    pub attach: Duration,
    pub publish: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Privileges(#[from] privileges::Error),
    #[error(transparent)]
    Discover(#[from] source::Error),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(
        "this instance enforces policy in another network namespace; load there, unload it there first, \
         or give this one folders of its own (--bpffs, --state)"
    )]
    OtherNamespace,
    #[error(
        "{interface} is an endpoint's interface in what is enforced, and would be an uplink now; name the uplinks \
         (--uplink), or load without that endpoint and without services and pools first"
    )]
    Role { interface: String },
    #[error("{} endpoint(s) are not running (--strict): {}", .0.len(), pending(.0))]
    Pending(Vec<state::Pending>),
}

fn pending(pending: &[state::Pending]) -> String {
    let each = pending.iter().map(|p| format!("{}/{}: {}", p.namespace, p.name, p.reason));
    each.collect::<Vec<_>>().join("; ")
}

/// An instance: where it is pinned and where its names are.
#[derive(Clone, Debug)]
pub struct Instance {
    pub pins: Pins,
    pub state: State,
}

impl Instance {
    pub fn new(bpffs: &Path, state: &Path) -> Self {
        Self { pins: Pins::at(bpffs), state: State::at(state) }
    }

    /// The names of what is enforced now. Without them (the folder was lost) numbers are all there is.
    pub fn names(&self, datapath: &Datapath) -> Result<Names, Error> {
        let mut generation = datapath.live()?.generation.0;
        loop {
            if let Some(names) = self.state.read(generation)? {
                return Ok(names);
            }
            // a load may have published and removed the older names meanwhile
            let now = datapath.live()?.generation.0;
            if now == generation {
                return Ok(Names { generation, ..Names::default() });
            }
            generation = now;
        }
    }

    /// Enforces exactly what `loaded` says. `progress` hears of each interface that is attached.
    ///
    /// # Errors
    /// If it fails, what was enforced before still is, whole.
    pub fn load(&self, loaded: &Loaded, options: &Options, progress: &dyn Fn(usize, usize)) -> Result<Report, Error> {
        privileges::require(&[privileges::ATTACH, privileges::LOAD_PROGRAMS, privileges::VERIFY_POINTERS])?;
        let mut timings = Timings::default();
        let way = Way::choose(options.attach)?;
        // what is found out must hold until it is published: nobody else publishes meanwhile
        let _lock = if options.dry_run { None } else { Some(self.state.lock(PATIENCE)?) };
        let present = self.present()?;
        let audited;
        let loaded = if options.audit {
            let mut all = loaded.clone();
            all.world.audit_all();
            audited = all;
            &audited
        } else {
            loaded
        };
        let audited = loaded.world.policies().filter(|policy| policy.audit).count();
        let seen = present.as_ref().map(|present| present.seen.as_slice()).unwrap_or_default();
        let known = Known { seen, accept: options.accept_addresses };
        let mut found = timed(&mut timings.discover, || source::discover(&loaded.world, known))?;
        let mut warnings: Vec<_> = found.refused.iter().map(|refused| refused.diagnostic(&loaded.world)).collect();
        let held = held(&loaded.world, &found, present.as_ref());
        let mut uplinks = timed(&mut timings.discover, || source::uplinks(&found, &options.uplinks))?;
        // an endpoint that hides must not get rid of its classifiers because a route leads to it
        uplinks.retain(|uplink| held.values().all(|held| held.ifindex != uplink.ifindex.0));
        if let Some(endpoint) = present.as_ref().and_then(|present| of_an_endpoint(present, &uplinks)) {
            return Err(Error::Role { interface: endpoint.interface.clone() });
        }
        timed(&mut timings.discover, || source::outward(&mut found, &uplinks))?;
        let workloads: Vec<_> = found.workloads.iter().map(|found| found.workload.clone()).collect();
        let mut snapshot =
            timed(&mut timings.compile, || compile::compile(&loaded.world, &workloads, &found.host_addresses))?;
        snapshot.uplinks = uplinks.iter().map(|uplink| (uplink.ifindex, uplink.into())).collect();
        snapshot.hooks.extend(held.values().map(|held| (IfIndex(held.ifindex), HookValue::NOBODY)));
        let names = names(loaded, &found, (&snapshot, options.settings, way), &held);
        let known = |uplink: &source::Uplink| state::Uplink { name: uplink.name.clone(), ifindex: uplink.ifindex.0 };
        let names = Names { audit: options.audit, uplinks: uplinks.iter().map(known).collect(), ..names };
        let names = identified(names, &snapshot, options.settings);
        if options.strict && !names.pending.is_empty() {
            return Err(Error::Pending(names.pending));
        }
        let mut hooks = hooks(&found);
        let endpoints = hooks.len();
        let mut settings = options.settings;
        if snapshot.translates() {
            settings = settings.with(Settings::TRANSLATE).with(snapshot.nobody_outside());
            let hook = |uplink: &source::Uplink| Hook {
                interface: uplink.name.clone(),
                ifindex: uplink.ifindex,
                role: Role::Uplink,
            };
            hooks.extend(uplinks.iter().map(hook));
        }
        // while something is published, the host's own sockets reach it, too
        let group = loaded.world.services.first().and_then(|service| {
            let group = datapath::control_group();
            if group.is_none() {
                warnings.push(unreached(service));
            }
            group
        });
        if options.dry_run {
            return Ok(Report { warnings, audited, ..self.rehearse(names, &snapshot, endpoints)? });
        }
        if present.as_ref().is_some_and(|present| present.namespace != names.namespace) {
            return Err(Error::OtherNamespace);
        }
        let version = present.as_ref().map(|present| present.version);
        let mut datapath = timed(&mut timings.open, || Datapath::open_or_load(&self.pins, version, options.flows))?;
        let names = Names { generation: datapath.next()?.0, ..names };
        let before: HashSet<IfIndex> = datapath.attached(way)?.into_iter().collect();
        // they go on until the new ones are there and their policy is published
        let otherwise = datapath.attached(way.other())?;
        let wanted: HashSet<IfIndex> =
            hooks.iter().map(|hook| hook.ifindex).chain(held.values().map(|held| IfIndex(held.ifindex))).collect();
        let gone: Vec<_> = before.difference(&wanted).copied().collect();
        let mut attached = Vec::new();
        let result = timed(&mut timings.attach, || attach(&mut datapath, (&hooks, way), &mut attached, progress));
        let is_new = Cell::new(false);
        let undo = |datapath: &Datapath| {
            if is_new.get() {
                let _ = datapath.detach_sockets();
            }
            for hook in hooks.iter().filter(|hook| !before.contains(&hook.ifindex)) {
                // the first error is the one to report
                let _ = datapath.detach(hook.ifindex, way);
            }
        };
        let result = result.and_then(|()| {
            let Some(group) = &group else { return Ok(()) };
            is_new.set(datapath.attach_sockets(group)?);
            Ok(())
        });
        if let Err(error) = result {
            undo(&datapath);
            return Err(error.into());
        }
        let same = present.is_some_and(|p| p.fingerprint == names.fingerprint && p.version == names.version);
        let mut report = Report {
            generation: names.generation,
            endpoints: names.endpoints.len(),
            identities: snapshot.identities.len(),
            policies: names.policies,
            audited,
            changed: true,
            detached: gone.iter().chain(&otherwise).filter(|it| !wanted.contains(it)).collect::<HashSet<_>>().len(),
            pending: names.pending.clone(),
            warnings,
            uplinks: names.uplinks.iter().map(|uplink| uplink.name.clone()).collect(),
            closed_sockets: 0,
            attached,
            timings,
        };
        if same && report.attached.is_empty() && gone.is_empty() && otherwise.is_empty() {
            // a load that was killed may have left some open
            close_sockets(&mut report, &datapath, &snapshot, loaded)?;
            return Ok(Report { generation: datapath.live()?.generation.0, changed: false, ..report });
        }
        self.state.write(&names)?;
        let published = timed(&mut timings.publish, || datapath.publish(&snapshot, settings));
        let generation = match published {
            Ok(generation) => generation,
            Err(error) => {
                undo(&datapath);
                return Err(error.into());
            }
        };
        let published = Some(Publication { at_ms: now_ms(), took_us: timings.publish.as_micros() as u64 });
        if let Err(error) = self.state.write(&Names { published, ..names }) {
            // it is enforced all the same; only the time is not known
            tracing::warn!("{error}");
        }
        for (ifindexes, way) in [(&gone, way), (&otherwise, way.other())] {
            for ifindex in ifindexes {
                datapath.detach(*ifindex, way)?;
            }
        }
        if group.is_none() {
            datapath.detach_sockets()?;
        }
        close_sockets(&mut report, &datapath, &snapshot, loaded)?;
        self.state.keep_only(generation.0);
        if let Err(error) = datapath.reap_observers(&self.state) {
            // their leases have run out all the same
            tracing::warn!("{error}");
        }
        Ok(Report { timings, ..report })
    }

    /// Takes everything off that was attached, removes what was pinned, and the names. `false`: there
    /// was nothing. When this returns nothing is attached any more; `progress` hears of each link that is off.
    pub fn unload(&self, progress: &dyn Fn(usize, usize)) -> Result<bool, Error> {
        privileges::require(&[privileges::ATTACH])?;
        let _lock = self.state.lock(PATIENCE)?;
        // a pin can be removed from everywhere, a filter only where its interface is
        if self.present()?.is_some_and(|present| present.attach == Way::Cls && !is_here(present.namespace)) {
            return Err(Error::OtherNamespace);
        }
        let existed = datapath::unload(&self.pins, progress)?;
        self.state.remove();
        Ok(existed)
    }

    /// What is enforced now, if anything is and its names are known.
    pub fn present(&self) -> Result<Option<Names>, Error> {
        if !self.pins.exist() {
            return Ok(None);
        }
        let Ok(datapath) = Datapath::open(&self.pins) else { return Ok(None) };
        let generation = datapath.live()?.generation.0;
        // damaged names are written anew
        Ok(self.state.read(generation).ok().flatten())
    }

    fn rehearse(&self, names: Names, snapshot: &Snapshot, hooks: usize) -> Result<Report, Error> {
        let present = self.present()?;
        let generation = present.as_ref().map_or(0, |present| present.generation);
        let changed = present.is_none_or(|present| present.fingerprint != names.fingerprint);
        Ok(Report {
            generation: if changed { generation + 1 } else { generation },
            endpoints: hooks,
            identities: snapshot.identities.len(),
            policies: names.policies,
            audited: 0,
            changed,
            attached: Vec::new(),
            detached: 0,
            pending: names.pending,
            warnings: Vec::new(),
            uplinks: names.uplinks.into_iter().map(|uplink| uplink.name).collect(),
            closed_sockets: 0,
            timings: Timings::default(),
        })
    }
}

/// That they stay open is no reason to fail: the new policy is enforced.
fn close_sockets(
    report: &mut Report,
    datapath: &Datapath,
    snapshot: &Snapshot,
    loaded: &Loaded,
) -> Result<(), datapath::Error> {
    match sockets::close_former(datapath, snapshot)? {
        Ok(closed) => report.closed_sockets = closed,
        Err(error) => report.warnings.push(sockets::unclosed(loaded, &error)),
    }
    Ok(())
}

/// Without control groups there is no place for programs that the host's sockets meet.
fn unreached(service: &Service) -> Diagnostic {
    Diagnostic {
        origin: service.origin.clone(),
        message: "the host itself does not reach services: no file system of type cgroup2 is mounted".to_owned(),
        help: Some("mount one and load again: mount -t cgroup2 none /sys/fs/cgroup".to_owned()),
    }
}

/// Endpoints that were running and cannot be found any more, while the interface where they were is still
/// there. Whoever is root inside can hide from discovery (another interface's name, another namespace): that
/// must not take the classifiers off. By index into [`World::endpoints`].
fn held(world: &World, found: &Discovery, present: Option<&Names>) -> HashMap<usize, state::Held> {
    let used: HashSet<u32> = found.workloads.iter().map(|found| found.workload.ifindex.0).collect();
    let place = |pending: &source::Pending| {
        let name = &world.endpoints[pending.endpoint].name;
        let held = present?.place(&name.namespace, &name.name)?;
        // by its name, too: a number can be given again
        let there = nix::net::if_::if_indextoname(held.ifindex);
        let is_there = there.is_ok_and(|name| name.to_bytes() == held.interface.as_bytes());
        let is_there = is_there && !used.contains(&held.ifindex);
        is_there.then_some((pending.endpoint, held))
    };
    found.pending.iter().filter_map(place).collect()
}

/// The endpoint of the last load whose interface would be an uplink now. Its classifiers would be replaced by others
/// before the new policy is published.
fn of_an_endpoint<'a>(present: &'a Names, uplinks: &[source::Uplink]) -> Option<&'a state::Endpoint> {
    let is_uplink = |endpoint: &&state::Endpoint| {
        uplinks.iter().any(|uplink| uplink.ifindex.0 == endpoint.ifindex && uplink.name == endpoint.interface)
    };
    present.endpoints.iter().find(is_uplink)
}

fn timed<T>(spent: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = work();
    *spent = begin.elapsed();
    result
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn is_here(namespace: (u64, u64)) -> bool {
    let here = Namespace::current().and_then(|here| here.id());
    here.is_ok_and(|here| (here.device, here.inode) == namespace)
}

fn attach(
    datapath: &mut Datapath,
    (hooks, way): (&[Hook], Way),
    attached: &mut Vec<String>,
    progress: &dyn Fn(usize, usize),
) -> Result<(), datapath::Error> {
    for (done, hook) in hooks.iter().enumerate() {
        if datapath.attach(hook, way)? {
            attached.push(hook.interface.clone());
        }
        progress(done + 1, hooks.len());
    }
    Ok(())
}

fn hooks(found: &Discovery) -> Vec<Hook> {
    let hook = |found: &Found| Hook {
        interface: found.interface.clone(),
        ifindex: found.workload.ifindex,
        role: Role::Workload,
    };
    found.workloads.iter().map(hook).collect()
}

/// What the numbers of a snapshot stand for.
fn names(
    loaded: &Loaded,
    found: &Discovery,
    (snapshot, settings, way): (&Snapshot, Settings, Way),
    held: &HashMap<usize, state::Held>,
) -> Names {
    let world = &loaded.world;
    let isolated: HashMap<IfIndex, AddressFlags> =
        snapshot.hooks.iter().map(|(ifindex, hook)| (*ifindex, hook.flags)).collect();
    let endpoint = |Found { workload, interface, delivery, outside, .. }: &Found| {
        let endpoint = &world.endpoints[workload.endpoint];
        let flags = isolated.get(&workload.ifindex).copied().unwrap_or_default();
        state::Endpoint {
            namespace: endpoint.name.namespace.clone(),
            name: endpoint.name.name.clone(),
            labels: endpoint.labels.clone(),
            addresses: workload.addresses.clone(),
            interface: interface.clone(),
            ifindex: workload.ifindex.0,
            ingress: flags.has(AddressFlags::ISOLATED_INGRESS),
            egress: flags.has(AddressFlags::ISOLATED_EGRESS),
            stack: match delivery {
                Delivery::Direct if settings.has(Settings::STACK) => Some("--forwarding stack".into()),
                Delivery::Direct => None,
                Delivery::Stack(reason) => Some(reason.clone()),
            },
            outside: match outside {
                Delivery::Stack(reason) if snapshot.translates() && !snapshot.uplinks.is_empty() => {
                    Some(reason.clone())
                }
                Delivery::Direct if snapshot.translates() && !flags.has(AddressFlags::OUTWARD) => {
                    Some("an audited policy is about it, whose verdicts are counted at its own interface".into())
                }
                Delivery::Stack(_) | Delivery::Direct => None,
            },
        }
    };
    let pending = |pending: &source::Pending| {
        let name = &world.endpoints[pending.endpoint].name;
        let held = held.get(&pending.endpoint).cloned();
        let still = held.as_ref().map(|held| format!("; nothing passes {} meanwhile, where it was", held.interface));
        state::Pending {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            reason: pending.reason.clone() + &still.unwrap_or_default(),
            held,
        }
    };
    let rule = |RuleName { kind, namespace, name, direction, index, origin }: &RuleName| state::Rule {
        kind: kind.as_str().into(),
        namespace: namespace.clone(),
        name: name.clone(),
        direction: state::Rule::word(*direction).into(),
        index: *index,
        source: origin.to_string(),
    };
    let identity = |identity: &compile::IdentityName| state::Identity {
        endpoints: identity.endpoints.iter().map(ToString::to_string).collect(),
        networks: identity.networks.iter().map(ToString::to_string).collect(),
    };
    let service = |ServiceName { service, port_name, port, protocol, affinity, addresses, backends }: &ServiceName| {
        let backend = |BackendName { endpoint, address, port, weight, state }: &BackendName| state::Backend {
            endpoint: endpoint.as_ref().map(ToString::to_string),
            address: *address,
            port: *port,
            weight: *weight,
            state: match state {
                BackendState::Running => state::Health::Running,
                BackendState::Pending => state::Health::Pending,
                BackendState::Ready => state::Health::Ready,
                BackendState::NotReady => state::Health::NotReady,
            },
        };
        state::Service {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            port_name: port_name.clone(),
            port: *port,
            protocol: protocol.to_string(),
            affinity: *affinity,
            addresses: addresses.iter().map(|&(address, port)| state::Place { address, port }).collect(),
            backends: backends.iter().map(backend).collect(),
        }
    };
    let document = |source: &crate::format::Source| state::Document {
        name: source.name.clone(),
        text: String::from_utf8_lossy(&source.text).into_owned(),
    };
    Names {
        generation: 0,
        version: Datapath::version(),
        fingerprint: 0,
        audit: false,
        namespace: (found.namespace.device, found.namespace.inode),
        attach: way,
        endpoints: found.workloads.iter().map(endpoint).collect(),
        pending: found.pending.iter().map(pending).collect(),
        seen: found.seen.clone(),
        identities: snapshot.identities.iter().map(identity).collect(),
        rules: snapshot.rules.iter().map(rule).collect(),
        services: snapshot.services.iter().map(service).collect(),
        uplinks: Vec::new(),
        policies: loaded.policies,
        sources: loaded.sources.iter().map(document).collect(),
        published: None,
    }
}

/// With the fingerprint of everything that is published.
fn identified(mut names: Names, snapshot: &Snapshot, settings: Settings) -> Names {
    let mut hasher = DefaultHasher::new();
    (snapshot, format!("{names:?}"), settings.0).hash(&mut hasher);
    names.fingerprint = hasher.finish();
    names
}
