//! From what is known to characters. No meaning is in colour alone: verdicts have a symbol and a word.
//!
//! ```text
//! netpol top  enforced: generation 3, 6 policies, ...                             PAUSED
//! packets/s  1234 ▁▂▃▅▇   denied/s  3 ▁▁▂▁
//! [1 Flows]  2 Endpoints  3 Rules  4 Drops  5 Services           120 flows, PKT/S ▼
//! VERDICT    FROM ...
//! ...
//! what the selected row says, in two lines
//! keys, or the filter that is being written
//! ```

mod columns;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::Paragraph,
};

use super::{
    app::{App, Hit},
    tables::{Tab, Tone},
    units::{self, wrap},
};
use crate::{
    cli::{
        grid::Colour,
        output::{counted, escape},
    },
    observe::{filter::FIELDS, sampler::Pace, summary::Grouping},
};

pub fn screen(app: &mut App, frame: &mut Frame<'_>) {
    let theme = Theme(Colour::of_stdout());
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(2),
        Constraint::Length(2),
        Constraint::Length(1),
    ]);
    let [title, paces, tabs, body, sentence, last] = rows.areas(frame.area());
    app.hits.clear();
    headline(app, frame, title, theme);
    pace(app, frame, paces, theme);
    tab_line(app, frame, tabs);
    app.height = usize::from(body.height.saturating_sub(1)).max(1);
    if app.help {
        frame.render_widget(Paragraph::new(help(usize::from(body.width))), body);
    } else if let Some(trouble) = &app.trouble {
        let text = wrap(&escape(trouble), usize::from(body.width));
        frame.render_widget(Paragraph::new(text.into_iter().map(Line::from).collect::<Vec<_>>()), body);
    } else if app.details.is_some() {
        details(app, frame, body);
    } else {
        columns::table(app, frame, body, theme);
    }
    if !app.help && app.details.is_none() {
        selected(app, frame, sentence);
    }
    prompt(app, frame, last, theme);
}

/// Colours and their absence (no-color.org).
#[derive(Clone, Copy)]
struct Theme(Colour);

impl Theme {
    fn of(self, tone: Tone) -> Style {
        let coloured = self.0 == Colour::Ansi;
        match tone {
            Tone::Plain => Style::new(),
            Tone::Doubtful if coloured => Style::new().fg(Color::Yellow),
            Tone::Doubtful => Style::new().add_modifier(Modifier::BOLD),
            Tone::Good if coloured => Style::new().fg(Color::Green),
            Tone::Bad if coloured => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
            Tone::Bad => Style::new().add_modifier(Modifier::BOLD),
            Tone::Good => Style::new(),
            Tone::Dim => Style::new().add_modifier(Modifier::DIM),
        }
    }
}

/// Whether anything is enforced comes first.
fn headline(app: &App, frame: &mut Frame<'_>, area: Rect, theme: Theme) {
    let mut spans = vec![Span::styled("netpol top  ", Modifier::BOLD)];
    match &app.enforcement {
        None => {}
        Some(enforcement) if enforcement.enforced => spans.push(Span::raw(escape(&enforcement.headline))),
        Some(enforcement) => {
            let style = theme.of(Tone::Bad).add_modifier(Modifier::REVERSED);
            spans.push(Span::styled(format!(" {} ", enforcement.headline), style));
            let more = match enforcement.problems.len() {
                0 | 1 => String::new(),
                more => format!(" (and {} more: netpol status)", more - 1),
            };
            let first = enforcement.problems.first().map(|problem| escape(problem)).unwrap_or_default();
            spans.push(Span::raw(format!(" {first}{more}")));
        }
    }
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
    if app.paused {
        right(frame, area, Span::styled(" PAUSED ", Modifier::REVERSED));
    }
}

fn pace(app: &App, frame: &mut Frame<'_>, area: Rect, theme: Theme) {
    let Some(sample) = &app.sample else { return };
    let width = (usize::from(area.width).saturating_sub(50) / 2).clamp(10, 60);
    let latest = sample.history.last().copied().unwrap_or_default();
    let spark = |value: fn(&Pace) -> f64| units::sparkline(sample.history.iter().map(value), width);
    let line = Line::from(vec![
        Span::raw(format!("packets/s {:>6} ", units::rate(latest.passed))),
        Span::styled(spark(|pace| pace.passed), theme.of(Tone::Good)),
        Span::raw(format!("   denied/s {:>6} ", units::rate(latest.dropped))),
        Span::styled(spark(|pace| pace.dropped), theme.of(Tone::Bad)),
    ]);
    frame.render_widget(Paragraph::new(line), area);
}

