//! Calico
use super::object::{Collected, Object};
use crate::model::World;
pub fn read_policy(_: Object<'_>, _: &mut Collected) {}
pub fn read_tier(_: Object<'_>, _: &mut Collected) {}
pub fn read_set(_: Object<'_>, _: &mut Collected) {}
pub fn derive_labels(_: &mut World) {}
