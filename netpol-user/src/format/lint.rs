//! What is legal and probably not meant.

use super::Diagnostic;
use crate::model::World;

pub fn lint(_world: &World) -> Vec<Diagnostic> {
    Vec::new()
}
