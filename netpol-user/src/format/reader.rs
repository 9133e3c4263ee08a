//! Reads a tree of [`Node`]s with types, collecting everything that is wrong instead of stopping.
//!
//! [`Fields`] is the heart: it learns which names a map may have from the names that are asked
//! for, and when it goes out of scope it reports all the others. So the code that reads a document
//! is the list of its fields, and no field can be forgotten or silently ignored.

use std::{cell::RefCell, sync::Arc};

use super::{
    Diagnostic,
    node::{Key, Node, Pos, Style, Value, shorten},
};
use crate::model::{Labels, Origin};

/// Reports after which the rest is left out: enough for people, bounded for machines.
pub const MAX_REPORTS: usize = 1_000;

/// Where errors and warnings of one file go.
pub struct Report {
    file: Arc<str>,
    errors: RefCell<Vec<Diagnostic>>,
    warnings: RefCell<Vec<Diagnostic>>,
}

impl Report {
    pub fn new(file: Arc<str>) -> Self {
        Self { file, errors: RefCell::default(), warnings: RefCell::default() }
    }

    pub fn origin(&self, at: Pos) -> Origin {
        Origin { file: self.file.clone(), line: at.line, column: at.column }
    }

    pub fn error(&self, at: Pos, message: impl Into<String>) {
        self.put(&self.errors, at, message.into(), None);
    }

    /// `help` says what was meant, or what to do.
    pub fn error_help(&self, at: Pos, message: impl Into<String>, help: impl Into<String>) {
        self.put(&self.errors, at, message.into(), Some(help.into()));
    }

    pub fn warning(&self, at: Pos, message: impl Into<String>, help: impl Into<String>) {
        self.put(&self.warnings, at, message.into(), Some(help.into()));
    }

    fn put(&self, list: &RefCell<Vec<Diagnostic>>, at: Pos, message: String, help: Option<String>) {
        let mut list = list.borrow_mut();
        match list.len() {
            ..MAX_REPORTS => list.push(Diagnostic { origin: self.origin(at), message, help }),
            MAX_REPORTS => list.push(Diagnostic {
                origin: self.origin(at),
                message: format!("more than {MAX_REPORTS} in this file; the rest is left out"),
                help: None,
            }),
            _ => {}
        }
    }

    /// Errors and warnings.
    pub fn into_parts(self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        (self.errors.into_inner(), self.warnings.into_inner())
    }

    /// Reads a map; reports anything else. `name` is the field that holds it.
    pub fn fields<'a>(&'a self, node: &'a Node, name: &str) -> Option<Fields<'a>> {
        let Value::Map(entries) = &node.value else {
            self.wrong_type(node, name, "a map");
            return None;
        };
        Some(Fields { report: self, at: node.at, entries, known: Vec::new() })
    }

    /// Reads a string; reports anything else.
    pub fn text<'a>(&self, node: &'a Node, name: &str) -> Option<Text<'a>> {
        let Value::Scalar(scalar) = &node.value else {
            self.wrong_type(node, name, "a string");
            return None;
        };
        match scalar.string() {
            Ok(text) => Some(Text { text, at: node.at, style: scalar.style }),
            Err(what) => {
                let found = shorten(&scalar.text);
                let message = format!("`{name}` must be a string, and `{found}` without quotes is {what}");
                self.error_help(node.at, message, format!("write `\"{found}\"`"));
                None
            }
        }
    }

    pub fn integer(&self, node: &Node, name: &str) -> Option<i64> {
        let integer = match &node.value {
            Value::Scalar(scalar) => scalar.integer(),
            _ => None,
        };
        if integer.is_none() {
            self.wrong_type(node, name, "a whole number");
        }
        integer
    }

    pub fn wrong_type(&self, node: &Node, name: &str, wanted: &str) {
        self.error(node.at, format!("`{name}` must be {wanted}, found {}", node.describe()));
    }
}

/// A string and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    pub text: &'a str,
    pub at: Pos,
    style: Style,
}

impl Text<'_> {
    /// Where the byte at `offset` stands.
    pub fn inside(&self, offset: usize) -> Pos {
        self.style.inside(self.at, self.text, offset)
    }
}

