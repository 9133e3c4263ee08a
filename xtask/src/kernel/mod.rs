//! The oldest kernel that netpol is for, in a machine of its own: its verifier is not that of the kernel that runs here,
//! and refuses what newer ones accept.
//!
//! The kernel is Debian's package, unpacked and not installed; the machine has no disk, only an archive of what it needs
//! (the kernel's documentation, `early-userspace`).

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    harness, say,
    setup::{Program, refresh},
    shell::{self, quietly},
};

/// Debian 12's.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// In the order in which they need each other. What a kernel has built in is no file.
const MODULES: [&str; 7] = ["ipv6", "llc", "stp", "bridge", "veth", "sch_ingress", "cls_bpf"];
/// Without hardware's help (a machine inside a machine has none) the verifier takes its time.
const SECONDS: &str = "600";

pub const PROGRAMS: [Program; 2] = [
    ("qemu-system-x86_64", "qemu-system-x86", "a machine for the oldest kernel that netpol is for"),
    ("busybox", "busybox-static", "what that machine runs"),
];

/// Boots it, and has netpol enforce a policy there.
pub fn run() -> Result<()> {
    if cfg!(not(target_arch = "x86_64")) {
        bail!("the machine for the oldest kernel is made of x86-64 packages");
    }
    let netpol = harness::netpol()?;
    let folder = shell::target()?.join("kernel");
    let kernel = unpacked(&folder)?;
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| root.display().to_string())?;
    }
    furnish(&root, &netpol, &kernel)?;
    let archive = folder.join("archive");
    let pack = format!("cd '{}' && find . | busybox cpio -o -H newc >'{}'", root.display(), archive.display());
    quietly(Command::new("sh").args(["-c", &pack]))?;
    boot(&kernel, &archive)
}

/// An unpacked kernel.
struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

/// Downloads the package that stands for the newest build of that kernel, once for each.
fn unpacked(folder: &Path) -> Result<Kernel> {
    let package = match newest() {
        Some(package) => package,
        // without the lists of packages nothing is known
        None => {
            refresh()?;
            newest().with_context(|| format!("apt-cache names no kernel for {PACKAGE}"))?
        }
    };
    let version = package.trim_start_matches("linux-image-");
    let unpacked = folder.join(version);
    if !unpacked.exists() {
        say::note(format_args!("fetching {package}: unpacked, not installed"));
        let download = folder.join("download");
        fs::create_dir_all(&download)?;
        quietly(Command::new("apt-get").args(["download", "-qq", &package]).current_dir(&download))?;
        let file = fs::read_dir(&download)?.flatten().map(|entry| entry.path()).find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{package}_")))
        });
        let partly = folder.join("partly");
        quietly(Command::new("dpkg").arg("-x").arg(file.context("no package was downloaded")?).arg(&partly))?;
        fs::rename(&partly, &unpacked)?;
        fs::remove_dir_all(&download)?;
    }
    Ok(Kernel {
        image: unpacked.join(format!("boot/vmlinuz-{version}")),
        modules: unpacked.join(format!("lib/modules/{version}/kernel")),
    })
}

/// The package that [`PACKAGE`] stands for.
fn newest() -> Option<String> {
    let depends =
        Command::new("apt-cache").args(["depends", "--important", PACKAGE]).env("LC_ALL", "C").output().ok()?;
    let depends = String::from_utf8_lossy(&depends.stdout).into_owned();
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.filter(|name| name.starts_with("linux-image-")).map(str::to_owned).next()
}

/// Lays out what the machine begins with.
fn furnish(root: &Path, netpol: &Path, kernel: &Kernel) -> Result<()> {
    for folder in ["dev", "proc", "sys", "run", "tmp", "modules", "bin", "root"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let which = |program| shell::which(program).with_context(|| format!("no `{program}` in PATH"));
    put(root, &which("busybox")?, "bin/busybox")?;
    let applets = quietly(Command::new("busybox").arg("--list"))?;
    // busybox's shell would run its own `ip`, which knows no namespaces
    let others = ["busybox", "ip", "sh"];
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|applet| !others.contains(applet)) {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    put(root, &which("dash")?, "bin/sh")?;
    put(root, &which("ip")?, "bin/ip")?;
    put(root, netpol, "bin/netpol")?;
    let known = files(&kernel.modules)?;
    for (number, module) in MODULES.iter().enumerate() {
        let Some(file) = known.get(&format!("{module}.ko")) else { continue };
        fs::copy(file, root.join(format!("modules/{number}-{module}.ko")))?;
    }
    let init = root.join("init");
    fs::write(&init, include_str!("guest.sh"))?;
    Ok(fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?)
}

/// Copies a program, with the libraries that it is linked to.
fn put(root: &Path, program: &Path, place: &str) -> Result<()> {
    fs::copy(program, root.join(place)).with_context(|| program.display().to_string())?;
    // a static program has none, which is an error to ldd
    let linked = Command::new("ldd").arg(program).output()?;
    for library in String::from_utf8_lossy(&linked.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().unwrap_or(root))?;
        fs::copy(library, copy).with_context(|| library.to_owned())?;
    }
    Ok(())
}

/// All files below a folder, by name.
fn files(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                found.insert(entry.file_name().to_string_lossy().into_owned(), entry.path());
            }
        }
    }
    Ok(found)
}

/// Runs the machine until it ends itself, or its time is up.
fn boot(kernel: &Kernel, archive: &Path) -> Result<()> {
    let mut machine = Command::new("timeout");
    machine.args(["--kill-after=5", SECONDS, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "1"]);
    machine.args(["-m", "1024", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"]);
    machine.args(["-serial", "stdio", "-append", "console=ttyS0 panic=-1 loglevel=3 mitigations=off"]);
    machine.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(archive);
    say::command(shell::Line(&machine));
    let output = machine.output().context("qemu-system-x86_64")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = said.lines().filter_map(|line| line.trim().strip_prefix("guest: ")).collect();
    lines.iter().for_each(say::note);
    if lines.last() == Some(&"all held") {
        return Ok(());
    }
    // what it complained about is in front of its last word
    let all: Vec<_> = said.lines().collect();
    bail!(
        "{}\n{}",
        lines.last().unwrap_or(&"the machine did not begin"),
        all[all.len().saturating_sub(60)..].join("\n")
    )
}
