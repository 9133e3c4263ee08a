//! The screen without a terminal: what it must never show, and what it must always show.

use ratatui::{
    backend::TestBackend,
    crossterm::event::{Event as Input, KeyCode, KeyEvent, KeyModifiers},
};

use super::{
    app::App,
    draw,
    feed::{Enforcement, Event},
    tables::Tab,
};
use crate::{
    datapath::Record,
    observe::{
        Filter, Reader, Sampler,
        scene::{DB, OUTSIDE, WEB, denial, names, record},
    },
    state::Names,
};

/// The program, with a reading of these in front of it.
fn app(names: Names, records: &[Record]) -> App {
    let reader = std::sync::Arc::new(Reader::new(names.into()));
    let mut app = App::new(Tab::Flows, Filter::default());
    tell(&mut app, Event::Sample(Ok(Box::new(Sampler::default().of(&reader, records)))));
    app
}

fn tell(app: &mut App, event: Event) {
    app.handle(event).unwrap();
}

fn press(app: &mut App, keys: &str) {
    for key in keys.chars() {
        let code = if key == '\r' { KeyCode::Enter } else { KeyCode::Char(key) };
        tell(app, Event::Input(Input::Key(KeyEvent::new(code, KeyModifiers::NONE))));
    }
}

fn screen(app: &mut App, (width, height): (u16, u16)) -> Vec<String> {
    let mut terminal = ratatui::Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::screen(app, frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(row).collect()
}

#[test]
fn control_characters_in_names_are_shown_as_text() {
    let mut names = names();
    names.endpoints[0].name = "web\x1b[2J\u{9b}31m".into();
    names.endpoints[0].labels.insert("a\x07b".into(), "c\nd".into());
    names.endpoints[0].interface = "v\x1b".into();
    for rule in &mut names.rules {
        rule.name = "data\x1bbase".into();
        rule.source = "shop\r.yaml:1".into();
    }
    let mut app = app(names, &[record(WEB, DB, 5), denial(WEB, DB, 2)]);
    let problems = vec!["web\x1b: gone".to_owned(), "two".to_owned()];
    tell(&mut app, Event::Enforcement(Enforcement { enforced: false, headline: "NOT ENFORCED".into(), problems }));
    let mut all = String::new();
    for keys in ["", "\r", "\r2", "\r", "\r3", "\r", "\r4", "5", "\r", "\r1/\x1b\x07"] {
        press(&mut app, keys);
        all += &screen(&mut app, (200, 50)).concat();
    }
    assert_eq!(all.chars().find(|c| c.is_control()), None);
    for escaped in
        ["web\\u{1b}[2J\\u{9b}31m", "a\\u{7}b=c\\nd", "data\\u{1b}base", "shop\\r.yaml:1", "web\\u{1b}: gone"]
    {
        assert!(all.contains(escaped), "{escaped} in {all}");
    }
}

#[test]
fn no_size_of_the_terminal_is_too_small() {
    let mut app = app(names(), &[record(WEB, DB, 5), denial(OUTSIDE, DB, 2)]);
    for keys in ["", "\r", "\r2", "3", "4", "5", "\r", "\r?", "?1g", "/from:x"] {
        press(&mut app, keys);
        for size in [(1, 1), (5, 3), (20, 6), (80, 24), (500, 100)] {
            assert_eq!(screen(&mut app, size).len(), usize::from(size.1));
        }
    }
}

#[test]
fn only_what_is_on_the_screen_is_put_in_order() {
    let many: Vec<_> = (1..5000).map(|port| Record { source_port: port, ..record(WEB, DB, u64::from(port)) }).collect();
    let mut app = app(names(), &many);
    // by PACKETS
    press(&mut app, ">>");
    let column = |app: &mut App| screen(app, (200, 24))[2].trim_end().ends_with("by PACKETS ▼");
    assert!(column(&mut app));
    let ports = |app: &mut App| -> Vec<u64> {
        let port = |row: &String| row.split("shop/web:").nth(1)?.split(' ').next()?.parse().ok();
        screen(app, (200, 24))[4..21].iter().filter_map(port).collect()
    };
    assert_eq!(ports(&mut app), (4983..5000).rev().collect::<Vec<_>>());
    for _ in 0..100 {
        tell(&mut app, Event::Input(Input::Key(KeyEvent::new(KeyCode::PageDown, KeyModifiers::NONE))));
        let shown = ports(&mut app);
        assert!(shown.is_sorted_by(|a, b| a > b), "{shown:?}");
    }
    tell(&mut app, Event::Input(Input::Key(KeyEvent::new(KeyCode::End, KeyModifiers::NONE))));
    assert_eq!(ports(&mut app), (1..18).rev().collect::<Vec<_>>());
}

#[test]
fn details_follow_their_connection_and_say_when_it_is_gone() {
    let mut sampler = Sampler::default();
    let reader = std::sync::Arc::new(Reader::new(names().into()));
    let mut app = App::new(Tab::Flows, "from:web".parse().unwrap());
    let mut read = |app: &mut App, records: &[Record]| {
        tell(app, Event::Sample(Ok(Box::new(sampler.of(&reader, records)))));
        screen(app, (120, 40)).join("\n")
    };
    read(&mut app, &[denial(OUTSIDE, DB, 9), record(WEB, DB, 5)]);
    press(&mut app, "\r");
    assert!(read(&mut app, &[record(WEB, DB, 6), denial(OUTSIDE, DB, 9)]).contains("6 packets, 600 bytes"));
    let gone = read(&mut app, &[denial(OUTSIDE, DB, 9)]);
    assert!(gone.contains("not among the rows any more") && gone.contains("6 packets, 600 bytes"), "{gone}");
}
