//! Every column of every tab puts the rows in its order, and in the reverse.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::{
    COMMAND, echoed,
    support::{
        Attempt::{Ping, Tcp},
        Family, Scene,
        Seen::{Answered, Refused, Silent},
        check, exchange, packet,
        policy::{from, ingress},
        terminal::Terminal,
    },
};

/// What a cell is worth.
type Worth = (f64, String, f64);

/// A title, what its cells are worth, and whether the rows of the test differ there.
type Column = (&'static str, fn(&str) -> Worth, bool);

const FLOWS: [Column; 14] = [
    ("VERDICT", severity, true),
    ("FROM", end, true),
    ("TO", end, true),
    ("PROTO", protocol, true),
    ("PKT/S", number, true),
    ("B/S", number, true),
    ("PACKETS", number, true),
    ("BYTES", number, true),
    ("AGE", number, true),
    ("STATE", state, true),
    ("WAY", text, true),
    // each row is one, until they are grouped
    ("CONNS", number, false),
    ("TRANSLATED", text, true),
    ("RULE", rule, true),
];

const ENDPOINTS: [Column; 9] = [
    ("ENDPOINT", text, true),
    ("ALLOWED", number, true),
    ("DENIED", number, true),
    ("PKT/S", number, true),
    // nobody is denied just now
    ("DENIED/S", number, false),
    ("B/S", number, true),
    ("BYTES", number, true),
    ("ISOLATED", text, true),
    ("ADDRESSES", text, true),
];

const RULES: [Column; 7] = [
    ("VERDICT", severity, true),
    ("RULE", text, true),
    ("FLOWS", number, true),
    ("PKT/S", number, true),
    ("PACKETS", number, true),
    ("BYTES", number, true),
    ("SOURCE", text, true),
];

const DROPS: [Column; 6] = [
    ("REASON", marked, true),
    // all of them where they are sent
    ("AT", text, false),
    ("DROPS/S", number, false),
    ("PACKETS", number, true),
    ("BYTES", number, true),
    ("MEANS", text, true),
];

const SERVICES: [Column; 11] = [
    ("SERVICE", text, true),
    ("PORT", port, true),
    ("OPEN", number, true),
    ("UNANSWERED", number, false),
    ("PKT/S", number, false),
    ("B/S", number, false),
    ("HEALTHY", ratio, true),
    ("PACKETS", number, true),
    ("BYTES", number, true),
    ("DENIED", number, true),
    ("PUBLISHED", text, true),
];

fn text(cell: &str) -> Worth {
    (0.0, cell.to_owned(), 0.0)
}

/// `12`, `1.5k`, `3M`, `2m` (of time), after a sign or not.
fn number(cell: &str) -> Worth {
    let cell = cell.trim_start_matches(['✓', '✗', ' ']);
    let digits = cell.trim_end_matches(|c: char| c.is_alphabetic());
    let unit = match &cell[digits.len()..] {
        "" | "s" => 1.0,
        "m" => 60.0,
        "k" => 1e3,
        "M" => 1e6,
        unit => panic!("{unit} in {cell}"),
    };
    let number: f64 = digits.parse().unwrap_or_else(|error| panic!("{cell}: {error}"));
    (number * unit, String::new(), 0.0)
}

fn rank(cell: &str, order: &[&str]) -> Worth {
    let place = order.iter().position(|of| *of == cell).unwrap_or_else(|| panic!("{cell} is none of {order:?}"));
    (place as f64, String::new(), 0.0)
}

fn severity(cell: &str) -> Worth {
    // a rule that has decided nothing has no verdict
    rank(cell, &["-", "✓ allowed", "! audited", "✗ denied"])
}

fn protocol(cell: &str) -> Worth {
    rank(cell, &["ICMP", "TCP", "UDP"])
}

fn state(cell: &str) -> Worth {
    rank(cell, &["-", "SYN-SENT", "ESTABLISHED", "CLOSING", "CLOSED", "RESET"])
}

/// Endpoints are after addresses, and what has no port before what has one.
fn end(cell: &str) -> Worth {
    let (who, port) = cell.rsplit_once(':').unwrap_or((cell, "-1"));
    let who = who.trim_start_matches("service ");
    (f64::from(who.contains('/')), who.to_owned(), port.parse().expect("a port"))
}

/// `no policy` is before all of them.
fn rule(cell: &str) -> Worth {
    (f64::from(cell != "no policy"), cell.to_owned(), 0.0)
}

/// What is audited is after what is enforced, where the reason is the same.
fn marked(cell: &str) -> Worth {
    let (mark, reason) = cell.split_once(' ').expect("a mark");
    (0.0, reason.to_owned(), f64::from(mark == "!"))
}

/// `http 80/tcp`
fn port(cell: &str) -> Worth {
    let (port, protocol) = cell.rsplit(' ').next().and_then(|port| port.split_once('/')).expect("80/tcp");
    (port.parse().expect("a port"), protocol.to_owned(), 0.0)
}

/// `✓ 1/1`
fn ratio(cell: &str) -> Worth {
    let (well, all) = cell.trim_start_matches(['✓', '✗', ' ']).split_once('/').expect("1/1");
    (well.parse().expect("a number"), String::new(), all.parse().expect("a number"))
}

/// The table's head and rows, without what is around them.
fn table(screen: &str) -> Vec<Vec<char>> {
    let lines = screen.lines().skip(3).take_while(|line| !line.trim().is_empty());
    lines.map(|line| line.chars().collect()).collect()
}

/// The cells below a title. Columns are where every line is blank between them; where a cell of words is blank
/// in every row, the parts belong to the title before.
fn cells(screen: &str, title: &str) -> Option<Vec<String>> {
    let lines = table(screen);
    let (head, rows) = lines.split_first()?;
    let width = lines.iter().map(Vec::len).max()?;
    let is_blank = |line: &[char], x: usize| line.get(x).is_none_or(|c| *c == ' ');
    let mut columns: Vec<(String, usize, usize)> = vec![];
    let mut at = 0;
    while at < width {
        if lines.iter().all(|line| is_blank(line, at)) {
            at += 1;
            continue;
        }
        let end = (at..width).find(|x| lines.iter().all(|line| is_blank(line, *x))).unwrap_or(width);
        let name: String = (at..end).filter_map(|x| head.get(x)).collect();
        let name = name.trim().trim_end_matches(['▲', '▼']).to_owned();
        match columns.last_mut() {
            Some((_, _, last)) if name.is_empty() => *last = end,
            _ => columns.push((name, at, end)),
        }
        at = end;
    }
    let (_, begin, end) = columns.into_iter().find(|(name, ..)| name == title)?;
    let cell = |row: &Vec<char>| (begin..end).filter_map(|x| row.get(x)).collect::<String>().trim().to_owned();
    Some(rows.iter().map(cell).collect())
}

/// What the table is sorted by, and whether the highest is first.
fn order(screen: &str) -> Option<(String, bool)> {
    let (title, arrow) = screen.lines().nth(2)?.rsplit_once(", by ")?.1.trim().split_once(' ')?;
    Some((title.to_owned(), arrow == "▼"))
}

/// Goes through all columns of the present tab.
#[track_caller]
fn assert_sorts(terminal: &mut Terminal, columns: &[Column], rows: usize) {
    let mut left: Vec<&str> = columns.iter().map(|(title, ..)| *title).collect();
    let mut before = order(&terminal.text());
    for _ in columns {
        terminal.keys(">");
        let screen = terminal.wait("another column", |screen| {
            let now = order(screen);
            now.is_some() && now.as_ref().map(|now| &now.0) != before.as_ref().map(|before| &before.0)
        });
        let (title, descending) = order(&screen).expect("it was there");
        let Some((_, worth, differ)) = columns.iter().find(|(name, ..)| *name == title) else { panic!("{title}") };
        left.retain(|name| *name != title);
        for descending in [descending, !descending] {
            let is_sorted = |screen: &str| {
                let Some(cells) = cells(screen, &title) else { return false };
                let worth: Vec<Worth> = cells.iter().map(|cell| worth(cell)).collect();
                let in_order = worth.is_sorted_by(|a, b| if descending { a >= b } else { a <= b });
                let distinct = worth.iter().any(|other| *other != worth[0]);
                cells.len() == rows && in_order && (distinct || !differ)
            };
            let wanted = Some((title.clone(), descending));
            terminal.wait(&format!("rows by {title}"), |screen| order(screen) == wanted && is_sorted(screen));
            terminal.keys("r");
        }
        before = Some((title, descending));
    }
    assert!(left.is_empty(), "there is no {left:?}");
}

/// `web` is answered by `b`, and `idle` by nobody.
const SERVICES_LOADED: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.10, selector: {app: b}, ports: \
     [{name: http, port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: idle}\nspec: {clusterIP: \
     10.96.0.11, selector: {app: nobody}, ports: [{port: 81}]}\n";

#[test]
fn every_column_of_every_tab_sorts_in_both_directions() {
    let scene = Scene::bridged();
    let Scene { host, a, b, c, outside } = &scene;
    let audited = ingress("c", &[]).replace("metadata: {", "metadata: {annotations: {netpol.dev/audit: 'true'}, ");
    host.load(&scene.all(), &[SERVICES_LOADED.to_owned(), ingress("b", &[from("a", &["80/TCP", "53/UDP"])]), audited]);
    let _servers = (b.serve_tcp(80), b.serve_udp(53), c.serve_tcp(80));
    check(&[
        (a, Tcp(b.at(Family::V4, 80)), Answered),
        (a, Ping(c.ipv4()), Answered),
        (b, Tcp(a.at(Family::V4, 7)), Refused),
        (c, Tcp(b.at(Family::V4, 80)), Silent),
        (c, Tcp("10.96.0.10:80".into()), Silent),
        (outside, Tcp(a.at(Family::V4, 7)), Refused),
    ]);
    let mut open = a.connect("10.96.0.10:80");
    assert_eq!(exchange(&mut open), Answered);
    // not its own address
    let spoofed = packet::udp(c.socket(Family::V4, 4000), b.socket(Family::V4, 53), b"c?");
    a.raw().send(&packet::frame(b.mac(), a.mac(), &spoofed));
    let to: SocketAddr = b.at(Family::V4, 53).parse().unwrap();
    let socket = echoed(a, to, 1);
    let stop = AtomicBool::new(false);
    // wide enough for all of them
    let arguments = [&COMMAND[..], &["--filter", "to:default/*"]].concat();
    let mut terminal = host.terminal((50, 400), &[], &arguments);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                socket.send(b"ping").unwrap();
                _ = socket.recv(&mut [0; 16]);
                // `top` needs a processor, too
                thread::sleep(Duration::from_millis(5));
            }
        });
        let grown = |screen: &str, title: &str| {
            cells(screen, title).is_some_and(|cells| cells.iter().any(|cell| number(cell).0 >= 1.0))
        };
        // what is shown is bounded, so this thread ends also where that fails
        let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            terminal.wait("an old connection", |screen| grown(screen, "AGE"));
            check(&[(a, Tcp(b.at(Family::V4, 80)), Answered)]);
            terminal.wait("rates and all rows", |screen| table(screen).len() == 1 + 9 && grown(screen, "PKT/S"));
            terminal.keys(" ");
            terminal.shows(&["PAUSED"]);
        }));
        stop.store(true, Ordering::Relaxed);
        shown.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_sorts(&mut terminal, &FLOWS, 9);
    let grouped: Vec<Column> = FLOWS.iter().map(|(title, worth, _)| (*title, *worth, *title == "CONNS")).collect();
    terminal.keys("g");
    terminal.shows(&["6 groups,"]);
    assert_sorts(&mut terminal, &grouped, 6);
    for (key, columns, rows) in [("2", &ENDPOINTS[..], 3), ("3", &RULES, 3), ("4", &DROPS, 3), ("5", &SERVICES, 2)] {
        terminal.keys(key);
        terminal.shows(&[&format!("[{key} ")]);
        assert_sorts(&mut terminal, columns, rows);
    }
    terminal.keys("q");
    assert!(terminal.ends_and_restores().success());
}
