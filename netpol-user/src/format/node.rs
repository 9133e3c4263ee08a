//! YAML as a tree in which everything knows its line and column.
//!
//! Built from the parser's events and not through serde: a derived reader stops at the first thing
//! that is wrong, this tree lets the readers go on and report all of them. Each document of a file
//! is parsed apart, so a syntax error in one does not hide the others.
//!
//! Everything here is bounded: nodes, depth (aliases counted at their expanded size and depth).

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span, Tag};

/// Nodes of one document, those that aliases repeat included.
const MAX_NODES: usize = 1_000_000;
/// Lists and maps inside each other. No document that netpol knows needs more than 12.
const MAX_DEPTH: usize = 64;

/// Where something stands in its file. Lines and columns (in characters) count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pos {
    pub line: u32,
    pub column: u32,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub at: Pos,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub enum Value {
    /// `key:` with nothing behind it, `null`, `~`.
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub struct Scalar {
    pub text: String,
    pub style: Style,
}

/// How a scalar is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Without quotes: what looks like a number or a boolean is one.
    Plain,
    Single,
    Double,
    /// `|` or `>`.
    Block,
}

impl Style {
    /// Where the byte at `offset` of a scalar's text stands, when the scalar begins at `start`.
    /// Exact in one line; a text of several lines has only its start.
    pub fn inside(self, start: Pos, text: &str, offset: usize) -> Pos {
        let before = text.get(..offset).unwrap_or(text);
        if self == Self::Block || text.contains('\n') {
            return start;
        }
        // Quotes take a column, and what is escaped in them takes two.
        let width = |c: char| match (self, c) {
            (Self::Single, '\'') | (Self::Double, '"' | '\\') => 2,
            _ => 1,
        };
        let quote = u32::from(self != Self::Plain);
        Pos { line: start.line, column: start.column + quote + before.chars().map(width).sum::<u32>() }
    }
}

#[derive(Clone, Debug)]
pub struct Key {
    pub at: Pos,
    pub text: String,
}

/// Why a text is no tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    pub at: Pos,
    pub message: String,
    pub help: Option<String>,
}

impl Malformed {
    fn new(at: Pos, message: impl Into<String>, help: &str) -> Self {
        Self { at, message: message.into(), help: (!help.is_empty()).then(|| help.to_owned()) }
    }
}

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    pub text: &'a str,
    /// Lines of the file before it.
    pub skipped: u32,
}

/// Documents of one file.
pub const MAX_DOCUMENTS: usize = 100_000;

/// Splits a file at its document markers. `---` and `...` at the start of a line end a document
/// wherever they stand (YAML 1.2, 9.1.2: even inside a scalar), so no parser is needed for this.
/// Stops after one more than [`MAX_DOCUMENTS`].
pub fn documents(text: &str) -> Vec<Chunk<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut chunks = Vec::new();
    let mut put = |text, skipped| {
        if !is_empty(text) {
            chunks.push(Chunk { text, skipped });
        }
        chunks.len() > MAX_DOCUMENTS
    };
    let (mut start, mut skipped, mut at) = (0, 0, 0);
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        let marks = |marker| {
            line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        // `---` belongs to the document that it begins, `...` to the one that it ends.
        let next = match () {
            () if marks("---") => Some((at, number)),
            () if marks("...") => Some((at + line.len(), number + 1)),
            () => None,
        };
        if let Some(next) = next {
            if put(&text[start..at], skipped) {
                return chunks;
            }
            (start, skipped) = next;
        }
        at += line.len();
    }
    put(&text[start..], skipped);
    chunks
}

/// Only blanks, comments, the marker and directives, which say nothing but which YAML this is.
fn is_empty(text: &str) -> bool {
    let blank = |line: &str| line.starts_with('%') || matches!(line.trim_start().bytes().next(), None | Some(b'#'));
    text.lines().all(|line| blank(line.strip_prefix("---").unwrap_or(line)))
}

/// Parses one document. `None`: there is nothing in it.
pub fn parse(chunk: Chunk<'_>) -> Result<Option<Node>, Vec<Malformed>> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.block_nesting_limit = MAX_DEPTH + 1;
    options.flow_nesting_limit = MAX_DEPTH + 1;
    let mut builder = Builder { skipped: chunk.skipped, ..Builder::default() };
    for event in Parser::new_from_str_with_options(chunk.text, options) {
        let taken = match event {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => Err(builder.scan_error(&error)),
        };
        if let Err(fatal) = taken {
            builder.errors.push(fatal);
            break;
        }
    }
    if builder.errors.is_empty() { Ok(builder.root) } else { Err(builder.errors) }
}

