//! Rates over time are drawn, and move.

use std::{net::SocketAddr, time::Instant};

use crate::{
    COMMAND, LARGE, SMALL, echoed, scene,
    support::{Family, Scene, packet},
};

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The bars after a word.
fn bars(screen: &str, word: &str) -> Vec<char> {
    let line = screen.lines().find_map(|line| line.split_once(word)).map_or("", |(_, rest)| rest);
    let begin = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit() || ".kM".contains(c)).trim_start();
    begin.chars().take_while(|c| BARS.contains(c)).collect()
}

/// How many readings ago was the highest.
fn ago(bars: &[char]) -> Option<usize> {
    bars.iter().rev().position(|bar| *bar == '█')
}

#[test]
fn sparklines_rise_with_traffic_and_move_on_afterwards() {
    let scene = scene();
    let Scene { host, a, b, c, .. } = &scene;
    let _server = b.serve_udp(53);
    let to: SocketAddr = b.at(Family::V4, 53).parse().unwrap();
    let (socket, source, target) = (c.raw(), c.mac(), b.mac());
    for size in [SMALL, LARGE] {
        let mut terminal = host.terminal(size, &[], &COMMAND);
        terminal.wait("some readings", |screen| bars(screen, "packets/s").len() >= 2);
        // so much that whatever else is said is nothing against it
        let echo = echoed(a, to, 1);
        let begin = Instant::now();
        let is_high = |screen: &str, word| ago(&bars(screen, word)) == Some(0);
        while !(is_high(&terminal.text(), "packets/s") && is_high(&terminal.text(), "denied/s")) {
            assert!(begin.elapsed().as_secs() < 30, "no bar rises\n{}", terminal.text());
            for port in 1..50 {
                echo.send(b"ping").unwrap();
                assert_eq!(echo.recv(&mut [0; 16]).unwrap(), 4);
                let (from, to) = (c.socket(Family::V4, 999), b.socket(Family::V4, port));
                socket.send(&packet::frame(target, source, &packet::tcp(from, to, 2, b"")));
            }
        }
        for word in ["packets/s", "denied/s"] {
            let moved = |wanted| move |screen: &str| ago(&bars(screen, word)).is_some_and(|ago| ago >= wanted);
            let screen = terminal.wait("silence after it", moved(2));
            let bars = bars(&screen, word);
            assert!(bars.ends_with(&['▁']), "{bars:?}");
            terminal.wait("a reading later", moved(3));
        }
        // and that of one row: a bar for each reading
        terminal.keys("/\x15proto:udp\r");
        terminal.line(&["default/a", "default/b:53"]);
        terminal.keys("\r");
        let count = |screen: &str| {
            let line = screen.lines().skip(3).find(|line| line.starts_with("packets/s"));
            line.map_or(0, |line| line.chars().filter(|c| BARS.contains(c)).count())
        };
        terminal.wait("its bars", |screen| count(screen) >= 2);
        echo.send(b"ping").unwrap();
        terminal.wait("more of them", |screen| count(screen) >= 5);
        terminal.keys("q");
        assert!(terminal.ends_and_restores().success());
    }
}
