//! The programs: how each is started in its namespace, with a data folder of its own, and ended by its process id.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::super::{
    interrupt, made,
    topology::{self, DATA, inside},
};
use crate::{
    say, setup,
    shell::{self, quietly},
};

/// What is needed beside the rest. Debian starts what it installs, where there is systemd.
pub const PROGRAMS: [setup::Program; 4] = [
    ("nginx", "nginx-light", "the load balancer; Debian starts its service"),
    ("redis-server", "redis-server", "the cache; Debian starts its service"),
    ("postgres", "postgresql", "the database; Debian starts its service"),
    ("/usr/bin/python3", "python3", "the services"),
];

/// How long a program may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(20);
const NAP: Duration = Duration::from_millis(10);

fn files() -> PathBuf {
    shell::root().join("xtask/src/demo/real")
}

fn program(name: &str) -> Result<PathBuf> {
    shell::which(name).with_context(|| format!("{name} is gone"))
}

/// Starts all of them, the stores first.
pub fn start() -> Result<()> {
    fs::create_dir(DATA).context(DATA)?;
    let folder = |name: &str| -> Result<PathBuf> {
        let folder = Path::new(DATA).join(name);
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    };
    let postgres = postgres(&folder("postgres")?)?;
    let mut redis = inside("redis-cache", program("redis-server")?);
    redis.args(["--bind", "10.0.0.50", "--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir"]);
    redis.arg(folder("redis")?);
    let mut nginx = inside("nginx-lb", program("nginx")?);
    nginx.arg("-p").arg(folder("nginx")?).arg("-c").arg(files().join("nginx.conf")).args(["-e", "error.log"]);
    let gateway = |namespace: &str| {
        let mut gateway = python(namespace, "gateway.py");
        gateway.arg(namespace);
        gateway
    };
    let all = [
        ("postgres", 5432, postgres),
        ("redis", 6379, redis),
        ("product-service", 80, python("product-service", "product.py")),
        ("order-service", 80, python("order-service", "order.py")),
        ("api-gateway", 80, gateway("api-gateway")),
        ("api-gateway-2", 80, gateway("api-gateway-2")),
        ("nginx", 80, nginx),
    ];
    let mut running = vec![];
    for (name, port, command) in all {
        interrupt::check()?;
        running.push((name, port, launch(name, command)?));
    }
    for (name, port, mut child) in running {
        await_port(name, port, &mut child)?;
    }
    say::done("nginx, two gateways, two services, Redis and PostgreSQL are running");
    Ok(())
}

/// One of the services, in Debian's Python and with nothing of the user's.
pub fn python(namespace: &str, file: &str) -> Command {
    let mut command = inside(namespace, "/usr/bin/python3");
    command.args(["-B", "-E", "-s"]).arg(files().join(file));
    command
}

/// A new database cluster with the shop's tables. PostgreSQL refuses to run as root.
fn postgres(folder: &Path) -> Result<Command> {
    quietly(Command::new("chown").arg("postgres:").arg(folder))?;
    let unprivileged = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];
    let mut initdb = Command::new("setpriv");
    initdb.args(unprivileged).arg(program("initdb")?);
    initdb.args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync", "--pgdata"]);
    quietly(initdb.arg(folder).current_dir(folder))?;
    let mut access = File::options().append(true).open(folder.join("pg_hba.conf"))?;
    writeln!(access, "host all all 10.0.0.0/16 trust")?;
    let mut tables = Command::new("setpriv");
    tables.args(unprivileged).arg(program("postgres")?).args(["--single", "-F", "-D"]).arg(folder).arg("postgres");
    tables.current_dir(folder).stdin(File::open(files().join("init.sql"))?).stdout(Stdio::null());
    let output = tables.stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || said.contains("ERROR") {
        bail!("the shop's tables: {}", said.trim());
    }
    let mut postgres = inside("postgres-db", "setpriv");
    postgres.args(unprivileged).arg(program("postgres")?).args(["-F", "-h", "10.0.0.60", "-k", "", "-D"]).arg(folder);
    postgres.current_dir(folder);
    Ok(postgres)
}

/// Starts it, and writes its process id down: neither nsenter nor setpriv stays in between.
fn launch(name: &str, mut command: Command) -> Result<Child> {
    let log = File::create(log_of(name))?;
    command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().with_context(|| shell::Line(&command).to_string())?;
    let mut list = File::options().create(true).append(true).open(topology::PROGRAMS)?;
    writeln!(list, "{}", child.id())?;
    Ok(child)
}

fn log_of(name: &str) -> PathBuf {
    Path::new(DATA).join(format!("{name}.log"))
}

/// Waits until somebody listens on the port, in the program's namespace.
fn await_port(name: &str, port: u16, child: &mut Child) -> Result<()> {
    let begin = Instant::now();
    while !listens(child.id(), port) {
        interrupt::check()?;
        if child.try_wait()?.is_some() || begin.elapsed() > PATIENCE {
            bail!("{name} does not start: {}", fs::read_to_string(log_of(name)).unwrap_or_default().trim());
        }
        thread::sleep(NAP);
    }
    Ok(())
}

/// proc_net_tcp: the second field is the local address and port, the fourth the state, 0A for a listener.
fn listens(pid: u32, port: u16) -> bool {
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.len() > 3 && fields[1].ends_with(&format!(":{port:04X}")) && fields[3] == "0A"
    })
}

/// Ends those that run: asks all of them, and waits for each.
pub fn end() -> Result<()> {
    let list = fs::read_to_string(topology::PROGRAMS).unwrap_or_default();
    let pids: Vec<libc::pid_t> =
        list.lines().filter_map(|line| line.parse().ok()).filter(|&pid| is_ours(pid)).collect();
    // PostgreSQL's own children end with it, and its shared memory is gone, when it ends by itself.
    pids.iter().for_each(|&pid| signal(pid, libc::SIGINT));
    let begin = Instant::now();
    for pid in pids {
        while is_running(pid) && begin.elapsed() < PATIENCE {
            thread::sleep(NAP);
        }
        if is_running(pid) {
            signal(pid, libc::SIGKILL);
        }
    }
    Ok(())
}

/// Whether it still is what was started: in one of the demo's namespaces, which nobody else's processes enter.
fn is_ours(pid: libc::pid_t) -> bool {
    let names = made::namespaces();
    let own = quietly(Command::new("ip").args(["netns", "identify", &pid.to_string()]));
    own.is_ok_and(|output| names.iter().any(|name| String::from_utf8_lossy(&output.stdout).trim() == name))
}

fn signal(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: sends a signal; touches no memory.
    unsafe { libc::kill(pid, signal) };
}

/// A child of ours stays a zombie until it is waited for.
fn is_running(pid: libc::pid_t) -> bool {
    // SAFETY: waits for a child without blocking; no status is asked for.
    let waited = unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
    waited == 0 || waited < 0 && Path::new("/proc").join(pid.to_string()).exists()
}