/// A list or map that is not closed yet.
struct Open {
    at: Pos,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, key: Option<Key>, merges: Vec<Node> },
}

struct Anchored {
    node: Node,
    nodes: usize,
    depth: usize,
}

#[derive(Default)]
struct Builder {
    skipped: u32,
    stack: Vec<Open>,
    /// What stays behind an anchor, for its aliases.
    anchors: HashMap<usize, Anchored>,
    nodes: usize,
    root: Option<Node>,
    errors: Vec<Malformed>,
}

impl Builder {
    fn pos(&self, span: &Span) -> Pos {
        self.pos_at(span.start.line(), span.start.col())
    }

    fn pos_at(&self, line: usize, column: usize) -> Pos {
        Pos { line: line as u32 + self.skipped, column: column as u32 + 1 }
    }

    fn scan_error(&self, error: &ScanError) -> Malformed {
        let mark = error.marker();
        Malformed::new(self.pos_at(mark.line(), mark.col()), format!("not YAML: {}", error.kind()), "")
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Malformed> {
        let at = self.pos(&span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let style = match style {
                    // `!!str 80` is as good as "80".
                    _ if self.forces_string(at, tag.as_deref()) => Style::Block,
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::SingleQuoted => Style::Single,
                    ScalarStyle::DoubleQuoted => Style::Double,
                    ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
                };
                let null = style == Style::Plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null { Value::Null } else { Value::Scalar(Scalar { text: text.into_owned(), style }) };
                self.complete(Node { at, value }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.forces_string(at, tag.as_deref());
                self.open(Open { at, anchor, kind: OpenKind::List(Vec::new()) })
            }
            Event::MappingStart(_, anchor, tag) => {
                self.forces_string(at, tag.as_deref());
                let kind = OpenKind::Map { entries: Vec::new(), key: None, merges: Vec::new() };
                self.open(Open { at, anchor, kind })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(id) => self.alias(at, id),
            _ => Ok(()),
        }
    }

    /// The only tags that mean something here are YAML's own.
    fn forces_string(&mut self, at: Pos, tag: Option<&Tag>) -> bool {
        let Some(tag) = tag else { return false };
        let core = tag.core_suffix();
        if core.is_none() {
            let tag = tag.original();
            self.errors.push(Malformed::new(at, format!("the tag `{tag}` has no meaning here"), "leave it out"));
        }
        core == Some("str")
    }

    fn open(&mut self, open: Open) -> Result<(), Malformed> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(too_deep(open.at));
        }
        self.stack.push(open);
        Ok(())
    }

    fn count(&mut self, at: Pos, nodes: usize) -> Result<(), Malformed> {
        self.nodes += nodes;
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        let message = format!("the document holds more than {MAX_NODES} values");
        Err(Malformed::new(at, message, "write it as several documents (`---`), without aliases (`*name`) of aliases"))
    }

    fn close(&mut self) -> Result<(), Malformed> {
        let Some(open) = self.stack.pop() else { return Ok(()) };
        let value = match open.kind {
            OpenKind::List(items) => Value::List(items),
            OpenKind::Map { mut entries, merges, .. } => {
                self.refuse_duplicates(&entries);
                self.merge(&mut entries, merges)?;
                Value::Map(entries)
            }
        };
        self.complete(Node { at: open.at, value }, open.anchor)
    }

    fn alias(&mut self, at: Pos, id: usize) -> Result<(), Malformed> {
        let Some(anchored) = self.anchors.get(&id) else {
            return Err(Malformed::new(at, "an alias inside of what it stands for", "write the value out"));
        };
        let (nodes, depth) = (anchored.nodes, anchored.depth);
        if self.stack.len() + depth > MAX_DEPTH {
            return Err(too_deep(at));
        }
        self.count(at, nodes - 1)?;
        let node = Node { at, value: self.anchors[&id].node.value.clone() };
        self.complete(node, 0)
    }

    /// Puts a finished value where it belongs: into the list or map around it, or at the root.
    fn complete(&mut self, node: Node, anchor: usize) -> Result<(), Malformed> {
        self.count(node.at, 1)?;
        if anchor != 0 {
            let (nodes, depth) = measure(&node);
            // The copy kept for aliases takes memory too.
            self.count(node.at, nodes)?;
            self.anchors.insert(anchor, Anchored { node: node.clone(), nodes, depth });
        }
        let Some(open) = self.stack.last_mut() else {
            self.root = (!matches!(node.value, Value::Null)).then_some(node);
            return Ok(());
        };
        match &mut open.kind {
            OpenKind::List(items) => items.push(node),
            OpenKind::Map { entries, key: slot, merges } => match slot.take() {
                Some(key) if key.text == "<<" => merges.push(node),
                Some(key) => entries.push((key, node)),
                None => {
                    let at = node.at;
                    let text = match node.value {
                        Value::Scalar(scalar) => scalar.text,
                        Value::Null => "null".to_owned(),
                        Value::List(_) | Value::Map(_) => {
                            let help = "a key is a word; `{{…}}` from a template must be rendered first";
                            return Err(Malformed::new(at, "a list or map cannot be a key here", help));
                        }
                    };
                    *slot = Some(Key { at, text });
                }
            },
        }
        Ok(())
    }

