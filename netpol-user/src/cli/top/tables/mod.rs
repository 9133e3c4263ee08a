//! The tabs: what is a row, which columns it has, how they sort. Only rows that are on the screen become
//! text; there may be a million others.

mod drops;
mod endpoints;
mod flows;
mod rules;
mod services;

use std::{
    cmp::Ordering,
    hash::{DefaultHasher, Hash, Hasher as _},
};

use crate::observe::Flow;
pub use drops::{DropTable, Dropped, drops};
pub use endpoints::EndpointTable;
pub use flows::FlowTable;
pub use rules::RuleTable;
pub use services::ServiceTable;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tab {
    Flows,
    Endpoints,
    Rules,
    Drops,
    Services,
}

impl Tab {
    pub const ALL: [Self; 5] = [Self::Flows, Self::Endpoints, Self::Rules, Self::Drops, Self::Services];

    pub const fn title(self) -> &'static str {
        match self {
            Self::Flows => "Flows",
            Self::Endpoints => "Endpoints",
            Self::Rules => "Rules",
            Self::Drops => "Drops",
            Self::Services => "Services",
        }
    }
}

pub struct Column {
    pub title: &'static str,
    /// As narrow as it can be, in characters.
    pub least: usize,
    /// Where there is no room for all, the highest go first.
    pub rank: u8,
    pub kind: Kind,
}

/// Columns of lower rank make a row understood.
pub const ESSENTIAL: u8 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Text that ends with a port, which stays when it is cut.
    End,
    /// Right-aligned, and most interesting where it is highest.
    Number,
}

/// How a row looks, besides its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    /// It passes, and would not.
    Doubtful,
    Bad,
    Dim,
}

pub trait Table {
    fn columns(&self) -> &'static [Column];
    fn rows(&self) -> usize;
    /// In ascending order.
    fn compare(&self, column: usize, a: usize, b: usize) -> Ordering;
    /// Which of two rows that are the same there comes first.
    fn tie(&self, a: usize, b: usize) -> Ordering {
        a.cmp(&b)
    }
    fn cell(&self, column: usize, row: usize) -> String;
    fn tone(&self, row: usize) -> Tone;
    /// What the row says, in a sentence.
    fn sentence(&self, row: usize) -> String;
    /// Name and value of all that is known.
    fn details(&self, row: usize) -> Vec<(&'static str, String)>;
    /// The same number in another reading is the same thing.
    fn id(&self, row: usize) -> u64;
    fn packets_per_second(&self, row: usize) -> f64;
}

fn id(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

const fn column(title: &'static str, least: usize, rank: u8, kind: Kind) -> Column {
    Column { title, least, rank, kind }
}

/// The words of a verdict, told apart by more than colour.
const fn mark(flow: &Flow<'_>) -> &'static str {
    match (flow.current, flow.drop_reason.is_some(), flow.would_drop.is_some()) {
        (true, false, false) => "✓ allowed",
        // allowed, and audited policies would deny it
        (true, false, true) => "! audited",
        (true, true, _) => "✗ denied",
        // of a policy that is no longer enforced
        (false, false, _) => "~ allowed",
        (false, true, _) => "~ denied",
    }
}
