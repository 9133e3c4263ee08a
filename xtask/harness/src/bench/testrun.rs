//! BPF_PROG_TEST_RUN: a classifier called by the kernel with a packet of ours, and how long it took.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::errno::Errno;

use super::{insn, stats::at_rest};
use crate::sandbox::Netns;

/// Commands of bpf(2) and the type of a classifier, as in the kernel's `uapi/linux/bpf.h`.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// Types of maps, from there.
pub const ARRAY: u32 = 2;
pub const PROG_ARRAY: u32 = 3;
const LRU_HASH: u32 = 9;
/// `bpf_map_lookup_elem`
const LOOKUP: i32 = 1;
/// Bytes of a [`Program::lookup`]'s key.
const KEY: u32 = 16;
/// How many a measurement is made of: short ones, so that some find the CPU undisturbed.
pub const STRETCHES: u32 = 40;

/// What a classifier returns to have the packet dropped: TCX_DROP, which is TC_ACT_SHOT.
pub const DROP: i32 = 2;

/// A loaded classifier.
pub struct Program(OwnedFd);

/// A map.
pub struct Map(pub OwnedFd);

/// What one call of the kernel found.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub action: i32,
    /// Mean over the repetitions.
    pub nanoseconds: f64,
}

impl Outcome {
    /// Of no call.
    pub const NOTHING: Self = Self { action: 0, nanoseconds: 0.0 };
}

/// How the packet arrives: by which interface.
pub struct Arrival {
    pub ifindex: u32,
    pub ingress_ifindex: u32,
}

/// The head of `union bpf_attr` for BPF_PROG_LOAD; what follows is zero.
#[repr(C)]
struct Load {
    program_type: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u32; 2],
    log_buffer: u64,
    version: u32,
    flags: u32,
}

/// For BPF_MAP_CREATE; what follows is zero.
#[repr(C)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// For the commands about an element.
#[repr(C)]
struct Element {
    map: u64,
    key: u64,
    value: u64,
    flags: u64,
}

/// For BPF_OBJ_GET.
#[repr(C)]
struct Get {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// For BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct Test {
    program: u32,
    action: u32,
    packet_size: u32,
    packet_out_size: u32,
    packet: u64,
    packet_out: u64,
    repeat: u32,
    duration: u32,
    context_size: u32,
    context_out_size: u32,
    context: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

/// `struct __sk_buff` up to the interfaces: the kernel takes a shorter one for one that ends in zeroes.
#[repr(C)]
#[derive(Default)]
struct Context {
    /// Length to VLAN and priority: the kernel sets them from the packet.
    from_packet: [u32; 9],
    ingress_ifindex: u32,
    ifindex: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `attributes` has the command's layout and size; what its addresses point to outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *mut T, size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as i32) }
}

fn own(descriptor: i32) -> OwnedFd {
    // SAFETY: the kernel has just created it for us.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn pinned(path: &Path) -> Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut get = Get { path: name.as_ptr() as u64, descriptor: 0, flags: 0 };
    let descriptor = bpf(BPF_OBJ_GET, &mut get).with_context(|| path.display().to_string())?;
    Ok(own(descriptor))
}

impl Map {
    /// One element, and keys of four bytes.
    pub fn new(map_type: u32, value_size: u32) -> Result<Self> {
        Self::create([map_type, 4, value_size, 1])
    }

    fn create([map_type, key_size, value_size, max_entries]: [u32; 4]) -> Result<Self> {
        let mut create = Create { map_type, key_size, value_size, max_entries };
        let descriptor = bpf(BPF_MAP_CREATE, &mut create).context("creating a map")?;
        Ok(Self(own(descriptor)))
    }

    pub fn pinned(path: &Path) -> Result<Self> {
        pinned(path).map(Self)
    }

    /// `V` is the map's type of values.
    pub fn set<V: Copy>(&self, key: u32, value: &V) -> Result<()> {
        self.element(BPF_MAP_UPDATE_ELEM, &raw const key as u64, &raw const *value as u64)
            .context("setting a map's element")?;
        Ok(())
    }

    /// An element, in the place of another. `V` is the map's type of values, of which all bytes are valid.
    pub fn get<V: Copy>(&self, key: u32, mut value: V) -> Result<V> {
        self.element(BPF_MAP_LOOKUP_ELEM, &raw const key as u64, &raw mut value as u64)
            .context("reading a map's element")?;
        Ok(value)
    }

    fn element(&self, command: libc::c_long, key: u64, value: u64) -> io::Result<i32> {
        bpf(command, &mut Element { map: self.0.as_raw_fd() as u64, key, value, flags: 0 })
    }
}

impl Program {
    /// A classifier that does nothing: `return TCX_NEXT`.
    pub fn empty() -> Result<Self> {
        Self::load(&[insn::set(0, -1), insn::EXIT]).context("loading an empty classifier")
    }

    /// A classifier that does nothing but look up one element in an LRU hash, which is there.
    pub fn lookup() -> Result<Self> {
        let map = Map::create([LRU_HASH, KEY, 8, 1_024])?;
        map.element(BPF_MAP_UPDATE_ELEM, [0u64; 2].as_ptr() as u64, [0u64].as_ptr() as u64)?;
        let [low, high] = insn::map(1, map.0.as_raw_fd(), false);
        let key = -(KEY as i16);
        let code = [
            insn::store_word(key, 0),
            insn::store_word(key + 8, 0),
            low,
            high,
            insn::mov(2, 10),
            insn::add(2, key.into()),
            insn::call(LOOKUP),
            insn::set(0, -1),
            insn::EXIT,
        ];
        Self::load(&code).context("loading a classifier that looks up an element")
    }

