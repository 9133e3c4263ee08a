//! The page of `netpol map` in a real browser.

mod support;

use support::{Attempt::Tcp, Browser, Example, Family, Scene, Seen::Silent, Served, Shop, check, policy::ingress};

fn served(host: &support::Host) -> Served {
    host.serve(&["map", "--listen", "127.0.0.1:0"])
}

#[test]
fn page_about_nothing_says_what_to_do_and_follows_when_it_is_done() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let served = served(host);
    let mut browser = host.browser();
    browser.open(&format!("http://{}/", served.address), "document.querySelector('#banner li')");
    assert!(browser.text("document.querySelector('#banner').innerText").contains("run `netpol load PATH`"));
    assert!(browser.text("document.querySelector('#state').innerText").contains("NOT ENFORCED"));
    browser.screenshot("nothing");
    host.load(&[a, b, c], &[ingress("b", &[])]);
    browser.wait("document.querySelector('#banner').hidden && document.querySelectorAll('#nodes .node').length >= 3");
    assert!(browser.text("document.querySelector('#state').innerText").contains("enforced, generation 1"));
}

/// The busy shop in a browser, once all that is denied has a rate.
fn shown(host: &support::Host) -> (Served, Browser) {
    let served = served(host);
    let mut browser = host.browser();
    let ready = "document.querySelectorAll('#labels .label.denied').length >= 3";
    browser.open(&format!("http://{}/", served.address), ready);
    browser.wait("document.querySelector('#labels').textContent.match(/denied [0-9.]+\\/s/)");
    (served, browser)
}

/// What the page must show of a denied edge.
fn assert_denied_is_told(browser: &mut Browser) {
    let labels = browser.text("document.querySelector('#labels').textContent");
    assert!(labels.contains("✕ denied") && labels.contains("by shop/default-deny egress ("), "{labels}");
    let row = "[...document.querySelectorAll('#rows tr.denied')].map((row) => row.innerText).join('\\n')";
    let rows = browser.text(row);
    assert!(rows.contains("shop/redis-cache") && rows.contains("TCP 5432"), "{rows}");
    let because = "isolated by NetworkPolicy shop/default-deny egress at ";
    assert!(rows.contains(because) && rows.contains(", and no rule allows tcp/5432 to shop/postgres-db"), "{rows}");
    let dashes = browser.text("getComputedStyle(document.querySelector('#edges .edge.denied')).strokeDasharray");
    assert_ne!(dashes, "none");
}

#[test]
fn page_in_a_browser_shows_names_denials_rules_and_a_table() {
    let shop = Shop::open();
    let host = &shop.example.host;
    let (_served, mut browser) = shown(host);
    let names = browser.text("document.querySelector('#nodes').textContent");
    for name in shop.example.endpoints.keys() {
        assert!(names.contains(name.as_str()), "{name} in {names}");
    }
    assert_denied_is_told(&mut browser);
    assert!(browser.text("document.querySelector('#state').innerText").contains("enforced, generation 1"));
    browser.scheme("light");
    let paper = "getComputedStyle(document.body).backgroundColor";
    assert_eq!(browser.text(paper), "rgb(255, 255, 255)");
    let light = browser.screenshot("shop-light");
    browser.scheme("dark");
    assert_eq!(browser.text(paper), "rgb(13, 17, 23)");
    let dark = browser.screenshot("shop-dark");
    assert!(light.starts_with(b"\x89PNG") && dark.starts_with(b"\x89PNG") && light != dark);
    assert_denied_is_told(&mut browser);
    // the toggle outdoes the system
    browser.value("document.querySelector('#theme').click()");
    assert_eq!(
        (browser.text(paper).as_str(), browser.text("document.querySelector('#theme').innerText").as_str()),
        ("rgb(255, 255, 255)", "Theme: light")
    );

    // the keyboard: search, table, details, and out again
    browser.press(&["/"]);
    browser.press(&["r", "e", "d", "i", "s", "-", "c"]);
    browser.wait("[...document.querySelectorAll('#rows tr')].every((row) => row.innerText.includes('redis-cache'))");
    assert_eq!(browser.value("document.querySelectorAll('#rows tr.denied').length"), 1);
    browser.press(&["Escape"]);
    browser.wait("document.querySelectorAll('#rows tr').length > 8");
    browser.value("document.querySelector('#rows tr').focus()");
    browser.press(&["ArrowDown", "Enter"]);
    browser.wait("!document.querySelector('#details').hidden");
    let details = browser.text("document.querySelector('#details').innerText");
    assert!(details.contains("✕ denied") && details.contains("default deny: no rule allows it"), "{details}");
    browser.screenshot("shop-details");
    browser.press(&["Escape"]);
    browser.wait("document.querySelector('#details').hidden");
    browser.value("document.querySelector('#picture').focus()");
    browser.press(&["ArrowRight", "Enter"]);
    browser.wait("!document.querySelector('#details').hidden");
    let node = browser.text("document.querySelector('#details h2').innerText");
    assert!(node.starts_with("shop/") || node.contains('→'), "{node}");
    browser.press(&["Escape"]);

    // a filter leaves only what is denied
    browser.value(
        "(() => { const it = document.querySelector('#verdict'); it.value = 'denied'; it.dispatchEvent(new Event('input')) })()",
    );
    browser.wait("document.querySelectorAll('#rows tr.allowed').length === 0");
    assert_eq!(browser.value("document.querySelectorAll('#labels .label.allowed').length"), 0);
    browser.screenshot("shop-denied");
}

