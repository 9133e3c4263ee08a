//! CNP
use super::object::{Collected, Object};
pub fn read_policy(_: Object<'_>, _: &mut Collected) {}
pub fn read_former(_: Object<'_>, _: &mut Collected) {}
