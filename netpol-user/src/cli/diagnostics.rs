//! What is wrong in documents, for people: the lines themselves, with a mark under the place.
//!
//! Nothing of a document reaches the terminal unescaped, and of a long line only the part around
//! the place is shown.

use std::{collections::HashMap, fmt, io::IsTerminal as _};

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents, Severity, SourceCode,
    SourceSpan, SpanContents,
};
use serde::Serialize;

use super::output::escape;
use crate::format::{Diagnostic, Invalid, Source};

/// Columns of a report.
const WIDTH: usize = 110;
/// Characters shown before and after the place in a line that is too long.
const BEFORE: usize = 50;
const AFTER: usize = 70;
/// Errors, and warnings, shown with their lines.
const MOST: usize = 200;

/// A diagnostic as `check -o json` prints it.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    pub file: &'a str,
    /// From 1; 0 when the file as a whole is meant.
    pub line: u32,
    /// In characters, from 1; 0 when the file as a whole is meant.
    pub column: u32,
    pub message: &'a str,
    pub help: Option<&'a str>,
}

impl<'a> From<&'a Diagnostic> for Line<'a> {
    fn from(Diagnostic { origin, message, help }: &'a Diagnostic) -> Self {
        let help = help.as_deref();
        Self { file: &origin.file, line: origin.line, column: origin.column, message, help }
    }
}

/// All errors and warnings of documents that can't be used.
pub fn render(invalid: &Invalid) -> String {
    let Invalid { errors, warnings, sources } = invalid;
    let lines = Lines::new(sources);
    [lines.reports(errors, Severity::Error), lines.reports(warnings, Severity::Warning)].concat().join("\n")
}

/// Warnings of documents that can be used.
pub fn render_warnings(warnings: &[Diagnostic], sources: &[Source]) -> String {
    Lines::new(sources).reports(warnings, Severity::Warning).join("\n")
}

/// The lines of the sources, by name of the source.
struct Lines<'a> {
    sources: HashMap<&'a str, &'a [u8]>,
    /// Where each line begins: found once for each source.
    starts: std::cell::RefCell<HashMap<String, Vec<usize>>>,
}

impl<'a> Lines<'a> {
    fn new(sources: &'a [Source]) -> Self {
        let sources = sources.iter().map(|source| (source.name.as_str(), source.text.as_slice())).collect();
        Self { sources, starts: Default::default() }
    }

    /// A line by its number from 1, without its end.
    fn line(&self, file: &str, number: u32) -> Option<&'a [u8]> {
        let text = *self.sources.get(file)?;
        let mut all = self.starts.borrow_mut();
        let starts = all.entry(file.to_owned()).or_insert_with(|| {
            let after = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(index, _)| index + 1);
            std::iter::once(0).chain(after).collect()
        });
        let index = number.checked_sub(1)? as usize;
        let start = *starts.get(index)?;
        let end = starts.get(index + 1).map_or(text.len(), |next| next - 1);
        let line = &text[start..end];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }

    fn reports(&self, list: &[Diagnostic], severity: Severity) -> Vec<String> {
        let shown = list.iter().take(MOST).map(|diagnostic| self.report(diagnostic, severity));
        let more = list.len().saturating_sub(MOST);
        let rest = (more > 0).then(|| format!("  … and {more} more, which `netpol check -o json` lists\n"));
        shown.chain(rest).collect()
    }

    fn report(&self, diagnostic: &Diagnostic, severity: Severity) -> String {
        let shown = Shown {
            message: escape(&diagnostic.message),
            help: diagnostic.help.as_deref().map(escape),
            severity,
            excerpt: self.excerpt(diagnostic),
        };
        let file = escape(&diagnostic.origin.file);
        let mut text = String::new();
        let handler = GraphicalReportHandler::new_themed(theme()).with_width(WIDTH).with_context_lines(1);
        // Writing to a String does not fail.
        let _ = handler.render_report(&mut text, &shown);
        if shown.excerpt.is_none() {
            text = text.trim_end().to_owned() + &format!("\n   ╰─[{file}]\n");
        }
        text
    }

    /// The line before, the line, the line after.
    fn excerpt(&self, Diagnostic { origin, .. }: &Diagnostic) -> Option<Excerpt> {
        let line = self.line(&origin.file, origin.line)?;
        let column = origin.column.max(1) as usize - 1;
        let skipped = if line.len() > BEFORE + AFTER { column.saturating_sub(BEFORE) } else { 0 };
        let before = origin.line.checked_sub(1).and_then(|number| self.line(&origin.file, number));
        let before = before.map(|line| window(line, skipped));
        let after = self.line(&origin.file, origin.line + 1).map(|line| window(line, skipped));
        let line = window(line, skipped);
        let in_line: usize = line.chars().take(column - skipped).map(char::len_utf8).sum();
        let length = token(&line[in_line..]);
        let first = origin.line as usize - 1 - usize::from(before.is_some());
        let label = before.as_ref().map_or(0, |before| before.len() + 1) + in_line;
        let text = before.into_iter().chain([line]).chain(after).collect::<Vec<_>>().join("\n");
        let place = (origin.line as usize - 1, column);
        Some(Excerpt { name: escape(&origin.file), text, first, place, label: (label, length).into() })
    }
}