/// What a newcomer sees first, and README shows (docs/map.png): all of it in one view, without a click.
#[test]
fn first_sight_tells_who_is_allowed_who_is_denied_and_by_what() {
    let example = Example::up("shop", "10.0.0.1/16");
    // with the places of rules that readers of the repository find
    let host = &example.host;
    let text = std::fs::read_to_string(&example.path).unwrap();
    let others: Vec<_> = text.split("\n---\n").filter(|it| !it.contains("kind: NetworkPolicy")).collect();
    let others = host.documents("endpoints.yaml", &others.join("\n---\n"));
    host.netpol(&["unload"]).ok();
    let (root, bpffs, state) = (support::policies().join(".."), host.bpffs(), host.folder().join("state"));
    let program = ["-C", root.to_str().unwrap(), env!("CARGO_BIN_EXE_netpol")];
    let instance = ["--bpffs", bpffs.to_str().unwrap(), "--state", state.to_str().unwrap()];
    host.run("env", &[&program[..], &instance, &["load", &others, "policies/shop/policies.yaml"]].concat());
    let shop = Shop::busy(example);
    let host = &shop.example.host;
    let served = served(host);
    let mut browser = host.browser();
    browser.size(1280, 800);
    browser.scheme("light");
    browser.open(&format!("http://{}/", served.address), "document.querySelectorAll('#rows tr').length >= 11");
    browser.wait(
        "document.querySelectorAll('#labels .label.denied').length === 3 &&
         document.querySelector('#labels').textContent.match(/denied [0-9.]+\\/s/)",
    );
    // who: every box, label and denied row is on the screen
    browser.value(
        "window.seen = (it) => {
            const { left, right, top, bottom } = it.getBoundingClientRect();
            return left >= 0 && right <= innerWidth && top >= 0 && bottom <= innerHeight;
        }",
    );
    for what in ["#nodes .node", "#labels .label", "#rows tr.denied", ".legend li"] {
        let all = format!("[...document.querySelectorAll('{what}')]");
        assert_eq!(browser.value(&format!("{all}.length > 0 && {all}.every(seen)")), true, "{what}");
    }
    // by what
    let denied =
        browser.text("[...document.querySelectorAll('#labels .label.denied')].map((it) => it.textContent).join()");
    for rule in ["by shop/default-deny egress (policies.yaml:8)", "by shop/default-deny ingress (policies.yaml:8)"] {
        assert!(denied.contains(rule), "{denied}");
    }
    assert_denied_is_told(&mut browser);
    browser.screenshot("map");
}

/// Numbers of a connection as the page writes them: packets with a rate, and bytes.
fn assert_numbers(details: &str) {
    let has_rate = details.lines().any(|line| line.contains("/s)") && line.chars().any(|c| c.is_ascii_digit()));
    assert!(has_rate && (details.contains(" B") || details.contains("iB")), "{details}");
}