    fn refuse_duplicates(&mut self, entries: &[(Key, Node)]) {
        const FEW: usize = 16;
        let mut seen: HashMap<&str, Pos> = HashMap::new();
        for (index, (key, _)) in entries.iter().enumerate() {
            let first = if entries.len() <= FEW {
                entries[..index].iter().find(|(other, _)| other.text == key.text).map(|(other, _)| other.at)
            } else {
                let first = seen.get(key.text.as_str()).copied();
                seen.entry(&key.text).or_insert(key.at);
                first
            };
            if let Some(first) = first {
                let message = format!("`{}` is given twice, first in line {}", key.text, first.line);
                self.errors.push(Malformed::new(key.at, message, "keep one of the two"));
            }
        }
    }

    /// `<<: *base`: what the map itself does not say comes from the merged ones, the first first.
    fn merge(&mut self, entries: &mut Vec<(Key, Node)>, merges: Vec<Node>) -> Result<(), Malformed> {
        let sources = merges.into_iter().flat_map(|node| match node.value {
            Value::List(items) => items,
            _ => vec![node],
        });
        for source in sources {
            let Value::Map(merged) = source.value else {
                return Err(Malformed::new(source.at, "`<<` merges maps only", "give it an alias of a map"));
            };
            let own: HashSet<String> = entries.iter().map(|(key, _)| key.text.clone()).collect();
            entries.extend(merged.into_iter().filter(|(key, _)| !own.contains(&key.text)));
        }
        Ok(())
    }
}

fn too_deep(at: Pos) -> Malformed {
    Malformed::new(at, format!("more than {MAX_DEPTH} lists and maps inside each other"), "no document needs that")
}

/// Number of nodes, and depth, of a tree.
fn measure(node: &Node) -> (usize, usize) {
    let children: Vec<(usize, usize)> = match &node.value {
        Value::Null | Value::Scalar(_) => return (1, 0),
        Value::List(items) => items.iter().map(measure).collect(),
        Value::Map(entries) => entries.iter().map(|(_, node)| measure(node)).collect(),
    };
    children.iter().fold((1, 1), |(nodes, depth), (n, d)| (nodes + n, depth.max(d + 1)))
}

impl Scalar {
    fn is_plain(&self) -> bool {
        self.style == Style::Plain
    }

    /// A whole number, written without quotes.
    pub fn integer(&self) -> Option<i64> {
        self.is_plain().then(|| self.text.parse().ok()).flatten()
    }

    /// Any number, written without quotes.
    pub fn number(&self) -> Option<f64> {
        let starts_like_one = self.text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
        (self.is_plain() && starts_like_one).then(|| self.text.parse().ok()).flatten().filter(|n: &f64| n.is_finite())
    }

    pub fn boolean(&self) -> Option<bool> {
        match (self.is_plain(), self.text.as_str()) {
            (true, "true" | "True" | "TRUE") => Some(true),
            (true, "false" | "False" | "FALSE") => Some(false),
            _ => None,
        }
    }

    /// The text, unless Kubernetes' own parser (YAML 1.1) would not take it for a string.
    pub fn string(&self) -> Result<&str, Cow<'static, str>> {
        const BOOLEANS: [&str; 6] = ["yes", "no", "on", "off", "true", "false"];
        if !self.is_plain() {
            return Ok(&self.text);
        }
        if BOOLEANS.iter().any(|word| word.eq_ignore_ascii_case(&self.text)) {
            return Err("a boolean".into());
        }
        if self.number().is_some() { Err("a number".into()) } else { Ok(&self.text) }
    }
}

impl Node {
    /// What this is, for "expected ..., found ...".
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
            Value::Scalar(scalar) => match scalar.string() {
                Ok(text) => format!("the string `{}`", shorten(text)),
                Err(what) => format!("{what}, `{}`", shorten(&scalar.text)),
            },
        }
    }
}

/// Long texts are cut in messages.
pub fn shorten(text: &str) -> Cow<'_, str> {
    const LONG: usize = 60;
    match text.char_indices().nth(LONG) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}
