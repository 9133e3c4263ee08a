//! The folder in a bpffs: what lies where, and whether it is of this version.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use aya::maps::{Map, MapData, MapInfo, MapType};
use netpol_common::{
    drops::Count,
    event::{Hush, Lease, Ration},
    kernel::{Bucket, FragmentKey, FragmentPorts, Live},
    nat::{NatKey, Translation},
    service::{Affinity, AffinityKey, ServiceKey},
    socket::SocketKey,
    table::{Block, Slot},
    wire::{Addr4, Addr6},
};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::Error;

/// Where an instance's programs, maps and links are pinned.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

/// Name, type, size of key and size of value of every map, as this version lays them out. The slots of
/// policy tables hold maps; theirs are made anew for each publication. (Not among them is what each build
/// has of its own: the desks, which remember nothing, and what only spares a look, `LAST_OUT`.)
pub(super) const MAPS: &[(&str, MapType, usize, usize)] = &[
    ("ADDRESSES4", MapType::ArrayOfMaps, 4, 4),
    ("ADDRESSES6", MapType::ArrayOfMaps, 4, 4),
    ("NETWORKS4", MapType::ArrayOfMaps, 4, 4),
    ("NETWORKS6", MapType::ArrayOfMaps, 4, 4),
    ("HOOKS", MapType::ArrayOfMaps, 4, 4),
    ("PAIRS", MapType::ArrayOfMaps, 4, 4),
    ("PORTS", MapType::ArrayOfMaps, 4, 4),
    ("RANGES", MapType::ArrayOfMaps, 4, 4),
    ("SERVICES4", MapType::ArrayOfMaps, 4, 4),
    ("SERVICES6", MapType::ArrayOfMaps, 4, 4),
    ("BACKENDS4", MapType::ArrayOfMaps, 4, 4),
    ("BACKENDS6", MapType::ArrayOfMaps, 4, 4),
    ("MAGLEV", MapType::ArrayOfMaps, 4, 4),
    ("MEMBERS4", MapType::ArrayOfMaps, 4, 4),
    ("MEMBERS6", MapType::ArrayOfMaps, 4, 4),
    ("POOLS4", MapType::ArrayOfMaps, 4, 4),
    ("POOLS6", MapType::ArrayOfMaps, 4, 4),
    ("UPLINKS", MapType::ArrayOfMaps, 4, 4),
    ("LIVE", MapType::Array, 4, size_of::<Live>()),
    ("FLOWS4", MapType::Array, 4, size_of::<Block<Addr4>>()),
    ("FLOWS6", MapType::Array, 4, size_of::<Block<Addr6>>()),
    ("SEED", MapType::Array, 4, 8),
    ("DENIALS4", MapType::Array, 4, size_of::<Slot<Addr4>>()),
    ("DENIALS6", MapType::Array, 4, size_of::<Slot<Addr6>>()),
    ("TURNOVER", MapType::PerCpuArray, 4, 8),
    ("FRAGMENTS4", MapType::LruHash, size_of::<FragmentKey<Addr4>>(), size_of::<FragmentPorts>()),
    ("FRAGMENTS6", MapType::LruHash, size_of::<FragmentKey<Addr6>>(), size_of::<FragmentPorts>()),
    ("NAT4", MapType::Hash, size_of::<NatKey<Addr4>>(), size_of::<Translation<Addr4>>()),
    ("NAT6", MapType::Hash, size_of::<NatKey<Addr6>>(), size_of::<Translation<Addr6>>()),
    ("AFFINITY4", MapType::LruHash, size_of::<AffinityKey<Addr4>>(), size_of::<Affinity<Addr4>>()),
    ("AFFINITY6", MapType::LruHash, size_of::<AffinityKey<Addr6>>(), size_of::<Affinity<Addr6>>()),
    ("SOCKETS4", MapType::LruHash, size_of::<SocketKey<Addr4>>(), size_of::<ServiceKey<Addr4>>()),
    ("SOCKETS6", MapType::LruHash, size_of::<SocketKey<Addr6>>(), size_of::<ServiceKey<Addr6>>()),
    ("HOST", MapType::Array, 4, 8),
    // a timer of the kernel's (16 bytes), and how often it has run
    ("AGING", MapType::Array, 4, 24),
    ("RATES", MapType::Array, 4, size_of::<Bucket>()),
    ("COUNTS", MapType::PerCpuArray, 4, size_of::<Count>()),
    ("LEASES", MapType::Array, 4, size_of::<Lease>()),
    ("RINGS", MapType::ArrayOfMaps, 4, 4),
    ("UNTOLD", MapType::PerCpuArray, 4, 8),
    ("HUSHES", MapType::Array, 4, size_of::<Hush>()),
    ("RATIONS", MapType::Array, 4, size_of::<Ration>()),
];

