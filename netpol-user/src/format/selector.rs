//! Calico's selector language: `app == 'web' && has(tier) || role in {'a', "b"}`.
//!
//! ```text
//! or      = and { "||" and }
//! and     = not { "&&" not }
//! not     = { "!" } ( "(" or ")" | "all()" | "global()" | "has(" label ")" | label test )
//! test    = ("==" | "!=" | "contains" | "starts with" | "ends with") text
//!         | ("in" | "not in") "{" [ text { "," text } [ "," ] ] "}"
//! ```
//!
//! `startswith`, `endswith` and `notin` may be written as one word. Words are operators only where
//! an operator stands, so labels may be called `in` or `contains`. White space is blank and tab.

use crate::model::Expr;

const MAX_LENGTH: usize = 64 << 10;
const MAX_DEPTH: usize = 64;
const MAX_LABEL: usize = 512;

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SelectorError {
    /// In bytes.
    pub offset: usize,
    pub message: String,
}

/// What a selector says besides its condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub expr: Expr,
    /// Where `global()` stands, which only namespace selectors may say.
    pub global: Option<usize>,
}

/// Parses a selector. The empty one selects everything.
pub fn parse(text: &str) -> Result<Expr, SelectorError> {
    parse_with_global(text).map(|parsed| parsed.expr)
}

/// Like [`parse`], and says whether `global()` occurs.
pub fn parse_with_global(text: &str) -> Result<Parsed, SelectorError> {
    if text.len() > MAX_LENGTH {
        return Err(SelectorError { offset: 0, message: format!("a selector has at most {MAX_LENGTH} bytes") });
    }
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens: &tokens, global: None, depth: 0 };
    if parser.peek() == Token::End {
        return Ok(Parsed { expr: Expr::All, global: None });
    }
    let expr = parser.or()?;
    match parser.next() {
        (_, Token::End) => Ok(Parsed { expr, global: parser.global }),
        (offset, token) => Err(expected(offset, "`&&`, `||` or the end", token)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// A word and the `(` right behind it.
    Call(&'a str),
    Text(&'a str),
    Symbol(&'static str),
    End,
}

impl Token<'_> {
    fn describe(self) -> String {
        match self {
            Self::Word(word) => format!("`{}`", super::node::shorten(word)),
            Self::Call(word) => format!("`{}(`", super::node::shorten(word)),
            Self::Text(text) => format!("the text '{}'", super::node::shorten(text)),
            Self::Symbol(symbol) => format!("`{symbol}`"),
            Self::End => "the end".to_owned(),
        }
    }
}

fn expected(offset: usize, what: &str, found: Token<'_>) -> SelectorError {
    SelectorError { offset, message: format!("expected {what}, found {}", found.describe()) }
}

const SYMBOLS: [&str; 10] = ["==", "!=", "&&", "||", "!", "(", ")", "{", "}", ","];

fn tokens(text: &str) -> Result<Vec<(usize, Token<'_>)>, SelectorError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let (token, length) = match first {
            ' ' | '\t' => {
                at += 1;
                continue;
            }
            '"' | '\'' => {
                let Some(length) = rest[1..].find(first) else {
                    return Err(SelectorError { offset: at, message: format!("the text has no closing {first}") });
                };
                (Token::Text(&rest[1..=length]), length + 2)
            }
            c if is_label(c) => word(rest, at)?,
            _ => match SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) {
                Some(symbol) => (Token::Symbol(symbol), symbol.len()),
                None => return Err(strange(at, first)),
            },
        };
        tokens.push((at, token));
        at += length;
    }
    tokens.push((text.len(), Token::End));
    Ok(tokens)
}

fn is_label(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}

fn word(rest: &str, offset: usize) -> Result<(Token<'_>, usize), SelectorError> {
    let length = rest.find(|c| !is_label(c)).unwrap_or(rest.len());
    if length > MAX_LABEL {
        return Err(SelectorError { offset, message: format!("a label has at most {MAX_LABEL} characters") });
    }
    let word = &rest[..length];
    Ok(if rest[length..].starts_with('(') { (Token::Call(word), length + 1) } else { (Token::Word(word), length) })
}

fn strange(offset: usize, c: char) -> SelectorError {
    let message = match c {
        '=' => "`=` is written `==`".to_owned(),
        '&' => "`&` is written `&&`".to_owned(),
        '|' => "`|` is written `||`".to_owned(),
        _ => format!("unexpected `{}`", c.escape_debug()),
    };
    SelectorError { offset, message }
}

