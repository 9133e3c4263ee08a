//! The names of what is enforced. The kernel is the database; it knows numbers, and this folder says
//! what they stand for, in one file for each generation. Losing it loses names, not enforcement.

use std::{
    collections::HashMap,
    fmt, fs, io,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use netpol_common::event::OBSERVERS;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};

use crate::{
    datapath::Way,
    format::{self, Invalid, Loaded, Source},
    model::{Direction, Labels, World, explain},
    source::Seen,
};

/// An instance's folder.
#[derive(Clone, Debug)]
pub struct State {
    folder: PathBuf,
}

/// Names of files, with the place of an observer.
const OBSERVER: &str = "observer-";

/// Held while an instance is changed, or by one observer of it. Ends with the process, however that ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its lock, which dropping it releases")] Flock<fs::File>);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}")]
    File {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("{path} cannot be read: {error}; the next `netpol load` writes it anew")]
    Damaged { path: PathBuf, error: String },
    #[error("another netpol has been changing this instance for {} s ({path} is locked)", .waited.as_secs())]
    Busy { path: PathBuf, waited: Duration },
}

/// What a generation's numbers stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    pub generation: u32,
    /// Of the classifiers that are loaded.
    pub version: u64,
    /// Of everything that was published: the same fingerprint, the same policy.
    pub fingerprint: u64,
    /// Device and inode of the network namespace that the interfaces are in.
    pub namespace: (u64, u64),
    /// Every policy is audited, none enforced (`load --audit`).
    #[serde(default)]
    pub audit: bool,
    /// How the classifiers are attached.
    #[serde(default)]
    pub attach: Way,
    pub endpoints: Vec<Endpoint>,
    pub pending: Vec<Pending>,
    /// The interfaces of endpoints, and the addresses that they were first seen with.
    #[serde(default)]
    pub seen: Vec<Seen>,
    /// By identity number; the first is [`netpol_common::tables::Identity::FIRST`].
    pub identities: Vec<Identity>,
    /// By rule number; the first stands for rule 1.
    pub rules: Vec<Rule>,
    /// By service number; the first stands for number 1.
    #[serde(default)]
    pub services: Vec<Service>,
    /// The interfaces to the outside.
    #[serde(default)]
    pub uplinks: Vec<Uplink>,
    pub policies: usize,
    /// The documents themselves.
    pub sources: Vec<Document>,
    /// `None` until the publication is done, and where an earlier version has written this.
    #[serde(default)]
    pub published: Option<Publication>,
}

/// An interface to the outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    pub name: String,
    pub ifindex: u32,
}

/// When a generation became what is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// How long it took to fill the tables and switch to them, in microseconds.
    pub took_us: u64,
}

/// A running endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub addresses: Vec<IpAddr>,
    /// The host end of its veth.
    pub interface: String,
    pub ifindex: u32,
    /// Policy is about its ingress, its egress.
    pub ingress: bool,
    pub egress: bool,
    /// `None`: packets between endpoints are delivered directly; else why not.
    pub stack: Option<String>,
    /// Where addresses are translated: the same for packets that pass an uplink.
    #[serde(default)]
    pub outside: Option<String>,
}

/// An endpoint that was not found running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    pub namespace: String,
    pub name: String,
    pub reason: String,
    /// Where it was: the interface is still there, so it may be, too.
    pub held: Option<Held>,
}

/// An interface whose endpoint cannot be found any more: nothing passes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub interface: String,
    pub ifindex: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `namespace/name`
    pub endpoints: Vec<String>,
    pub networks: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    pub direction: String,
    /// `None`: the default deny at the end of the policy's tier.
    pub index: Option<u32>,
    /// `file:line`
    pub source: String,
}

impl Rule {
    /// By name and place: `NetworkPolicy shop/postgres ingress[0] (policies/shop/postgres.yaml:9)`.
    pub fn describe(&self) -> String {
        format!("{} {} ({})", self.kind, self.short(), self.source)
    }