impl Pins {
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Something was loaded here.
    pub fn exist(&self) -> bool {
        self.maps().join("LIVE").exists()
    }

    /// Makes the folders, readable by their owner alone. They must lie in a bpffs.
    pub(super) fn create(&self) -> Result<(), Error> {
        let existing = self.root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let bpffs = statfs(existing).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
        if !bpffs {
            return Err(Error::NotBpffs { path: existing.to_owned() });
        }
        for path in [self.root.clone(), self.maps(), self.programs(), self.links()] {
            let made =
                fs::create_dir_all(&path).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o700)));
            made.map_err(|error| Error::Folder { path, error })?;
        }
        Ok(())
    }

    /// Opens a map that is pinned here.
    pub(super) fn map(&self, name: &str) -> Result<Map, Error> {
        let path = self.maps().join(name);
        if !path.exists() {
            return Err(Error::NotLoaded { path });
        }
        self.check(name)?;
        let open = || Map::from_map_data(MapData::from_pin(&path)?);
        open().map_err(Error::map(name))
    }

    /// aya reuses a pinned map without looking at its shape.
    pub(super) fn check(&self, name: &str) -> Result<(), Error> {
        let path = self.maps().join(name);
        let Some(&(_, kind, key, value)) = MAPS.iter().find(|(known, ..)| *known == name) else {
            return Err(Error::OtherVersion { path, what: "this version has no such map".into() });
        };
        let info = MapInfo::from_pin(&path).map_err(Error::map(name))?;
        let (has_key, has_value) = (info.key_size() as usize, info.value_size() as usize);
        let has_kind = info.map_type().map_err(Error::map(name))?;
        if has_kind != kind {
            return Err(Error::OtherVersion { path, what: format!("it is of type {has_kind:?}, not {kind:?}") });
        }
        if (has_key, has_value) == (key, value) {
            return Ok(());
        }
        let what = format!("keys of {has_key} and values of {has_value} bytes, not {key} and {value}");
        Err(Error::OtherVersion { path, what })
    }

    /// How many entries a map has room for, if it is pinned.
    pub(super) fn room(&self, name: &str) -> Result<Option<u32>, Error> {
        let path = self.maps().join(name);
        if !path.exists() {
            return Ok(None);
        }
        // what another version had there has other entries
        self.check(name)?;
        Ok(Some(MapInfo::from_pin(path).map_err(Error::map(name))?.max_entries()))
    }

    /// Removes everything that was pinned, links first, and the folders. What else lies there stays.
    ///
    /// # Errors
    /// The first that occurs; the rest is removed all the same.
    pub fn remove(&self) -> Result<(), Error> {
        let mut result = Ok(());
        let mut note = |path: &Path, outcome: io::Result<()>| match outcome {
            Err(error) if error.kind() != io::ErrorKind::NotFound && result.is_ok() => {
                result = Err(Error::Folder { path: path.to_owned(), error });
            }
            _ => {}
        };
        for folder in [self.links(), self.programs(), self.maps()] {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                note(&entry.path(), fs::remove_file(entry.path()));
            }
            note(&folder, fs::remove_dir(&folder));
        }
        note(&self.root, fs::remove_dir(&self.root));
        result
    }
}