fn tab_line(app: &mut App, frame: &mut Frame<'_>, area: Rect) {
    let mut spans = Vec::new();
    let mut at = area.x;
    for (number, tab) in (1..).zip(Tab::ALL) {
        let chosen = tab == app.tab;
        let (open, close) = if chosen { ('[', ']') } else { (' ', ' ') };
        let text = format!("{open}{number} {}{close}", tab.title());
        let width = text.chars().count() as u16;
        app.hits.push((Rect { x: at, width, ..area }, Hit::Tab(tab)));
        at += width;
        let style = if chosen { Modifier::BOLD } else { Modifier::empty() };
        spans.push(Span::styled(text, style));
    }
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
    let view = app.view();
    let Some(column) = app.with_table(|table| table.columns()[view.sort].title) else { return };
    let rows = match (app.tab, app.grouping) {
        (Tab::Flows, None) => counted(view.order.len(), "flow", "flows"),
        (Tab::Flows, Some(Grouping::Ends)) => counted(view.order.len(), "group", "groups"),
        (Tab::Flows, Some(Grouping::Services)) => counted(view.order.len(), "group by service", "groups by service"),
        _ => counted(view.order.len(), "row", "rows"),
    };
    let arrow = if view.descending { '▼' } else { '▲' };
    right(frame, area, Span::raw(format!("{rows}, by {column} {arrow}")));
}

fn right(frame: &mut Frame<'_>, area: Rect, span: Span<'_>) {
    frame.render_widget(Paragraph::new(Line::from(span).right_aligned()), area);
}

fn selected(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let Some(row) = app.selected() else { return };
    let Some(sentence) = app.with_table(|table| table.sentence(row)) else { return };
    let mut lines = wrap(&escape(&sentence), usize::from(area.width));
    if lines.len() > 2 {
        lines.truncate(2);
        lines[1] = units::fit(&format!("{} (Enter: all of it)", lines[1]), usize::from(area.width), false);
    }
    frame.render_widget(Paragraph::new(lines.into_iter().map(Line::from).collect::<Vec<_>>()), area);
}

/// All that is known of one row.
fn details(app: &App, frame: &mut Frame<'_>, area: Rect) {
    const NAMES: usize = 14;
    let Some(details) = &app.details else { return };
    let width = usize::from(area.width).saturating_sub(NAMES).max(10);
    let mut lines = Vec::new();
    if details.gone {
        lines.push(Line::styled("not among the rows any more; this is what was last known", Modifier::REVERSED));
    }
    for (name, value) in &details.lines {
        for (number, part) in wrap(&escape(value), width).into_iter().enumerate() {
            let name = if number == 0 { *name } else { "" };
            lines.push(Line::from(vec![Span::styled(format!("{name:<NAMES$}"), Modifier::BOLD), Span::raw(part)]));
        }
    }
    let spark = units::sparkline(details.paces.iter().copied(), details.paces.len().min(width));
    lines.push(Line::from(vec![Span::styled(format!("{:<NAMES$}", "packets/s"), Modifier::BOLD), Span::raw(spark)]));
    frame.render_widget(Paragraph::new(lines), area);
}

fn prompt(app: &App, frame: &mut Frame<'_>, area: Rect, theme: Theme) {
    let width = usize::from(area.width);
    let line = match &app.prompt {
        Some(prompt) => {
            let text = escape(&prompt.text);
            // the end is where it is written
            let skip = (text.chars().count() + 10).saturating_sub(width);
            let text: String = text.chars().skip(skip).collect();
            let mut spans =
                vec![Span::styled("filter: ", Modifier::BOLD), Span::raw(text), Span::styled(" ", Modifier::REVERSED)];
            if let Some(error) = &prompt.error {
                spans.push(Span::styled(format!("  {}", escape(error)), theme.of(Tone::Bad)));
            }
            Line::from(spans)
        }
        None if app.details.is_some() => Line::raw("Esc back   Space pause   ? help   q quit"),
        None if app.help => Line::raw("Esc back   q quit"),
        None if app.filter.is_empty() => {
            Line::raw("/ filter   Enter details   g group   <> sort   Space pause   ? help   q quit")
        }
        None => Line::from(vec![
            Span::styled(format!("filter: {}", escape(app.filter.text())), Modifier::BOLD),
            Span::raw("   / change   ? help   q quit"),
        ]),
    };
    frame.render_widget(Paragraph::new(line), area);
}

fn help(width: usize) -> Vec<Line<'static>> {
    const KEYS: [(&str, &str); 10] = [
        ("1-5 Tab", "another tab (or click it)"),
        ("Up Down PgUp PgDn", "another row (or click it, or the wheel)"),
        ("< > r", "sort by another column, turn the order around (or click a title)"),
        ("Enter", "all that is known of the row"),
        ("/", "show only what a filter matches, in all tabs but Drops and Services"),
        (
            "g",
            "one row for each pair of ends, port and rule; again: for each client of a service, whoever answers; again: \
               for each flow",
        ),
        ("Space", "pause, and go on"),
        ("q Ctrl-C", "quit"),
        ("!", "before a verdict: it passes, and audited policies would drop it"),
        ("~", "before a verdict: it is of an earlier policy, the next packet is judged anew"),
    ];
    let mut lines = Vec::new();
    let mut say = |name: &str, text: &str, indent: usize| {
        for (number, part) in wrap(text, width.saturating_sub(indent).max(10)).into_iter().enumerate() {
            let name = if number == 0 { name } else { "" };
            lines.push(Line::from(vec![Span::styled(format!("{name:<indent$}"), Modifier::BOLD), Span::raw(part)]));
        }
    };
    KEYS.iter().for_each(|(keys, text)| say(keys, text, 19));
    say("filters", "all terms must hold; - or not before a term turns it around; other words are text", 10);
    FIELDS.iter().for_each(|(field, takes)| say(&format!("{field}:"), takes, 10));
    lines
}
