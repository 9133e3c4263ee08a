//! Label expressions: what Kubernetes' label selectors and Calico's selector language both mean.

use super::Labels;

/// A condition on labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// Kubernetes' empty selector, Calico's `all()`.
    All,
    Has(String),
    Eq(String, String),
    /// Also true when the label is absent.
    Ne(String, String),
    In(String, Vec<String>),
    /// Also true when the label is absent.
    NotIn(String, Vec<String>),
    Contains(String, String),
    StartsWith(String, String),
    EndsWith(String, String),
    Not(Box<Expr>),
    /// True when empty.
    And(Vec<Expr>),
    /// False when empty.
    Or(Vec<Expr>),
}

impl Expr {
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = |key: &String| labels.get(key);
        match self {
            Self::All => true,
            Self::Has(key) => value(key).is_some(),
            Self::Eq(key, want) => value(key) == Some(want),
            Self::Ne(key, unwanted) => value(key) != Some(unwanted),
            Self::In(key, set) => value(key).is_some_and(|v| set.contains(v)),
            Self::NotIn(key, set) => value(key).is_none_or(|v| !set.contains(v)),
            Self::Contains(key, part) => value(key).is_some_and(|v| v.contains(part.as_str())),
            Self::StartsWith(key, part) => value(key).is_some_and(|v| v.starts_with(part.as_str())),
            Self::EndsWith(key, part) => value(key).is_some_and(|v| v.ends_with(part.as_str())),
            Self::Not(expr) => !expr.matches(labels),
            Self::And(all) => all.iter().all(|expr| expr.matches(labels)),
            Self::Or(any) => any.iter().any(|expr| expr.matches(labels)),
        }
    }
}
