//! The table: which columns fit, and the rows that are on the screen.

use ratatui::{
    Frame,
    layout::Rect,
    style::{Modifier, Style},
    text::{Line, Span},
    widgets::Paragraph,
};

use super::Theme;
use crate::cli::{
    output::escape,
    top::{
        app::{App, Hit},
        tables::{Column, ESSENTIAL, Kind, Tab, Tone},
        units,
    },
};

/// Between two columns.
const GAP: usize = 1;

pub fn table(app: &mut App, frame: &mut Frame<'_>, area: Rect, theme: Theme) {
    let height = app.height;
    let view = app.view_mut();
    view.offset = view.offset.min(view.selected).max((view.selected + 1).saturating_sub(height));
    view.offset = view.offset.min(view.order.len().saturating_sub(height));
    app.sort();
    let view = app.view();
    let rows: Vec<usize> = view.order.iter().skip(view.offset).take(height).map(|row| *row as usize).collect();
    let drawn = app.with_table(|table| {
        let columns = table.columns();
        let cells: Vec<(Tone, Vec<String>)> = rows
            .iter()
            .map(|row| (table.tone(*row), (0..columns.len()).map(|c| escape(&table.cell(c, *row))).collect()))
            .collect();
        (columns, cells)
    });
    let Some((columns, cells)) = drawn else {
        frame.render_widget(Paragraph::new("reading ..."), area);
        return;
    };
    let (sort, descending, selected) = (view.sort, view.descending, view.selected - view.offset.min(view.selected));
    let titles: Vec<String> =
        (0..).zip(columns).map(|(index, column)| title(index, column, (sort, descending))).collect();
    let view = app.view_mut();
    view.widths.resize(columns.len(), 0);
    for (index, width) in view.widths.iter_mut().enumerate() {
        let longest = cells.iter().map(|(_, cells)| cells[index].chars().count()).max().unwrap_or_default();
        *width = longest.max(titles[index].chars().count()).max(*width);
    }
    let shown = layout(columns, &view.widths, usize::from(area.width), sort);
    let mut at = area.x;
    for &(index, width) in &shown {
        let place = Rect { x: at, width: width as u16, height: 1, ..area };
        app.hits.push((place, Hit::Sort(index)));
        at += (width + GAP) as u16;
    }
    let mut lines = vec![Line::styled(row_text(&shown, columns, &titles), Modifier::BOLD | Modifier::UNDERLINED)];
    for (number, (tone, cells)) in cells.iter().enumerate() {
        let place = Rect { y: area.y + 1 + number as u16, height: 1, ..area };
        app.hits.push((place, Hit::Row(number)));
        let text = row_text(&shown, columns, cells);
        let style = theme.of(*tone);
        lines.push(if number == selected {
            Line::styled(
                format!("{text:<width$}", width = usize::from(area.width)),
                style.add_modifier(Modifier::REVERSED),
            )
        } else {
            // the verdict is coloured, the rest stays readable
            let first = shown.first().map_or(0, |(_, width)| *width);
            let (verdict, rest): (String, String) =
                (text.chars().take(first).collect(), text.chars().skip(first).collect());
            let rest_style = if *tone == Tone::Dim { style } else { Style::new() };
            Line::from(vec![Span::styled(verdict, style), Span::styled(rest, rest_style)])
        });
    }
    if cells.is_empty() {
        let text = match app.tab {
            Tab::Drops => "nothing was dropped",
            Tab::Services => "no service is published",
            _ if app.filter.is_empty() => "nothing is remembered yet",
            _ => "nothing matches the filter",
        };
        lines.push(Line::styled(text, Modifier::DIM));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn title(index: usize, column: &Column, (sort, descending): (usize, bool)) -> String {
    match (index == sort, descending) {
        (false, _) => column.title.to_owned(),
        (true, true) => format!("{}▼", column.title),
        (true, false) => format!("{}▲", column.title),
    }
}

fn row_text(shown: &[(usize, usize)], columns: &[Column], cells: &[String]) -> String {
    let cell = |&(index, width): &(usize, usize)| {
        let text = units::fit(&cells[index], width, columns[index].kind == Kind::End);
        if columns[index].kind == Kind::Number { format!("{text:>width$}") } else { format!("{text:<width$}") }
    };
    shown.iter().map(cell).collect::<Vec<_>>().join(&" ".repeat(GAP))
}

/// Which columns fit, and how wide each is. The essential ones come first, each as narrow as it may be and
/// then as wide as it wants to be; what room is left goes to the others. The column that the table is sorted
/// by is always there.
fn layout(columns: &[Column], wanted: &[usize], width: usize, sort: usize) -> Vec<(usize, usize)> {
    let rank = |index: usize| if index == sort { 0 } else { columns[index].rank };
    let mut ranked: Vec<usize> = (0..columns.len()).collect();
    ranked.sort_by_key(|index| (rank(*index), *index != sort));
    let mut left = width;
    let mut shown: Vec<(usize, usize)> = Vec::new();
    let (essential, others) = ranked.split_at(ranked.partition_point(|index| rank(*index) < ESSENTIAL));
    for some in [essential, others] {
        for &index in some {
            let gap = if shown.is_empty() { 0 } else { GAP };
            let least = columns[index].least.max(columns[index].title.chars().count()).min(wanted[index]);
            if least + gap <= left {
                left -= least + gap;
                shown.push((index, least));
            }
        }
        for (index, given) in &mut shown {
            let more = (wanted[*index] - *given).min(left);
            *given += more;
            left -= more;
        }
    }
    shown.sort_unstable();
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn column(title: &'static str, least: usize, rank: u8) -> Column {
        Column { title, least, rank, kind: Kind::Text }
    }

    #[test]
    fn columns_of_high_rank_go_first_where_there_is_no_room() {
        let columns = [column("A", 5, 0), column("B", 5, ESSENTIAL), column("C", 5, 1)];
        let wanted = [8, 8, 8];
        assert_eq!(layout(&columns, &wanted, 40, 0), [(0, 8), (1, 8), (2, 8)]);
        assert_eq!(layout(&columns, &wanted, 23, 0), [(0, 8), (1, 5), (2, 8)]);
        assert_eq!(layout(&columns, &wanted, 22, 0), [(0, 8), (2, 8)]);
        assert_eq!(layout(&columns, &wanted, 16, 0), [(0, 8), (2, 7)]);
        // what it is sorted by is shown
        assert_eq!(layout(&columns, &wanted, 11, 1), [(0, 5), (1, 5)]);
        assert_eq!(layout(&columns, &wanted, 3, 0), []);
    }
}
