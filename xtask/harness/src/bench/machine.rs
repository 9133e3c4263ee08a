//! What the numbers were measured on.

use std::{fs, path::Path, process::Command};

use nix::sys::utsname::uname;
use serde::Serialize;

use super::{traffic::Timing, variants};

#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub kernel: String,
    pub architecture: String,
    pub cpu: String,
    pub cpus: usize,
    pub hypervisor: Option<String>,
    /// Weaknesses of the CPU that the kernel works around, and how.
    pub mitigations: Vec<String>,
    /// What was compared.
    pub tools: Vec<String>,
    /// Whether the CPU time of threads or the clock was measured.
    #[serde(skip)]
    pub timing: Timing,
}

impl Machine {
    pub fn this() -> Self {
        let (release, architecture) = uname().map_or_else(
            |_| Default::default(),
            |name| (name.release().to_string_lossy().into_owned(), name.machine().to_string_lossy().into_owned()),
        );
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            timing: Timing::of_this_kernel(&config(&release)),
            kernel: release,
            architecture,
            cpu: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            hypervisor: cpuinfo.contains(" hypervisor").then(|| "virtual machine".to_owned()),
            mitigations: mitigations(Path::new("/sys/devices/system/cpu/vulnerabilities")),
            tools: variants::versions(),
        }
    }
}

fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start().strip_prefix(':')?.trim()))
}

fn mitigations(folder: &Path) -> Vec<String> {
    let mut found = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let state = fs::read_to_string(entry.path()).ok()?;
            let state = state.trim().strip_prefix("Mitigation: ")?.to_owned();
            Some(format!("{}: {state}", entry.file_name().to_string_lossy()))
        })
        .collect::<Vec<_>>();
    found.sort();
    found
}

/// How the kernel was configured; empty where it doesn't tell.
fn config(release: &str) -> String {
    fs::read_to_string(format!("/boot/config-{release}"))
        .ok()
        .or_else(|| {
            let unpacked = Command::new("zcat").arg("/proc/config.gz").output().ok()?;
            unpacked.status.success().then(|| String::from_utf8_lossy(&unpacked.stdout).into_owned())
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_cpuinfo_is_found_by_its_whole_name() {
        let text = "model\t\t: 85\nmodel name\t: A CPU @ 2.70GHz\n";
        assert_eq!(field(text, "model name"), Some("A CPU @ 2.70GHz"));
        assert_eq!(field(text, "stepping"), None);
    }
}