/// A map whose fields are being read. Dropping it reports the fields that nobody asked for.
pub struct Fields<'a> {
    report: &'a Report,
    pub at: Pos,
    entries: &'a [(Key, Node)],
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The field's value. A field without a value (`null`) is like no field, as in Kubernetes.
    pub fn node(&mut self, name: &'static str) -> Option<&'a Node> {
        self.known.push(name);
        let (_, node) = self.entries.iter().find(|(key, _)| key.text == name)?;
        (!matches!(node.value, Value::Null)).then_some(node)
    }

    /// Where the field's name stands.
    pub fn key_at(&self, name: &str) -> Option<Pos> {
        self.entries.iter().find(|(key, _)| key.text == name).map(|(key, _)| key.at)
    }

    /// Fields that may stand there and say nothing to netpol.
    pub fn ignore(&mut self, names: &[&'static str]) {
        self.known.extend(names);
    }

    /// Leaves this map alone: something else is already reported of it.
    pub fn abandon(&mut self) {
        self.entries = &[];
    }

    /// The names that have a value.
    pub fn present(&self) -> impl Iterator<Item = &'a str> {
        let entries = self.entries;
        entries.iter().filter(|(_, node)| !matches!(node.value, Value::Null)).map(|(key, _)| key.text.as_str())
    }

    pub fn fields(&mut self, name: &'static str) -> Option<Fields<'a>> {
        let node = self.node(name)?;
        self.report.fields(node, name)
    }

    pub fn text(&mut self, name: &'static str) -> Option<Text<'a>> {
        let node = self.node(name)?;
        self.report.text(node, name)
    }

    pub fn integer(&mut self, name: &'static str) -> Option<(i64, Pos)> {
        let node = self.node(name)?;
        Some((self.report.integer(node, name)?, node.at))
    }

    pub fn number(&mut self, name: &'static str) -> Option<f64> {
        let node = self.node(name)?;
        let number = match &node.value {
            Value::Scalar(scalar) => scalar.number(),
            _ => None,
        };
        if number.is_none() {
            self.report.wrong_type(node, name, "a number");
        }
        number
    }

    pub fn boolean(&mut self, name: &'static str) -> Option<bool> {
        let node = self.node(name)?;
        let boolean = match &node.value {
            Value::Scalar(scalar) => scalar.boolean(),
            _ => None,
        };
        if boolean.is_none() {
            self.report.wrong_type(node, name, "`true` or `false`");
        }
        boolean
    }

    pub fn list(&mut self, name: &'static str) -> Option<&'a [Node]> {
        let node = self.node(name)?;
        let Value::List(items) = &node.value else {
            self.report.wrong_type(node, name, "a list");
            return None;
        };
        Some(items)
    }

    pub fn texts(&mut self, name: &'static str) -> Option<Vec<Text<'a>>> {
        let report = self.report;
        Some(self.list(name)?.iter().filter_map(|node| report.text(node, name)).collect())
    }

    /// One of a fixed set of words.
    pub fn choice<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Option<T> {
        let word = self.text(name)?;
        choose(self.report, word, name, words)
    }

    /// A map of strings to strings.
    pub fn string_map(&mut self, name: &'static str) -> Option<Vec<(Text<'a>, Text<'a>)>> {
        let node = self.node(name)?;
        let Value::Map(entries) = &node.value else {
            self.report.wrong_type(node, name, "a map");
            return None;
        };
        let empty = |at| Text { text: "", at, style: Style::Block };
        let pair = |(key, node): &'a (Key, Node)| {
            let value = match node.value {
                Value::Null => Some(empty(node.at)),
                _ => self.report.text(node, &key.text),
            };
            Some((Text { text: &key.text, at: key.at, style: Style::Plain }, value?))
        };
        Some(entries.iter().filter_map(pair).collect())
    }

    /// Reports that `name` is missing when `value` is `None` and nothing stands there.
    pub fn require<T>(&self, name: &str, value: Option<T>) -> Option<T> {
        let missing = !self.entries.iter().any(|(key, node)| key.text == name && !matches!(node.value, Value::Null));
        if value.is_none() && missing {
            self.report.error(self.at, format!("`{name}` is missing"));
        }
        value
    }
}

impl Drop for Fields<'_> {
    fn drop(&mut self) {
        for (key, _) in self.entries {
            if self.known.contains(&key.text.as_str()) {
                continue;
            }
            let message = format!("unknown field `{}`", shorten(&key.text));
            self.report.error_help(key.at, message, did_you_mean(&key.text, &self.known));
        }
    }
}

/// Reads one of a fixed set of words.
pub fn choose<T: Copy>(report: &Report, word: Text<'_>, name: &str, words: &[(&str, T)]) -> Option<T> {
    if let Some((_, value)) = words.iter().find(|(known, _)| *known == word.text) {
        return Some(*value);
    }
    let known: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
    let message = format!("`{}` is no `{name}`", shorten(word.text));
    report.error_help(word.at, message, did_you_mean(word.text, &known));
    None
}

/// "did you mean ...?" when something is near, the whole list otherwise.
pub fn did_you_mean<S: AsRef<str>>(found: &str, known: &[S]) -> String {
    match nearest(found, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => match known {
            [] => "nothing is known here".to_owned(),
            [one] => format!("only `{}` is known here", one.as_ref()),
            _ => {
                let mut names: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
                names.sort_unstable();
                names.dedup();
                format!("known here: `{}`", names.join("`, `"))
            }
        },
    }
}

/// The known word that a typing error may have turned into `found`.
pub fn nearest<'a, S: AsRef<str>>(found: &str, known: &'a [S]) -> Option<&'a str> {
    const SIMILAR: f64 = 0.6;
    const LONGEST: usize = 100;
    if found.len() > LONGEST {
        return None;
    }
    let lower = found.to_lowercase();
    let likeness = |word: &str| strsim::normalized_damerau_levenshtein(&lower, &word.to_lowercase());
    known
        .iter()
        .map(|word| (likeness(word.as_ref()), word.as_ref()))
        .filter(|(likeness, _)| *likeness >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| word)
}

/// `metadata.labels` and the like, checked.
pub fn labels(fields: &mut Fields<'_>, name: &'static str) -> Labels {
    let pairs = fields.string_map(name).unwrap_or_default();
    let mut labels = Labels::new();
    for (key, value) in pairs {
        super::validate::label(fields.report, key, value);
        labels.insert(key.text.to_owned(), value.text.to_owned());
    }
    labels
}