#[test]
fn clicks_and_keys_on_nodes_and_edges_show_rules_and_numbers_and_search_narrows() {
    let shop = Shop::open();
    let host = &shop.example.host;
    let (_served, mut browser) = shown(host);
    let node = "document.querySelector('#nodes [data-key=\"shop/postgres-db\"]')";
    let of_verdict = |verdict: &str| {
        format!(
            "[...document.querySelectorAll('#edges .link.{verdict}')]
                .find((it) => /redis-cache.*postgres-db|order-service.*postgres-db/.test(it.getAttribute('aria-label')))"
        )
    };
    let details = |browser: &mut Browser| {
        browser.wait("!document.querySelector('#details').hidden");
        let text = browser.text("document.querySelector('#details').innerText");
        browser.press(&["Escape"]);
        browser.wait("document.querySelector('#details').hidden");
        text
    };
    let assert_about_node = |text: &str| {
        assert!(text.starts_with("✕\nshop/postgres-db\n"), "{text}");
        let wanted = ["✕ denied from shop/redis-cache", "allowed from shop/order-service", "TCP 5432", "packets ("];
        wanted.iter().for_each(|part| assert!(text.contains(part), "{part} in {text}"));
        assert!(text.contains("shop/default-deny egress") && text.contains("example.yaml:"), "{text}");
        assert!(text.contains("policy decides") && text.contains("10.0.0."), "{text}");
        assert_numbers(text);
    };
    let assert_about_edge = |text: &str, verdict: &str| {
        assert!(text.contains(&format!("{verdict}: shop/")) && text.contains("→ shop/postgres-db"), "{text}");
        let rule = if verdict == "allowed" { "rule 0" } else { "default deny: no rule allows it" };
        let wanted = ["TCP 5432", "Packets", "Bytes", "Connections", "NetworkPolicy shop/", "example.yaml:", rule];
        wanted.iter().for_each(|part| assert!(text.contains(part), "{part} in {text}"));
        assert_numbers(text);
    };

    // the mouse
    browser.click(node);
    browser.wait("!document.querySelector('#details').hidden");
    browser.screenshot("shop-node");
    assert_about_node(&details(&mut browser));
    browser.click(&of_verdict("denied"));
    assert_about_edge(&details(&mut browser), "✕ denied");
    browser.click(&of_verdict("allowed"));
    assert_about_edge(&details(&mut browser), "allowed");
    // from a node to one of its edges
    browser.click(node);
    browser.wait("!document.querySelector('#details').hidden");
    browser.click("document.querySelector('#details .edge-button.denied')");
    browser.wait("document.querySelector('#details h3.denied')");
    assert_about_edge(&details(&mut browser), "✕ denied");

    // the keyboard: arrows until it is there, then Enter
    let marked = |browser: &mut Browser| browser.text("document.querySelector('#picture .marked')?.dataset.key ?? ''");
    let reach = |browser: &mut Browser, wanted: &dyn Fn(&str) -> bool| {
        browser.value("document.querySelector('#picture').focus()");
        let way = ["ArrowRight", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown", "ArrowRight"];
        let found = way.iter().cycle().take(200).any(|key| {
            browser.press(&[key]);
            wanted(&marked(browser))
        });
        assert!(found, "arrows do not reach it");
        browser.press(&["Enter"]);
    };
    reach(&mut browser, &|key| key == "shop/postgres-db");
    assert_about_node(&details(&mut browser));
    let id = browser.text(&format!("({}).dataset.key", of_verdict("denied")));
    reach(&mut browser, &|key| key == id);
    assert_about_edge(&details(&mut browser), "✕ denied");

    // search: in the picture what does not match is dim, in the table it is gone
    let count = |browser: &mut Browser, what: &str| {
        browser.value(&format!("document.querySelectorAll('{what}').length")).as_u64().unwrap()
    };
    let all = count(&mut browser, "#rows tr");
    for (words, column) in [("postgres", "From and To"), ("6379", "Port"), ("default-deny", "Rule")] {
        browser.press(&["/"]);
        let letters: Vec<String> = words.chars().map(String::from).collect();
        browser.press(&letters.iter().map(String::as_str).collect::<Vec<_>>());
        browser.wait(&format!(
            "document.querySelectorAll('#rows tr').length < {all} && [...document.querySelectorAll('#rows tr')]
                .every((row) => row.innerText.includes('{words}'))"
        ));
        assert!(count(&mut browser, "#rows tr") > 0, "{words} is in {column}");
        let (dim, links) = (count(&mut browser, "#edges .link.dim"), count(&mut browser, "#edges .link"));
        assert!(dim > 0 && dim < links, "{words}: {dim} of {links}");
        browser.press(&["Escape"]);
        browser.wait(&format!("document.querySelectorAll('#rows tr').length >= {all}"));
        browser.value("document.activeElement.blur()");
    }
}

/// What audited policies would stop is told from what passes and from what is denied: by sign, colour, table and filter.
#[test]
fn page_tells_what_audited_policies_would_drop() {
    let Scene { host, .. } = &Scene::audited();
    let served = served(host);
    let mut browser = host.browser();
    browser.open(&format!("http://{}/", served.address), "document.querySelector('#labels .label.would-drop')");
    let labels = browser.text("document.querySelector('#labels').textContent");
    assert!(labels.contains("? would drop") && !labels.contains('✕'), "{labels}");
    let rows = browser.text("[...document.querySelectorAll('#rows tr.would-drop')].map((row) => row.innerText).join()");
    assert!(rows.contains("default/c") && rows.contains("TCP 80") && !rows.contains("default/a"), "{rows}");
    let mut style = |verdict: &str| {
        browser.text(&format!(
            "(({{ stroke, strokeDasharray }}) => `${{stroke}} ${{strokeDasharray}}`)(getComputedStyle(document.querySelector('#edges \
             .edge.{verdict}')))"
        ))
    };
    assert_ne!(style("would-drop"), style("allowed"));
    browser.screenshot("would-drop");
    browser.value(
        "(() => { const it = document.querySelector('#verdict'); it.value = 'would-drop'; it.dispatchEvent(new Event('input')) })()",
    );
    browser.wait("document.querySelectorAll('#rows tr.allowed').length === 0");
    assert_eq!(browser.value("document.querySelectorAll('#rows tr.would-drop').length"), 1);
}

#[test]
fn five_hundred_endpoints_are_groups_that_open_and_the_page_goes_on() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    // most need not run to be drawn: they are pending
    let others = (0..497).map(|number| {
        let namespace = format!("team-{}", number % 10);
        format!(
            "apiVersion: netpol.dev/v1\nkind: Endpoint\nmetadata: {{name: e{number}, namespace: {namespace}}}\n\
             spec: {{netns: npt-nowhere-{number}}}\n"
        )
    });
    let policies: Vec<_> = [ingress("b", &[])].into_iter().chain(others).collect();
    host.load(&[a, b, c], &policies);
    check(&[(c, Tcp(b.at(Family::V4, 80)), Silent)]);
    let served = served(host);
    let mut browser = host.browser();
    browser.open(&format!("http://{}/", served.address), "document.querySelector('#labels .label.denied')");
    let count = |browser: &mut Browser, what: &str| {
        browser.value(&format!("document.querySelectorAll('#nodes .node.{what}').length")).as_u64().unwrap()
    };
    let (groups, shown) = (count(&mut browser, "group"), count(&mut browser, "endpoint"));
    assert!(groups >= 9 && shown <= 60, "{groups} groups, {shown} endpoints");
    browser.screenshot("many-groups");
    let open = "document.querySelector('#nodes .node.group').dispatchEvent(new MouseEvent('click', {bubbles: true}))";
    for left in (0..groups).rev() {
        browser.value(open);
        browser.wait(&format!("document.querySelectorAll('#nodes .node.group').length === {left}"));
    }
    assert_eq!(count(&mut browser, "endpoint"), 500);
    browser.screenshot("many-open");
    // it goes on telling, and a namespace closes again by its title
    browser.value("window.before = document.querySelector('#rows td:nth-child(7)').innerText");
    browser.wait("document.querySelector('#rows td:nth-child(7)').innerText !== window.before");
    browser.value("document.querySelector('#frames text').dispatchEvent(new MouseEvent('click', {bubbles: true}))");
    browser.wait("document.querySelectorAll('#nodes .node.group').length === 1");
}

#[test]
fn names_in_the_page_are_never_markup() {
    let Scene { host, a, b, c, .. } = &Scene::bridged();
    let documents = support::policy::documents(&[a, b, c], &[ingress("b", &[])]);
    let path = host.documents("<img src=x onerror=document.title='taken'>.yaml", &documents);
    host.load_path(&[], &path);
    check(&[(c, Tcp(b.at(Family::V4, 80)), Silent)]);
    let served = served(host);
    let mut browser = host.browser();
    browser.open(&format!("http://{}/", served.address), "document.querySelector('#rows tr.denied')");
    browser.value("document.querySelector('#rows tr').click()");
    browser.wait("!document.querySelector('#details').hidden");
    let said = browser.text("document.body.innerText");
    assert!(said.contains("<img src=x onerror"), "{said}");
    assert_eq!(
        (browser.value("document.querySelectorAll('img').length"), browser.text("document.title").as_str()),
        (0.into(), "netpol map")
    );
}