    /// Why it decided about `traffic` (`tcp/5432 from shop/web`) as it did, as every verdict says it:
    ///
    /// - `NetworkPolicy shop/postgres ingress[0] (policies/shop/postgres.yaml:9)`
    /// - `isolated by NetworkPolicy shop/postgres ingress at policies/shop/postgres.yaml:3, and no rule allows
    ///   tcp/5432 from shop/web`
    pub fn explain(&self, f: &mut fmt::Formatter<'_>, traffic: fmt::Arguments<'_>) -> fmt::Result {
        let Self { kind, direction, index, source, .. } = self;
        match index {
            Some(_) => f.write_str(&self.describe()),
            None => explain::isolated(f, format_args!("{kind} {} {direction} at {source}", self.policy()), traffic),
        }
    }

    /// In few words, for a column: `shop/postgres ingress[0]`, `shop/postgres ingress: default deny`.
    pub fn short(&self) -> String {
        let Self { direction, index, .. } = self;
        let name = self.policy();
        index
            .map_or_else(|| format!("{name} {direction}: default deny"), |index| format!("{name} {direction}[{index}]"))
    }

    /// `shop/postgres`, or a cluster-wide policy's name.
    pub fn policy(&self) -> PolicyName<'_> {
        PolicyName(self)
    }

    pub const fn word(direction: Direction) -> &'static str {
        match direction {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        }
    }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub port_name: Option<String>,
    pub port: u16,
    pub protocol: String,
    /// For how many seconds a client address keeps its backend.
    pub affinity: Option<u32>,
    /// Where it is published.
    pub addresses: Vec<Place>,
    pub backends: Vec<Backend>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub address: IpAddr,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// `namespace/name`; `None`: a slice lists its address.
    pub endpoint: Option<String>,
    pub address: Option<IpAddr>,
    pub port: u16,
    pub weight: u8,
    pub state: Health,
}

/// Whether a backend gets packets: those that run or are ready do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    Running,
    /// Its endpoint does not run.
    Pending,
    Ready,
    NotReady,
}

impl Health {
    pub const fn answers(self) -> bool {
        matches!(self, Self::Running | Self::Ready)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::NotReady => "not-ready",
        }
    }
}

/// See [`Rule::policy`].
pub struct PolicyName<'a>(&'a Rule);

impl fmt::Display for PolicyName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule { namespace, name, .. } = self.0;
        match namespace {
            Some(namespace) => write!(f, "{namespace}/{name}"),
            None => f.write_str(name),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    pub name: String,
    pub text: String,
}

impl From<&Document> for Source {
    fn from(Document { name, text }: &Document) -> Self {
        Self { name: name.clone(), text: text.clone().into_bytes() }
    }
}

impl Names {
    /// What the documents say, and `load --audit` about them.
    ///
    /// # Errors
    /// Documents that another version of netpol could read, and this one can't.
    pub fn documents(&self) -> Result<Loaded, Invalid> {
        let mut loaded = format::parse(self.sources.iter().map(Into::into).collect())?;
        if self.audit {
            loaded.world.audit_all();
        }
        Ok(loaded)
    }

    /// Gives endpoints whose documents name no address those that they had at load.
    pub fn place_endpoints(&self, world: &mut World) {
        let link_local = |address: &IpAddr| match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        let here: HashMap<_, _> = self.endpoints.iter().map(|e| ((e.namespace.as_str(), e.name.as_str()), e)).collect();
        for endpoint in world.endpoints.iter_mut().filter(|endpoint| endpoint.addresses.is_empty()) {
            let found = here.get(&(endpoint.name.namespace.as_str(), endpoint.name.name.as_str()));
            let addresses = found.iter().flat_map(|found| &found.addresses).filter(|address| !link_local(address));
            endpoint.addresses.extend(addresses);
        }
    }

