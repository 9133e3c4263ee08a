//! A matrix for people: rows speak, columns are spoken to.
//!
//! Names head the columns where the terminal is wide enough, numbers where it is not, and what
//! is too wide even then becomes a list. No meaning is in colour alone.

use std::{
    env,
    fmt::Write as _,
    io::{IsTerminal as _, stdout},
};

use super::output::escape;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// An end and itself, or two ends that nobody judges.
    Nothing,
    Denied,
    Allowed,
    /// It depends on the addresses.
    Mixed,
    /// Allowed, and an audited policy would deny it.
    WouldDeny,
    /// Denied, and an audited policy would allow it.
    WouldAllow,
}

impl Cell {
    const fn symbol(self) -> char {
        match self {
            Self::Nothing => ' ',
            Self::Denied => '·',
            Self::Allowed => '✓',
            Self::Mixed => '~',
            Self::WouldDeny => '!',
            Self::WouldAllow => '+',
        }
    }

    /// SGR code (ECMA-48).
    const fn colour(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Denied => Some("2"),
            Self::Allowed => Some("32"),
            Self::Mixed | Self::WouldDeny | Self::WouldAllow => Some("33"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Plain,
    Ansi,
}

impl Colour {
    /// On a terminal, unless `NO_COLOR` (no-color.org) or a dumb terminal say otherwise.
    pub fn of_stdout() -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env::var_os("TERM").is_some_and(|term| term == "dumb");
        if stdout().is_terminal() && !refused { Self::Ansi } else { Self::Plain }
    }

    pub fn paint(self, code: Option<&str>, text: &str) -> String {
        match (self, code) {
            (Self::Ansi, Some(code)) => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

/// How much room there is.
#[derive(Clone, Copy, Debug)]
pub struct Canvas {
    /// In columns.
    pub width: usize,
    pub colour: Colour,
}

impl Canvas {
    pub fn of_stdout() -> Self {
        let width = comfy_table::Table::new().width().map_or(80, usize::from);
        Self { width, colour: Colour::of_stdout() }
    }
}

/// All verdicts about one port.
#[derive(Clone, Debug)]
pub struct Grid<'a> {
    /// `80/tcp`
    pub title: String,
    /// Of rows and columns both.
    pub names: &'a [String],
    /// `cells[from][to]`
    pub cells: Vec<Vec<Cell>>,
}

/// One line that explains the symbols that the grids use.
pub fn legend(grids: &[Grid<'_>]) -> String {
    let explained = [
        (Cell::Mixed, "   ~ depends on the addresses (-o json says which)"),
        (Cell::WouldDeny, "   ! allowed, audited policies would deny it"),
        (Cell::WouldAllow, "   + denied, audited policies would allow it"),
    ];
    let used = |cell: Cell| grids.iter().flat_map(|grid| grid.cells.iter().flatten()).any(|&other| other == cell);
    let explained: String = explained.into_iter().filter(|(cell, _)| used(*cell)).map(|(_, text)| text).collect();
    format!("✓ allowed   · denied{explained}   (a row speaks, a column is spoken to)\n")
}

impl Grid<'_> {
    pub fn render(&self, canvas: Canvas) -> String {
        let names: Vec<_> = self.names.iter().map(|name| escape(name)).collect();
        let numbers: Vec<_> = (1..=names.len()).map(|number| number.to_string()).collect();
        let digits = numbers.last().map_or(0, String::len);
        let numbered = |(number, name): (&String, &String)| format!("{number:>digits$} {name}");
        let numbered: Vec<_> = numbers.iter().zip(&names).map(numbered).collect();
        for (rows, columns) in [(&names, &names), (&numbered, &numbers)] {
            if self.width(rows, columns) <= canvas.width {
                return self.table(rows, columns, canvas.colour);
            }
        }
        self.list(&names, canvas.width)
    }

    fn width(&self, rows: &[String], columns: &[String]) -> usize {
        let first = rows.iter().map(|name| name.chars().count()).chain([self.title.len()]).max().unwrap_or_default();
        columns.iter().fold(first, |width, name| width + 2 + name.chars().count())
    }

    fn table(&self, rows: &[String], columns: &[String], colour: Colour) -> String {
        let first = self.width(rows, &[]);
        let mut text = String::new();
        let mut line = format!("{:<first$}", self.title);
        for name in columns {
            let _ = write!(line, "  {name}");
        }
        let _ = writeln!(text, "{}", colour.paint(Some("1"), line.trim_end()));
        for (name, cells) in rows.iter().zip(&self.cells) {
            let mut line = format!("{name:<first$}");
            for (cell, column) in cells.iter().zip(columns) {
                let before = column.chars().count().saturating_sub(1) / 2;
                let after = column.chars().count().saturating_sub(before + 1);
                let symbol = colour.paint(cell.colour(), &cell.symbol().to_string());
                let _ = write!(line, "  {:before$}{symbol}{:after$}", "", "");
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }

    /// Who is allowed to speak to whom; everything else is denied.
    fn list(&self, names: &[String], width: usize) -> String {
        let mut text = format!("{}\n", self.title);
        for (from, cells) in names.iter().zip(&self.cells) {
            let mark = |cell: &Cell| match cell {
                Cell::Mixed => "~",
                Cell::WouldDeny => "!",
                Cell::Nothing | Cell::Denied | Cell::Allowed | Cell::WouldAllow => "",
            };
            let speaks = |cell: &&Cell| matches!(cell, Cell::Allowed | Cell::Mixed | Cell::WouldDeny);
            let to = names.iter().zip(cells).filter(|(_, cell)| speaks(cell));
            let to: Vec<_> = to.map(|(name, cell)| format!("{}{name}", mark(cell))).collect();
            let _ = writeln!(text, "  {from} ->");
            match to.as_slice() {
                [] => text.push_str("      nobody\n"),
                to => wrap(to, width, &mut text),
            }
        }
        text
    }
}

fn wrap(words: &[String], width: usize, text: &mut String) {
    const INDENT: &str = "      ";
    let mut line = String::new();
    for (index, word) in words.iter().enumerate() {
        let comma = if index + 1 < words.len() { "," } else { "" };
        if !line.is_empty() && INDENT.len() + line.chars().count() + 1 + word.chars().count() + comma.len() > width {
            let _ = writeln!(text, "{INDENT}{line}");
            line.clear();
        }
        let _ = write!(line, "{}{word}{comma}", if line.is_empty() { "" } else { " " });
    }
    let _ = writeln!(text, "{INDENT}{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn plain(width: usize) -> Canvas {
        Canvas { width, colour: Colour::Plain }
    }

    use Cell::{Allowed, Denied, Mixed, Nothing};

    #[test]
    fn names_head_the_columns_where_they_fit() {
        let names = names(&["web", "db"]);
        let grid =
            Grid { title: "80/tcp".into(), names: &names, cells: vec![vec![Nothing, Allowed], vec![Denied, Nothing]] };
        assert_eq!(grid.render(plain(80)), "80/tcp  web  db\nweb          ✓\ndb       ·\n");
    }

    #[test]
    fn numbers_head_the_columns_of_a_narrow_terminal() {
        let names = names(&["web", "database"]);
        let grid =
            Grid { title: "80/tcp".into(), names: &names, cells: vec![vec![Nothing, Mixed], vec![Denied, Nothing]] };
        assert_eq!(grid.render(plain(18)), "80/tcp      1  2\n1 web          ~\n2 database  ·\n");
    }

    #[test]
    fn what_is_too_wide_becomes_a_list() {
        let names = names(&["frontend", "database", "cache"]);
        let cells = vec![vec![Nothing, Allowed, Allowed], vec![Denied, Nothing, Denied], vec![Denied, Mixed, Nothing]];
        let grid = Grid { title: "80/tcp".into(), names: &names, cells };
        let want = "80/tcp\n  frontend ->\n      database,\n      cache\n  database ->\n      nobody\n  cache ->\n      ~database\n";
        assert_eq!(grid.render(plain(16)), want);
    }

    #[test]
    fn what_audited_policies_would_change_has_symbols_that_are_explained() {
        let names = names(&["web", "db"]);
        let cells = vec![vec![Nothing, Cell::WouldDeny], vec![Cell::WouldAllow, Nothing]];
        let grid = Grid { title: "80/tcp".into(), names: &names, cells };
        assert_eq!(grid.render(plain(80)), "80/tcp  web  db\nweb          !\ndb       +\n");
        assert_eq!(grid.render(plain(5)), "80/tcp\n  web ->\n      !db\n  db ->\n      nobody\n");
        let legend = legend(&[grid]);
        assert!(legend.contains("! allowed, audited policies would deny it"), "{legend}");
        assert!(legend.contains("+ denied, audited policies would allow it") && !legend.contains('~'), "{legend}");
    }

    #[test]
    fn colour_adds_no_meaning() {
        let names = names(&["web", "db"]);
        let grid =
            Grid { title: "80/tcp".into(), names: &names, cells: vec![vec![Nothing, Allowed], vec![Denied, Nothing]] };
        let coloured = grid.render(Canvas { width: 80, colour: Colour::Ansi });
        assert!(coloured.contains("\x1b[32m✓\x1b[0m"));
        let mut stripped = coloured;
        for code in ["\x1b[32m", "\x1b[2m", "\x1b[1m", "\x1b[0m"] {
            stripped = stripped.replace(code, "");
        }
        assert_eq!(stripped, grid.render(plain(80)));
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        let names = names(&["a\x1b[2J", "b"]);
        let grid =
            Grid { title: "80/tcp".into(), names: &names, cells: vec![vec![Nothing, Denied], vec![Denied, Nothing]] };
        assert!(!grid.render(plain(80)).contains('\x1b'));
    }
}
