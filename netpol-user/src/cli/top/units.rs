//! Numbers and text in the room that there is. A number has six characters at most.

use std::time::Duration;

/// Per second: `0`, `0.4`, `850`, `12.3k`, `4.5M`.
pub fn rate(value: f64) -> String {
    match value {
        ..0.05 => "0".to_owned(),
        ..10.0 => format!("{value:.1}"),
        _ => count(value as u64),
    }
}

/// `9999`, `12.3k`, `4.5M`, in powers of 1000.
pub fn count(value: u64) -> String {
    const UNITS: [(u64, &str); 5] =
        [(1_000_000_000_000_000, "P"), (1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1000, "k")];
    if value < 10_000 {
        return value.to_string();
    }
    let (unit, name) = UNITS.into_iter().find(|(unit, _)| value >= *unit).unwrap_or((1, ""));
    // cut, not rounded: 999,999 is not 1000k
    let (whole, tenth) = (value / unit, value % unit / (unit / 10).max(1));
    if whole >= 100 { format!("{whole}{name}") } else { format!("{whole}.{tenth}{name}") }
}

/// `5s`, `3m`, `2h`, `9d`.
pub fn span(span: Duration) -> String {
    match span.as_secs() {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7200 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// One character for each of the last values, as high as its part of the highest.
pub fn sparkline(values: impl ExactSizeIterator<Item = f64>, width: usize) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let skip = values.len().saturating_sub(width);
    let values: Vec<f64> = values.skip(skip).collect();
    let highest = values.iter().copied().fold(0.0, f64::max);
    let level = |value: &f64| if highest > 0.0 { (value / highest * 7.0).round() as usize } else { 0 };
    let drawn: String = values.iter().map(|value| LEVELS[level(value).min(7)]).collect();
    format!("{drawn:>width$}")
}

/// In as many columns as there are, marked where it is cut. What follows the last colon (a port) stays,
/// if `tail` says so.
pub fn fit(text: &str, width: usize, tail: bool) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let end = text.rsplit_once(':').map(|(_, end)| format!(":{end}")).filter(|end| tail && end.len() + 4 <= width);
    let end = end.unwrap_or_default();
    let keep = width.saturating_sub(end.chars().count() + 1);
    let begin: String = text.chars().take(keep).collect();
    format!("{begin}…{end}").chars().take(width).collect()
}

/// In lines of at most `width` characters, between words where that can be.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        let used = lines.last().map_or(0, |line| line.chars().count());
        if used > 0 && used + 1 + word.len() <= width {
            let line = lines.last_mut().map(|line| line.push(' '));
            debug_assert!(line.is_some());
        } else if used > 0 {
            lines.push(String::new());
        }
        while word.len() > width {
            let rest = word.split_off(width);
            lines.last_mut().into_iter().for_each(|line| line.extend(&word));
            lines.push(String::new());
            word = rest;
        }
        lines.last_mut().into_iter().for_each(|line| line.extend(&word));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_short() {
        for (value, written) in [
            (0.0, "0"),
            (0.04, "0"),
            (0.5, "0.5"),
            (9.9, "9.9"),
            (9999.0, "9999"),
            (10_000.0, "10.0k"),
            (12_345.0, "12.3k"),
            (999_999.0, "999k"),
            (1_000_000.0, "1.0M"),
            (4.56e15, "4.5P"),
        ] {
            assert_eq!(rate(value), written);
        }
        assert!(count(u64::MAX).len() <= 6);
        for (seconds, written) in [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (200_000, "2d")] {
            assert_eq!(span(Duration::from_secs(seconds)), written);
        }
    }

    #[test]
    fn cut_text_is_marked_and_keeps_its_port() {
        for (text, width, tail, fits) in [
            ("shop/db:5432", 12, true, "shop/db:5432"),
            ("shop/database:5432", 12, true, "shop/d…:5432"),
            ("shop/database:5432", 12, false, "shop/databa…"),
            ("shop/database", 1, true, "…"),
            ("shop", 0, true, ""),
        ] {
            assert_eq!(fit(text, width, tail), fits);
        }
    }

    #[test]
    fn highest_value_is_the_highest_bar() {
        assert_eq!(sparkline([0.0, 5.0, 10.0].into_iter(), 5), "  ▁▅█");
        assert_eq!(sparkline([9.0, 0.0, 0.0].into_iter(), 2), "▁▁");
    }

    #[test]
    fn lines_break_between_words_and_never_are_too_long() {
        assert_eq!(wrap("ab cd efg", 5), ["ab cd", "efg"]);
        assert_eq!(wrap("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrap("", 3), [""]);
    }
}
