//! The examples that people learn from do what their READMEs say: each is loaded as it is, in
//! namespaces of the test's own, and `netpol verify` connects everybody with everybody.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
};

use support::{
    Attempt::Tcp,
    Example, Family, HOST, Scene,
    Seen::{Answered, Silent},
    check, client_of, policies,
};

/// A README's table number `number`: (row, column, cell) for each cell that says something, lists of names
/// taken apart.
fn table(readme: &str, number: usize) -> Vec<(String, String, bool)> {
    let text = fs::read_to_string(policies().join(readme)).unwrap();
    let mut tables = text.split("| from \\ to ").skip(1).map(|rest| rest.split("\n\n").next().unwrap());
    let table = tables.nth(number).unwrap_or_else(|| panic!("{readme} has no table {number}"));
    let cells = |line: &str| -> Vec<String> {
        let plain = line.replace("**", "").replace(" :", ":");
        plain.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_lowercase()).collect()
    };
    let mut lines = table.lines();
    let columns = cells(lines.next().unwrap());
    let mut found = vec![];
    for line in lines.skip(1) {
        let row = cells(line);
        for (column, cell) in columns.iter().zip(&row[1..]) {
            for (from, to) in row[0].split(", ").flat_map(|from| column.split(", ").map(move |to| (from, to))) {
                match cell.as_str() {
                    "yes" => found.push((from.to_owned(), to.to_owned(), true)),
                    "no" => found.push((from.to_owned(), to.to_owned(), false)),
                    "" => {}
                    other => panic!("{readme}: {other}"),
                }
            }
        }
    }
    found
}

/// Each cell of the table is what was proved; `port` for columns that name none.
fn compare(cells: &[(String, String, bool)], proved: &BTreeMap<String, bool>, port: u16) {
    // lists of names meet themselves
    for (from, to, allowed) in cells.iter().filter(|(from, to, _)| to.split(':').next() != Some(from)) {
        let to = if to.contains(':') { to.clone() } else { format!("{to}:{port}") };
        let pair = format!("{from} > {to}");
        assert_eq!(proved.get(&pair), Some(allowed), "{pair} in {proved:#?}");
    }
}

#[test]
fn shop_is_its_readme() {
    let shop = Example::up("shop", "10.0.0.1/16");
    let (internet, cells): (Vec<_>, Vec<_>) =
        table("shop/README.md", 0).into_iter().partition(|(from, ..)| from == "the internet");
    assert_eq!((internet.len(), cells.len()), (6, 30));
    compare(&cells, &shop.proved(&[]), 80);

    let outside = shop.internet();
    let mut expected = vec![];
    let mut servers = vec![];
    for (_, to, allowed) in &internet {
        let (name, port) = to.split_once(':').unwrap();
        let (endpoint, port) = (&shop.endpoints[name], port.parse().unwrap());
        servers.push(endpoint.serve_tcp(port));
        expected.push((&outside, Tcp(endpoint.at(Family::V4, port)), if *allowed { Answered } else { Silent }));
    }
    check(&expected);
    // "on any other port: no, for everybody"
    let proved = shop.proved(&["8080/tcp", "53/udp"]);
    assert_eq!(proved.len(), 60);
    assert!(proved.values().all(|allowed| !allowed), "{proved:#?}");
    let flows = shop.host.flows();
    let denied = flows.iter().filter(|flow| flow["verdict"] == "denied" && flow["current"] == true);
    assert!(denied.clone().count() >= 30);
    for flow in denied {
        assert!(flow["rule"]["source"].as_str().unwrap().contains("example.yaml:"), "{flow:#}");
    }
}

