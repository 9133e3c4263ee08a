use std::time::SystemTime;

use super::*;
use crate::observe::scene::{DB, OUTSIDE, WEB, denial, reader, record};

/// Which of these it lets through: web to db (allowed), outside to db (denied).
#[track_caller]
fn passes(filter: &str) -> (bool, bool) {
    let filter: Filter = filter.parse().unwrap_or_else(|error| panic!("{filter}: {error}"));
    let reader = reader();
    let passes = |record| filter.matches(&reader.flow(&record, SystemTime::UNIX_EPOCH));
    (passes(record(WEB, DB, 1)), passes(denial(OUTSIDE, DB, 1)))
}

#[test]
fn each_field_selects_by_what_it_names() {
    for (filter, expected) in [
        ("", (true, true)),
        ("from:shop/web", (true, false)),
        ("from:web", (true, false)),
        ("from:shop/we", (false, false)),
        ("from:shop/", (true, false)),
        ("from:*/w*b", (true, false)),
        ("from:10.0.0.0/8", (true, false)),
        ("from:192.0.2.9", (false, true)),
        ("from:2001:db8::/32", (false, false)),
        ("to:shop/db", (true, true)),
        ("to:web", (false, false)),
        ("port:5432", (true, true)),
        ("port:40000", (true, true)),
        ("port:5000-5431", (false, false)),
        ("proto:tcp", (true, true)),
        ("proto:6", (true, true)),
        ("proto:UDP", (false, false)),
        ("verdict:denied", (false, true)),
        ("verdict:allowed", (true, false)),
        ("reason:policy-ingress", (false, true)),
        ("reason:policy-*", (false, true)),
        ("-reason:*", (true, false)),
        ("reason:spoofed", (false, false)),
        ("rule:default-deny", (false, true)),
        ("rule:shop/database", (true, true)),
        ("rule:ingress[0]", (true, false)),
        ("rule:shop.yaml:9", (true, false)),
        ("rule:none", (false, false)),
    ] {
        assert_eq!(passes(filter), expected, "{filter}");
    }
}

#[test]
fn terms_must_all_hold_and_can_be_turned_around() {
    for (filter, expected) in [
        ("to:db verdict:denied", (false, true)),
        ("to:db from:web verdict:denied", (false, false)),
        ("-verdict:denied", (true, false)),
        ("not verdict:denied", (true, false)),
        ("NOT -verdict:denied", (false, true)),
        ("-from:web -from:192.0.2.0/24", (false, false)),
    ] {
        assert_eq!(passes(filter), expected, "{filter}");
    }
}

#[test]
fn free_text_is_searched_in_all_that_is_shown() {
    for (filter, expected) in [
        ("WEB", (true, false)),
        ("policy-ingress", (false, true)),
        ("10.0.0.1", (true, false)),
        ("192.0.2.9:40000", (false, true)),
        ("\"no rule allows tcp/5432\"", (false, true)),
        ("'verdict:denied'", (false, false)),
        ("fe80::1", (false, false)),
        ("-isolated", (true, false)),
        ("\"-verdict\"", (false, false)),
        ("rule:'ingress: default'", (false, true)),
    ] {
        assert_eq!(passes(filter), expected, "{filter}");
    }
}

#[test]
fn mistakes_are_told_with_their_place() {
    for (filter, column, said) in [
        ("to:db form:web", 7, "did you mean `from:`"),
        ("  colour:red", 3, "no field `colour:`"),
        ("port:http", 6, "`http` is no port"),
        ("-port:90-80", 7, "`90-80` is no port"),
        ("port:65536", 6, "no port"),
        ("proto:quic", 7, "`quic` is no protocol"),
        ("verdict:maybe", 9, "allowed, denied or would-drop"),
        ("reason:spofed", 8, "did you mean `spoofed`"),
        ("reason:quux", 8, "only policy-egress"),
        ("from:", 6, "`from:` what"),
        ("web \"a b", 5, "\" is not closed"),
        ("web not", 5, "`not` what"),
        ("not not web", 5, "`not` twice"),
        ("web - db", 5, "directly before"),
    ] {
        let error = filter.parse::<Filter>().expect_err(filter);
        assert_eq!(error.column, column, "{filter}: {error}");
        assert!(error.message.contains(said), "{filter}: {error}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,40}|[-a-z:\"' ]{0,20}") {
        _ = text.parse::<Filter>();
    }

    #[test]
    fn star_is_any_text(before in "[ab]{0,4}", between in "[ab]{0,4}", after in "[ab]{0,4}") {
        let pattern = format!("{before}*{after}");
        let text = format!("{before}{between}{after}");
        proptest::prop_assert!(glob(pattern.as_bytes(), text.as_bytes()));
        let other = format!("{text}c");
        proptest::prop_assert!(!glob(pattern.as_bytes(), other.as_bytes()) || after.is_empty());
    }
}