/// The part of a line that is shown, `skipped` characters from its beginning.
fn window(line: &[u8], skipped: usize) -> String {
    const LONGEST_CHARACTER: usize = 4;
    let begins = |(_, byte): &(usize, &u8)| **byte & 0xc0 != 0x80;
    let start = line.iter().enumerate().filter(begins).nth(skipped).map_or(line.len(), |(index, _)| index);
    let end = line.len().min(start + (BEFORE + AFTER) * LONGEST_CHARACTER);
    let text = String::from_utf8_lossy(&line[start..end]);
    text.chars().take(BEFORE + AFTER).map(|c| if c.is_control() { '·' } else { c }).collect()
}

/// Bytes of the word that begins here: what the mark goes under.
fn token(rest: &str) -> usize {
    let ends = |(index, c): &(usize, char)| *index > 0 && (c.is_whitespace() || matches!(c, ',' | ':' | '}' | ']'));
    let quoted = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
    let end = match quoted {
        Some(quote) => rest[1..].find(quote).map(|index| index + 2),
        None => rest.char_indices().find(ends).map(|(index, _)| index),
    };
    end.unwrap_or(rest.len())
}

/// Colours and lines where somebody looks at them.
fn theme() -> GraphicalTheme {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
    if terminal && !plain { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() }
}

/// Some lines of a source. Made by hand because miette would look for them from the start of the
/// source every time.
#[derive(Debug)]
struct Excerpt {
    name: String,
    text: String,
    /// Number of its first line, from 0.
    first: usize,
    /// Line and column of the place, from 0.
    place: (usize, usize),
    label: SourceSpan,
}

impl SourceCode for Excerpt {
    fn read_span<'a>(
        &'a self,
        _span: &SourceSpan,
        context_before: usize,
        _context_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        // Without context it is asked for the place itself, to name it.
        let (line, column) = if context_before == 0 { self.place } else { (self.first, 0) };
        let whole = SourceSpan::from((0, self.text.len()));
        let count = self.text.lines().count();
        let contents =
            MietteSpanContents::new_named(self.name.clone(), self.text.as_bytes(), whole, line, column, count);
        Ok(Box::new(contents))
    }
}

#[derive(Debug)]
struct Shown {
    message: String,
    help: Option<String>,
    severity: Severity,
    excerpt: Option<Excerpt>,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Shown {}

impl miette::Diagnostic for Shown {
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.excerpt.as_ref().map(|excerpt| excerpt as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let excerpt = self.excerpt.as_ref()?;
        Some(Box::new(std::iter::once(LabeledSpan::new_primary_with_span(None, excerpt.label))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Source, parse};

    fn rendered(text: &str) -> String {
        let source = Source { name: "a.yaml".to_owned(), text: text.as_bytes().to_vec() };
        render(&parse(vec![source]).expect_err("the document is wrong"))
    }

    #[test]
    fn the_line_stands_there_with_a_mark_and_the_cure() {
        let text = rendered("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: x\n  label: {a: b}\n");
        assert!(text.contains("unknown field `label`"), "{text}");
        assert!(text.contains("[a.yaml:5:3]"), "{text}");
        assert!(text.contains("label: {a: b}"), "{text}");
        assert!(text.contains("─────") || text.contains("──┬──"), "{text}");
        assert!(text.contains("did you mean `labels`?"), "{text}");
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        let text = rendered("apiVersion: v1\nkind: \"\\e[2J\"\nmetadata: {name: x}\n");
        assert!(!text.contains('\u{1b}'), "{text:?}");
        let raw = rendered("apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\nx\u{9b}2J: 1\n");
        assert!(!raw.contains('\u{9b}'), "{raw:?}");
    }

    #[test]
    fn of_a_long_line_only_the_part_around_the_place_is_shown() {
        let long = format!("{{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", {} \"x\": 1}}", "    ".repeat(10_000));
        let text = rendered(&long);
        assert!(text.len() < 2_000, "{}", text.len());
        assert!(text.contains("metadata"), "{text}");
    }
}
