//! Words for whoever watches: headings, notes and results, in colour on a terminal only.

use std::{
    env,
    fmt::Display,
    io::{IsTerminal as _, stdout},
    sync::LazyLock,
};

static COLOUR: LazyLock<bool> = LazyLock::new(|| {
    // https://no-color.org: set and not empty means no colour.
    let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
    stdout().is_terminal() && !unwanted && !dumb
});

fn paint(code: &str, text: impl Display) -> String {
    if *COLOUR { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
}

pub fn good(text: impl Display) -> String {
    paint("32", text)
}

pub fn bad(text: impl Display) -> String {
    paint("1;31", text)
}

pub fn faint(text: impl Display) -> String {
    paint("2", text)
}

pub fn heading(text: impl Display) {
    println!("\n{}", paint("1;36", format_args!("== {text}")));
}

/// A sentence or two under a heading.
pub fn note(text: impl Display) {
    println!("   {}", text.to_string().replace('\n', "\n   "));
}

/// What comes next, after the output of a command.
pub fn then(text: impl Display) {
    println!();
    note(text);
}

/// A command, as one would type it.
pub fn command(line: impl Display) {
    println!("\n{} {}", faint("$"), paint("1", line));
}

pub fn done(text: impl Display) {
    println!("   {} {text}", good("✓"));
}

pub fn failed(text: impl Display) {
    println!("   {} {text}", bad("✗"));
}