#[test]
fn shop_is_published_and_masqueraded_as_its_readme_says() {
    let shop = Example::up("shop", "10.0.0.1/16");
    let outside = shop.internet();
    let host: IpAddr = HOST[0].parse().unwrap();
    let published = format!("{host}:8080");
    let nginx = &shop.endpoints["nginx-lb"];
    assert_eq!(client_of(nginx, 80, &outside, &published), outside.ipv4());

    let cells = table("shop/README.md", 1);
    assert_eq!(cells.len(), 5 * shop.endpoints.len());
    let ports: BTreeSet<u16> = cells.iter().map(|(_, to, _)| to.split_once(':').unwrap().1.parse().unwrap()).collect();
    let servers: Vec<_> = ports.into_iter().map(|port| outside.serve_tcp(port)).collect();
    let expected: Vec<_> = cells
        .iter()
        .map(|(from, to, allowed)| (&shop.endpoints[from], Tcp(to.clone()), if *allowed { Answered } else { Silent }))
        .collect();
    check(&expected);
    drop(servers);
    for (from, to, _) in cells.iter().filter(|(.., allowed)| *allowed) {
        let (_, port) = to.split_once(':').unwrap();
        assert_eq!(client_of(&outside, port.parse().unwrap(), &shop.endpoints[from], to), host, "{from} to {to}");
    }
    // what is denied is denied by the host's address, too
    let _server = nginx.serve_tcp(80);
    let siblings = shop.endpoints.iter().filter(|(name, _)| *name != "nginx-lb");
    check(&siblings.map(|(_, endpoint)| (endpoint, Tcp(published.clone()), Silent)).collect::<Vec<_>>());
    let rules = shop.host.run("nft", &["list", "ruleset"]) + &shop.host.run("iptables-save", &[]);
    assert_eq!(rules, "");
}

#[test]
fn abc_is_its_readme() {
    let abc = Example::up("abc", "10.10.0.1/24");
    let cells = table("abc/README.md", 0);
    assert_eq!(cells.len(), 6);
    compare(&cells, &abc.proved(&[]), 80);
    compare(&cells, &abc.proved(&["4711/tcp"]), 4711);
    // "C may not reach A" is about who opens the connection
    let (a, c) = (&abc.endpoints["a"], &abc.endpoints["c"]);
    let _servers = (a.serve_tcp(80), c.serve_tcp(80));
    check(&[(a, Tcp(c.at(Family::V4, 80)), Answered), (c, Tcp(a.at(Family::V4, 80)), Silent)]);
    assert_eq!(abc.host.flow("c", "a", 80)["rule"]["name"], "c-may-not-reach-a");
}

#[test]
fn first_version_of_stars_is_its_readme() {
    let stars = Example::up("stars/v1", "10.20.0.1/24");
    let cells = table("stars/README.md", 0);
    assert_eq!(cells.len(), 12);
    compare(&cells, &stars.proved(&["80/tcp"]), 80);
}

#[test]
fn second_version_of_stars_is_its_readme() {
    let stars = Example::up("stars", "10.20.0.1/24");
    let proved = stars.proved(&["5000/tcp", "15672/tcp", "53/tcp", "8443/tcp", "9001/tcp"]);
    let cells = table("stars/README.md", 1);
    assert!(cells.len() > 25, "{cells:?}");
    compare(&cells, &proved, 5000);
    // "beside the table above"
    compare(&table("stars/README.md", 0), &proved, 5000);
}

#[test]
fn whole_folder_loads_together_with_endpoints_that_are_not_up() {
    let Scene { host, .. } = Scene::bridged();
    let folder = policies();
    let report = host.load_path(&[], folder.to_str().unwrap());
    let pending = report["pending"].as_array().unwrap().len();
    assert_eq!((pending, report["endpoints"].as_u64()), (16, Some(0)), "{report:#}");
    let status = host.netpol(&["status", "-o", "json"]);
    assert_eq!(status.code, 0, "pending endpoints don't count: {}", status.stdout);
    assert_eq!(status.json()["pending"].as_array().unwrap().len(), 16);
    let strict = host.netpol(&["load", "--strict", folder.to_str().unwrap()]);
    assert_eq!(strict.code, 1);
    assert!(strict.stderr.contains("shop/redis-cache: the network namespace"), "{}", strict.stderr);
}