    pub fn load(code: &[u64]) -> io::Result<Self> {
        let mut load = Load {
            program_type: BPF_PROG_TYPE_SCHED_CLS,
            instructions: code.len() as u32,
            code: code.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log: [0; 2],
            log_buffer: 0,
            version: 0,
            flags: 0,
        };
        bpf(BPF_PROG_LOAD, &mut load).map(|descriptor| Self(own(descriptor)))
    }

    pub fn pinned(path: &Path) -> Result<Self> {
        pinned(path).map(Self)
    }

    pub fn descriptor(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Runs it `repeat` times on the same packet. The interfaces are those of the calling thread's namespace.
    pub fn run(&self, packet: &[u8], arrival: &Arrival, repeat: u32) -> Result<Outcome> {
        self.test(packet, &mut [], arrival, repeat)
    }

    /// The same for two programs, which take turns in [`STRETCHES`] of `repeat` runs: the last actions, and the mean of each
    /// [at rest](at_rest).
    pub fn both([a, b]: [&Self; 2], packet: &[u8], arrival: &Arrival, repeat: u32) -> Result<[Outcome; 2]> {
        let (mut costs, mut outcomes) = ([Vec::new(), Vec::new()], [Outcome::NOTHING; 2]);
        for _ in 0..STRETCHES {
            for ((program, costs), outcome) in [a, b].into_iter().zip(&mut costs).zip(&mut outcomes) {
                // the first run of a stretch finds the other program's code in the caches
                program.run(packet, arrival, repeat / 10)?;
                *outcome = program.run(packet, arrival, repeat)?;
                costs.push(outcome.nanoseconds);
            }
        }
        for (outcome, costs) in outcomes.iter_mut().zip(&costs) {
            outcome.nanoseconds = at_rest(costs).context("no stretches")?;
        }
        Ok(outcomes)
    }

    /// The packet as it is after `repeat` runs.
    pub fn rewritten(&self, packet: &[u8], arrival: &Arrival, repeat: u32) -> Result<Vec<u8>> {
        let mut out = vec![0; packet.len()];
        self.test(packet, &mut out, arrival, repeat)?;
        Ok(out)
    }

    /// Without room in `out` nothing is written there.
    fn test(&self, packet: &[u8], out: &mut [u8], arrival: &Arrival, repeat: u32) -> Result<Outcome> {
        let context =
            Context { ingress_ifindex: arrival.ingress_ifindex, ifindex: arrival.ifindex, ..Context::default() };
        loop {
            let mut test = Test {
                program: self.0.as_raw_fd() as u32,
                packet_size: packet.len() as u32,
                packet: packet.as_ptr() as u64,
                packet_out_size: out.len() as u32,
                packet_out: if out.is_empty() { 0 } else { out.as_mut_ptr() as u64 },
                repeat,
                context_size: size_of::<Context>() as u32,
                context: &raw const context as u64,
                ..Test::default()
            };
            match bpf(BPF_PROG_TEST_RUN, &mut test) {
                Ok(_) => return Ok(Outcome { action: test.action as i32, nanoseconds: test.duration.into() }),
                Err(error) if error.raw_os_error() == Some(Errno::EINTR as i32) => {}
                Err(error) => return Err(error).context("BPF_PROG_TEST_RUN"),
            }
        }
    }
}

/// The number of an interface in `netns`.
pub fn ifindex(netns: &Netns, name: &str) -> Result<u32> {
    netns.run(|| nix::net::if_::if_nametoindex(name).with_context(|| name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::topology::{Families, Topology};

    #[test]
    fn layouts_are_the_kernels() {
        // Offsets in union bpf_attr and struct __sk_buff of uapi/linux/bpf.h.
        assert_eq!(std::mem::offset_of!(Load, license), 16);
        assert_eq!(std::mem::offset_of!(Test, repeat), 32);
        assert_eq!(std::mem::offset_of!(Test, context), 48);
        assert_eq!(size_of::<Test>(), 80);
        assert_eq!(std::mem::offset_of!(Context, ifindex), 40);
    }

    #[test]
    fn a_classifier_sees_the_interfaces_that_the_packet_arrives_by() -> Result<()> {
        let topology = Topology::bridged(2, Families::V4)?;
        let (a, b) = topology.pair();
        let [ifindex, ingress_ifindex] =
            [ifindex(&topology.host, &a.host_end())?, ifindex(&topology.host, &b.host_end())?];
        // r0 = *(u32 *)(r1 + offset)
        let field = |offset| Program::load(&[insn::load32(0, 1, offset), insn::EXIT]);
        let arrival = Arrival { ifindex, ingress_ifindex };
        topology.host.run(|| {
            assert_eq!(field(40)?.run(&[0; 60], &arrival, 1)?.action, ifindex as i32);
            assert_eq!(field(36)?.run(&[0; 60], &arrival, 1)?.action, ingress_ifindex as i32);
            Ok(())
        })
    }

    #[test]
    fn an_empty_classifier_passes_the_packet_on() -> Result<()> {
        let arrival = Arrival { ifindex: 1, ingress_ifindex: 0 };
        let outcome = Program::empty()?.run(&[0; 60], &arrival, 10)?;
        assert_eq!(outcome.action, -1);
        Ok(())
    }
}
