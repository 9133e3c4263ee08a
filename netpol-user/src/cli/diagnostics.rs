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
    let lines = Lines::new(&invalid.sources);
    let errors = invalid.errors.iter().map(|error| lines.report(error, Severity::Error));
    let warnings = invalid.warnings.iter().map(|warning| lines.report(warning, Severity::Warning));
    errors.chain(warnings).collect::<Vec<_>>().join("\n")
}

/// Warnings of documents that can be used.
pub fn render_warnings(warnings: &[Diagnostic], sources: &[Source]) -> String {
    let lines = Lines::new(sources);
    warnings.iter().map(|warning| lines.report(warning, Severity::Warning)).collect::<Vec<_>>().join("\n")
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
    fn line(&self, file: &str, number: u32) -> Option<String> {
        let text = self.sources.get(file)?;
        let mut all = self.starts.borrow_mut();
        let starts = all.entry(file.to_owned()).or_insert_with(|| {
            let after = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(index, _)| index + 1);
            std::iter::once(0).chain(after).collect()
        });
        let index = number.checked_sub(1)? as usize;
        let start = *starts.get(index)?;
        let end = starts.get(index + 1).map_or(text.len(), |next| next - 1);
        Some(String::from_utf8_lossy(&text[start..end]).trim_end_matches('\r').to_owned())
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
        let skipped = if line.chars().count() > BEFORE + AFTER { column.saturating_sub(BEFORE) } else { 0 };
        let cut = |line: String| -> String {
            line.chars().skip(skipped).take(BEFORE + AFTER).map(|c| if c.is_control() { '·' } else { c }).collect()
        };
        let before = origin.line.checked_sub(1).and_then(|number| self.line(&origin.file, number)).map(cut);
        let after = self.line(&origin.file, origin.line + 1).map(cut);
        let line = cut(line);
        let in_line: usize = line.chars().take(column - skipped).map(char::len_utf8).sum();
        let length = token(&line[in_line..]);
        let first = origin.line as usize - 1 - usize::from(before.is_some());
        let label = before.as_ref().map_or(0, |before| before.len() + 1) + in_line;
        let text = before.into_iter().chain([line]).chain(after).collect::<Vec<_>>().join("\n");
        let place = (origin.line as usize - 1, origin.column.max(1) as usize - 1);
        Some(Excerpt { name: escape(&origin.file), text, first, place, label: (label, length).into() })
    }
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
