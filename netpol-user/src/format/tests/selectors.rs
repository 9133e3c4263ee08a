//! Calico's selector language.

use proptest::prelude::*;

use crate::{
    format::selector::{SelectorError, parse},
    model::{Expr, Labels},
};

fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
    let labels: Labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    parse(selector).expect(selector).matches(&labels)
}

#[test]
fn each_operator_means_what_it_says() {
    let web = [("app", "web-1"), ("tier", "")];
    let none = [];
    for (selector, with, without) in [
        ("app == 'web-1'", true, false),
        ("app != \"web-1\"", false, true),
        ("app in {'x', 'web-1'}", true, false),
        ("app not in {'x', 'web-1'}", false, true),
        ("app notin {}", true, true),
        ("app in {}", false, false),
        ("app contains 'eb-'", true, false),
        ("app starts with 'web'", true, false),
        ("app startswith 'eb'", false, false),
        ("app ends  with '-1'", true, false),
        ("has(app)", true, false),
        ("!has(tier)", false, true),
        ("tier == ''", true, false),
        ("all()", true, true),
        ("", true, true),
        (" \t", true, true),
    ] {
        assert_eq!((matches(selector, &web), matches(selector, &none)), (with, without), "{selector}");
    }
}

#[test]
fn and_binds_tighter_than_or_and_not_tightest() {
    let a = [("a", "1")];
    assert!(matches("has(a) || has(b) && has(c)", &a));
    assert!(!matches("(has(a) || has(b)) && has(c)", &a));
    assert!(matches("!has(b) && has(a)", &a));
    assert!(matches("!a == '2'", &a));
    assert!(matches("!! !has(b)", &a));
}

#[test]
fn words_are_operators_only_where_an_operator_stands() {
    assert_eq!(parse("in in {'in'}"), Ok(Expr::In("in".to_owned(), vec!["in".to_owned()])));
    assert_eq!(parse("not not in {}"), Ok(Expr::NotIn("not".to_owned(), vec![])));
    assert_eq!(parse("contains contains'x'"), Ok(Expr::Contains("contains".to_owned(), "x".to_owned())));
    assert_eq!(parse("has(has)"), Ok(Expr::Has("has".to_owned())));
}

#[test]
fn an_error_has_a_place_and_says_what_was_expected() {
    for (selector, offset, message) in [
        ("a = 'b'", 2, "`=` is written `==`"),
        ("a == 'b' & c == 'd'", 9, "`&` is written `&&`"),
        ("a == 'b' |", 9, "`|` is written `||`"),
        ("a == b", 5, "expected a text in quotes, found `b`"),
        ("a == 'b", 5, "the text has no closing '"),
        ("a", 1, "expected `==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`, found the end"),
        ("(a == 'b'", 9, "expected `)`, found the end"),
        ("a == 'b')", 8, "expected `&&`, `||` or the end, found `)`"),
        ("has(a) has(b)", 7, "expected `&&`, `||` or the end, found `has(`"),
        ("has()", 4, "expected a label, found `)`"),
        ("has (a)", 4, "expected `==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`, found `(`"),
        ("a not on {'b'}", 6, "expected `in`, found `on`"),
        ("a in 'b'", 5, "expected `{`, found the text 'b'"),
        ("a in {,'b'}", 6, "expected a text in quotes, found `,`"),
        ("a in {'b' 'c'}", 10, "expected `}`, found the text 'c'"),
        ("any(a)", 0, "`any(` is not one of `all()`, `global()`, `has(label)`"),
        ("é == 'b'", 0, "unexpected `é`"),
        ("'é' == 'b'", 0, "expected a label, `has(label)`, `all()`, `!` or `(`, found the text 'é'"),
    ] {
        assert_eq!(parse(selector), Err(SelectorError { offset, message: message.to_owned() }), "{selector}");
    }
}

#[test]
fn depth_length_and_labels_are_bounded() {
    let nested = |depth: usize| format!("{}has(a){}", "(".repeat(depth), ")".repeat(depth));
    assert!(parse(&nested(64)).is_ok());
    assert_eq!(parse(&nested(65)).map_err(|error| error.offset), Err(64));
    assert!(parse(&format!("{}has(a)", "!".repeat(60_000))).is_ok());
    assert!(parse(&"!".repeat(1 << 20)).is_err());
    assert!(parse(&format!("{} == 'b'", "a".repeat(512))).is_ok());
    assert!(parse(&format!("{} == 'b'", "a".repeat(513))).is_err());
}

proptest! {
    #[test]
    fn no_text_panics(text in "(\\PC|[ !&|(){}'\",=ahs]|has\\(|all\\(\\)|in |not ){0,40}") {
        if let Err(error) = parse(&text) {
            prop_assert!(error.offset <= text.len() && text.is_char_boundary(error.offset));
        }
    }
}