struct Parser<'a> {
    /// Ends with [`Token::End`], which is never taken away.
    tokens: &'a [(usize, Token<'a>)],
    global: Option<usize>,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.first().map_or(Token::End, |(_, token)| *token)
    }

    fn next(&mut self) -> (usize, Token<'a>) {
        let Some((first, rest)) = self.tokens.split_first() else { return (0, Token::End) };
        if !rest.is_empty() {
            self.tokens = rest;
        }
        *first
    }

    fn accept(&mut self, symbol: &'static str) -> bool {
        let found = self.peek() == Token::Symbol(symbol);
        if found {
            self.next();
        }
        found
    }

    fn expect(&mut self, symbol: &'static str) -> Result<(), SelectorError> {
        match self.next() {
            (_, Token::Symbol(found)) if found == symbol => Ok(()),
            (offset, token) => Err(expected(offset, &format!("`{symbol}`"), token)),
        }
    }

    fn or(&mut self) -> Result<Expr, SelectorError> {
        let mut any = vec![self.and()?];
        while self.accept("||") {
            any.push(self.and()?);
        }
        Ok(if any.len() == 1 { any.remove(0) } else { Expr::Or(any) })
    }

    fn and(&mut self) -> Result<Expr, SelectorError> {
        let mut all = vec![self.not()?];
        while self.accept("&&") {
            all.push(self.not()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Expr::And(all) })
    }

    fn not(&mut self) -> Result<Expr, SelectorError> {
        let mut negated = false;
        while self.accept("!") {
            negated = !negated;
        }
        let expr = self.primary()?;
        Ok(if negated { Expr::Not(Box::new(expr)) } else { expr })
    }

    fn primary(&mut self) -> Result<Expr, SelectorError> {
        match self.next() {
            (offset, Token::Symbol("(")) => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    let message = format!("more than {MAX_DEPTH} parentheses inside each other");
                    return Err(SelectorError { offset, message });
                }
                let expr = self.or()?;
                self.expect(")")?;
                self.depth -= 1;
                Ok(expr)
            }
            (_, Token::Call("all")) => self.expect(")").map(|()| Expr::All),
            (offset, Token::Call("global")) => {
                self.global.get_or_insert(offset);
                self.expect(")").map(|()| Expr::All)
            }
            (_, Token::Call("has")) => match self.next() {
                (_, Token::Word(label)) => self.expect(")").map(|()| Expr::Has(label.to_owned())),
                (offset, token) => Err(expected(offset, "a label", token)),
            },
            (offset, Token::Call(name)) => {
                let message = format!("`{name}(` is not one of `all()`, `global()`, `has(label)`");
                Err(SelectorError { offset, message })
            }
            (_, Token::Word(label)) => self.test(label.to_owned()),
            (offset, token) => Err(expected(offset, "a label, `has(label)`, `all()`, `!` or `(`", token)),
        }
    }

    fn test(&mut self, label: String) -> Result<Expr, SelectorError> {
        let (offset, operator) = self.next();
        Ok(match operator {
            Token::Symbol("==") => Expr::Eq(label, self.text()?),
            Token::Symbol("!=") => Expr::Ne(label, self.text()?),
            Token::Word("contains") => Expr::Contains(label, self.text()?),
            Token::Word("startswith") => Expr::StartsWith(label, self.text()?),
            Token::Word("endswith") => Expr::EndsWith(label, self.text()?),
            Token::Word("starts") => {
                self.second_word("with")?;
                Expr::StartsWith(label, self.text()?)
            }
            Token::Word("ends") => {
                self.second_word("with")?;
                Expr::EndsWith(label, self.text()?)
            }
            Token::Word("in") => Expr::In(label, self.set()?),
            Token::Word("notin") => Expr::NotIn(label, self.set()?),
            Token::Word("not") => {
                self.second_word("in")?;
                Expr::NotIn(label, self.set()?)
            }
            token => {
                let operators = "`==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`";
                return Err(expected(offset, operators, token));
            }
        })
    }

    fn second_word(&mut self, word: &'static str) -> Result<(), SelectorError> {
        match self.next() {
            (_, Token::Word(found)) if found == word => Ok(()),
            (offset, token) => Err(expected(offset, &format!("`{word}`"), token)),
        }
    }

    fn text(&mut self) -> Result<String, SelectorError> {
        match self.next() {
            (_, Token::Text(text)) => Ok(text.to_owned()),
            (offset, token) => Err(expected(offset, "a text in quotes", token)),
        }
    }

    fn set(&mut self) -> Result<Vec<String>, SelectorError> {
        self.expect("{")?;
        let mut values = Vec::new();
        while self.peek() != Token::Symbol("}") {
            values.push(self.text()?);
            if !self.accept(",") {
                break;
            }
        }
        self.expect("}")?;
        Ok(values)
    }
}

/// The same condition on labels of other names.
pub fn rename(expr: Expr, name: &dyn Fn(&str) -> String) -> Expr {
    let each = |list: Vec<Expr>| list.into_iter().map(|expr| rename(expr, name)).collect();
    match expr {
        Expr::All => Expr::All,
        Expr::Has(key) => Expr::Has(name(&key)),
        Expr::Eq(key, value) => Expr::Eq(name(&key), value),
        Expr::Ne(key, value) => Expr::Ne(name(&key), value),
        Expr::In(key, values) => Expr::In(name(&key), values),
        Expr::NotIn(key, values) => Expr::NotIn(name(&key), values),
        Expr::Contains(key, value) => Expr::Contains(name(&key), value),
        Expr::StartsWith(key, value) => Expr::StartsWith(name(&key), value),
        Expr::EndsWith(key, value) => Expr::EndsWith(name(&key), value),
        Expr::Not(expr) => Expr::Not(Box::new(rename(*expr, name))),
        Expr::And(all) => Expr::And(each(all)),
        Expr::Or(any) => Expr::Or(each(any)),
    }
}

/// Calls `visit` with every label that the condition looks at.
pub fn keys(expr: &Expr, visit: &mut dyn FnMut(&str)) {
    match expr {
        Expr::All => {}
        Expr::Has(key)
        | Expr::Eq(key, _)
        | Expr::Ne(key, _)
        | Expr::In(key, _)
        | Expr::NotIn(key, _)
        | Expr::Contains(key, _)
        | Expr::StartsWith(key, _)
        | Expr::EndsWith(key, _) => visit(key),
        Expr::Not(expr) => keys(expr, visit),
        Expr::And(list) | Expr::Or(list) => list.iter().for_each(|expr| keys(expr, visit)),
    }
}