    /// Where an endpoint was.
    pub fn place(&self, namespace: &str, name: &str) -> Option<Held> {
        let running = self.endpoints.iter().find(|e| (e.namespace.as_str(), e.name.as_str()) == (namespace, name));
        let running = running.map(|e| Held { interface: e.interface.clone(), ifindex: e.ifindex });
        let pending = || self.pending.iter().find(|p| (p.namespace.as_str(), p.name.as_str()) == (namespace, name));
        running.or_else(|| pending()?.held.clone())
    }

    /// A rule's name; `None` for a number of another generation.
    pub fn rule(&self, number: u32) -> Option<&Rule> {
        self.rules.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    /// A service's port; `None` for 0 and for a number of another generation.
    pub fn service(&self, number: u32) -> Option<&Service> {
        self.services.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }
}

impl State {
    /// The folder need not be there.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Makes the folder, readable by its owner alone.
    fn create(&self) -> Result<(), Error> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|error| self.error(&self.folder, error))
    }

    /// Waits until nobody else changes the instance, `patience` at most. Makes the folder.
    pub fn lock(&self, patience: Duration) -> Result<Lock, Error> {
        let path = self.folder.join("lock");
        let begin = Instant::now();
        loop {
            self.create()?;
            let open = fs::File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
            match open.map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock)) {
                // whoever held it may have removed it, with the folder: then it keeps nobody else out
                Ok(Ok(lock)) if is_at(&lock, &path) => return Ok(Lock(lock)),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.error(&path, error)),
                Ok(Err((_, error))) if error != Errno::EWOULDBLOCK => return Err(self.error(&path, error.into())),
                _ if begin.elapsed() >= patience => return Err(Error::Busy { path, waited: begin.elapsed() }),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The place of one of several observers, for as long as the lock is held: the kernel gives back those of the dead.
    /// `None`: somebody has it.
    pub fn observer(&self, place: u32) -> Result<Option<Lock>, Error> {
        let path = self.folder.join(format!("{OBSERVER}{place}"));
        self.create()?;
        let open = fs::File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        match open.map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock)) {
            Ok(Ok(lock)) => Ok(is_at(&lock, &path).then_some(Lock(lock))),
            Ok(Err((_, Errno::EWOULDBLOCK))) => Ok(None),
            Ok(Err((_, error))) => Err(self.error(&path, error.into())),
            Err(error) => Err(self.error(&path, error)),
        }
    }

    /// Writes a generation's names, whole or not at all.
    pub fn write(&self, names: &Names) -> Result<(), Error> {
        let path = self.path(names.generation);
        let beside = path.with_extension("new");
        let text = serde_json::to_vec(names).map_err(|error| self.error(&path, error.into()))?;
        let write = || {
            let mut file = fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
            io::Write::write_all(&mut file, &text)?;
            fs::rename(&beside, &path)
        };
        write().map_err(|error| self.error(&path, error))
    }

    /// A generation's names; `None`: there is no file of that generation.
    pub fn read(&self, generation: u32) -> Result<Option<Names>, Error> {
        let path = self.path(generation);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error(&path, error)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| Error::Damaged { path, error: error.to_string() })
    }

    /// Removes the names of all other generations.
    pub fn keep_only(&self, generation: u32) {
        let keep = self.path(generation);
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| *path != keep) {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("names-")) {
                // a leftover is harmless and goes with the next load
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Removes the folder and what netpol put there. The caller holds the lock, and has it no longer.
    pub fn remove(&self) {
        self.keep_only(u32::MAX);
        for place in 0..OBSERVERS {
            let _ = fs::remove_file(self.folder.join(format!("{OBSERVER}{place}")));
        }
        let _ = fs::remove_file(self.folder.join("lock"));
        let _ = fs::remove_dir(&self.folder);
    }

    fn path(&self, generation: u32) -> PathBuf {
        self.folder.join(format!("names-{generation}.json"))
    }

    fn error(&self, path: &Path, error: io::Error) -> Error {
        Error::File { path: path.to_owned(), error }
    }
}

/// Whether an open file is still the one with that path.
fn is_at(file: &fs::File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().is_ok_and(|open| fs::metadata(path).is_ok_and(|there| identity(open) == identity(there)))
}
