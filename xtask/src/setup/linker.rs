//! bpf-linker: the last step of building the classifiers, a program of its own on top of LLVM.
//!
//! It reads what the compiler wrote, so its LLVM must not be older than the compiler's. Whether the one that is here will
//! do is found out by trying.

use std::{
    env, fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Command,
    time::UNIX_EPOCH,
};

use anyhow::{Context as _, Result, bail};

use super::{
    Source, Step, debian,
    toolchain::{self, Core, Toolchain},
    toolchain_source,
};
use crate::shell;

pub const VERSION: &str = "0.13.0";

/// The LLVMs that this version can be built for.
const SUPPORTED: RangeInclusive<u32> = 21..=23;

/// The LLVM of Debian's `rustc-web`, to name the packages before it is there to be asked.
const DEBIAN: u32 = 22;

const WITH_CORE: &str = r#"#![no_std]
#![no_main]
#[unsafe(no_mangle)]
pub extern "C" fn probe(a: u64) -> u64 { a + 1 }
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! { loop {} }
"#;

/// For a toolchain that has to build `core` first.
const WITHOUT_CORE: &str = "#![feature(no_core)]\n#![no_core]\n#![no_main]\n";

/// Whether there is a linker that can link what this toolchain compiles.
pub fn check(toolchain: Option<&Toolchain>) -> Result<()> {
    let linker = shell::which("bpf-linker").context("not in PATH")?;
    // Without a compiler there is nothing to try; the next look tells.
    let Some(toolchain) = toolchain else { return Ok(()) };
    let folder = shell::target()?.join("xtask");
    let stamp = folder.join("bpf-linker-works");
    let pair = format!("{} {}", dated(&toolchain.sysroot.join("bin/rustc"))?, dated(&linker)?);
    if fs::read_to_string(&stamp).is_ok_and(|known| known == pair) {
        return Ok(());
    }
    fs::create_dir_all(&folder)?;
    probe(toolchain, &folder).context("the one in PATH can't link what the compiler emits")?;
    // Linking `core` takes seconds: once for each pair of compiler and linker is enough.
    fs::write(stamp, pair)?;
    Ok(())
}

fn dated(file: &Path) -> Result<String> {
    let changed = file.metadata().with_context(|| file.display().to_string())?.modified()?;
    Ok(format!("{} {}", file.display(), changed.duration_since(UNIX_EPOCH)?.as_nanos()))
}

fn probe(toolchain: &Toolchain, folder: &Path) -> Result<()> {
    let source = folder.join("probe.rs");
    fs::write(&source, if toolchain.core == Core::Prebuilt { WITH_CORE } else { WITHOUT_CORE })?;
    let mut rustc = Command::new(toolchain.sysroot.join("bin/rustc"));
    rustc
        .args(["--edition", "2024", "--target", "bpfel-unknown-none", "--crate-type", "cdylib", "-Cpanic=abort"])
        .arg(source)
        .arg("-o")
        .arg(folder.join("probe.o"))
        .env("RUSTC_BOOTSTRAP", toolchain.core.bootstrap());
    shell::quietly(&mut rustc).map(drop)
}

/// The command that installs it, built for an LLVM that knows the compiler's; what that needs is added to the packages.
pub fn step(packages: &mut Vec<String>) -> Result<Step> {
    let compiler = match toolchain::find()? {
        Some(toolchain) => llvm_of(&toolchain.sysroot.join("bin/rustc"))?,
        None if toolchain_source() == Source::System => llvm_of(Path::new("/usr/bin/rustc"))?,
        None => DEBIAN,
    };
    let (version, prefix) = llvm_for(compiler, packages)?;
    let mut command = Command::new("cargo");
    command.args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force", "--no-default-features"]);
    command.arg("--features").arg(format!("llvm-{version}")).env("LLVM_PREFIX", prefix);
    Ok(Step { why: "links the classifiers; built once, takes a minute", needs_root: false, quiet: false, command })
}

/// The major version of a compiler's LLVM.
fn llvm_of(rustc: &Path) -> Result<u32> {
    let output = shell::quietly(Command::new(rustc).arg("-vV"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: ")).and_then(major);
    version.with_context(|| format!("{} does not name its LLVM", rustc.display()))
}

fn major(version: &str) -> Option<u32> {
    version.trim().split('.').next()?.parse().ok()
}

/// The LLVM to build the linker for, and where it is: one that is installed, else one that Debian has.
fn llvm_for(compiler: u32, packages: &mut Vec<String>) -> Result<(u32, PathBuf)> {
    let fits = || SUPPORTED.filter(|version| *version >= compiler);
    if let Some(found) = fits().find_map(|version| Some((version, installed(version)?))) {
        return Ok(found);
    }
    let offered = fits().find(|version| {
        matches!(
            debian::candidate(&format!("llvm-{version}-dev")),
            debian::Candidate::Version(_) | debian::Candidate::NeverAsked
        )
    });
    let Some(version) = offered else {
        bail!(
            "bpf-linker {VERSION} needs the development files of LLVM {compiler} (or newer, up to {}): install them and \
             set LLVM_PREFIX to where they are",
            SUPPORTED.end()
        );
    };
    packages.push(format!("llvm-{version}-dev"));
    Ok((version, PathBuf::from(format!("/usr/lib/llvm-{version}"))))
}

/// The folder of an LLVM with its headers.
fn installed(version: u32) -> Option<PathBuf> {
    let given = env::var_os("LLVM_PREFIX").map(PathBuf::from);
    let known = ["/usr/lib/llvm-", "/usr/lib64/llvm", "/usr/lib/llvm"].map(|start| format!("{start}{version}").into());
    given
        .into_iter()
        .chain(known)
        .chain([PathBuf::from("/usr")])
        .find(|prefix| prefix.join("include/llvm-c/Core.h").is_file() && version_of(prefix) == Some(version))
}

fn version_of(prefix: &Path) -> Option<u32> {
    let output = Command::new(prefix.join("bin/llvm-config")).arg("--version").output().ok()?;
    major(&String::from_utf8_lossy(&output.stdout))
}
