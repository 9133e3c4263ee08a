//! Who answers: every engine judges the same questions about the same world.

use anyhow::Result;
use netpol_user::model::{Opening, Party, World, judge};

/// One connection to judge.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub from: Party,
    pub to: Party,
    pub opening: Opening,
}

/// A way to enforce policies.
pub trait Engine {
    /// Brings about `world`, and says of each connection whether it is allowed.
    fn verdicts(&mut self, world: &World, questions: &[Question]) -> Result<Vec<bool>>;
}

/// How to make an engine; each thread makes its own.
pub struct Maker {
    pub name: &'static str,
    pub make: fn() -> Result<Box<dyn Engine>>,
}

/// Needing neither root nor kernel.
pub const OFFLINE: &[Maker] = &[Maker { name: "interpreter", make: || Ok(Box::new(Interpreter)) }];

pub fn names() -> String {
    OFFLINE.iter().map(|engine| engine.name).collect::<Vec<_>>().join(", ")
}

/// The ordered rules, one by one: what `matrix` and `trace` answer.
struct Interpreter;

impl Engine for Interpreter {
    fn verdicts(&mut self, world: &World, questions: &[Question]) -> Result<Vec<bool>> {
        let allowed = |&Question { from, to, opening }: &Question| judge(world, from, to, opening).allowed();
        Ok(questions.iter().map(allowed).collect())
    }
}
