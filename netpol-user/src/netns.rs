//! Network namespaces: a namespace belongs to a thread, so whatever works inside another one does
//! so on a thread of its own, and nobody else's thread ever moves.
//!
//! A socket stays in the namespace in which it was opened, also after it went to another thread.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::{
            fs::{MetadataExt as _, OpenOptionsExt as _},
            net::UnixDatagram,
        },
    },
    panic,
    path::{Path, PathBuf},
    process, thread,
};

use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime;

/// A network namespace that is kept alive by this handle.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
}

/// Tells namespaces apart for as long as one of them is kept alive: the inode of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamespaceId {
    pub device: u64,
    pub inode: u64,
}

impl Namespace {
    /// Opens a file that is a network namespace; `InvalidInput` if it is something else.
    pub fn open(path: &Path) -> io::Result<Self> {
        // without O_NONBLOCK a fifo at that path would hold us up for ever
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        if !is_network_namespace(&file) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a network namespace"));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// The one that the calling thread is in.
    pub fn current() -> io::Result<Self> {
        // not /proc/self: that is the main thread's
        let file = File::open("/proc/thread-self/ns/net")?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()));
        Ok(Self { file, path })
    }

    /// A new one without a name, empty but for a loopback that is down. Nothing of it is left once
    /// this handle, and whatever runs inside, is gone. Needs CAP_SYS_ADMIN.
    pub fn anonymous() -> io::Result<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        });
        made.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// Where other processes can open it, while this handle lives.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn id(&self) -> io::Result<NamespaceId> {
        let metadata = self.file.metadata()?;
        Ok(NamespaceId { device: metadata.dev(), inode: metadata.ino() })
    }

    /// Runs `f` inside this namespace, on a thread of its own; a panic of `f` goes on in the caller.
    /// Needs CAP_SYS_ADMIN.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.join()?;
                Ok(f())
            });
            inside.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// As [`Self::enter`], with an asynchronous runtime whose every socket is inside.
    pub fn block_on<T: Send>(&self, f: impl AsyncFnOnce() -> T + Send) -> io::Result<T> {
        self.enter(|| {
            // one thread: a pool's threads would be in the namespace in which the pool was made
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(f()))
        })?
    }

    /// Moves the calling thread for good: only for threads that are made for it.
    pub(crate) fn join(&self) -> io::Result<()> {
        Ok(setns(&self.file, CloneFlags::CLONE_NEWNET)?)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The kernel's number for the calling thread's namespace, never used again until the next boot.
pub fn cookie() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to locals that outlive the call, and the length is the variable's.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

fn is_network_namespace(file: &File) -> bool {
    /// `_IO(0xb7, 3)` of linux/nsfs.h
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: this request takes no argument and only reads what the descriptor is.
    unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}
