//! `--only`: names of sections, kinds of traffic and paths, in one list. `nat` is all sections `nat-...`; of what is
//! translated, paths are comparisons (who asks whom) and who translates.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use super::{
    SECTIONS,
    nat::{guards, paths::COMPARISONS},
    traffic::MODES,
    variants::VARIANTS,
};

/// What to restrict the run to; nothing named of a kind means all of that kind. A name may be one of several kinds.
pub struct Only {
    sections: BTreeSet<String>,
    names: BTreeSet<String>,
}

impl Only {
    pub fn parse(names: &[String]) -> Result<Self> {
        let mut only = Self { sections: BTreeSet::new(), names: BTreeSet::new() };
        for name in names {
            let before = only.sections.len();
            let sections = SECTIONS.iter().map(|(section, _)| *section).filter(|section| is_or_begins(section, name));
            only.sections.extend(sections.map(str::to_owned));
            if only.sections.len() > before {
                continue;
            }
            if !parts().any(|part| part == name) {
                bail!("--only {name}: there is no such section, traffic or path; there are {}", known().join(", "));
            }
            only.names.insert(name.clone());
        }
        if only.sections.is_empty() && !names.is_empty() {
            only.sections.extend(only.sections_of_paths().map(str::to_owned));
        }
        Ok(only)
    }

    pub fn section(&self, name: &str) -> bool {
        self.sections.is_empty() || self.sections.contains(name)
    }

    pub fn mode(&self, name: &str) -> bool {
        self.allows(modes(), name)
    }

    pub fn variant(&self, name: &str) -> bool {
        self.allows(variants(), name)
    }

    pub fn comparison(&self, name: &str) -> bool {
        self.allows(comparisons(), name)
    }

    pub fn guard(&self, name: &str) -> bool {
        self.allows(guards(), name)
    }

    pub fn is_everything(&self) -> bool {
        self.sections.is_empty() && self.names.is_empty()
    }

    /// Those that are made of the traffic and paths that are named; one of both sections chooses neither.
    fn sections_of_paths(&self) -> impl Iterator<Item = &'static str> + use<> {
        let names = || self.names.iter().map(String::as_str);
        let is_translated =
            names().any(|name| is_in(comparisons(), name) || is_in(guards(), name) && !is_in(variants(), name));
        let is_not = !is_translated || names().any(|name| is_in(variants(), name) && !is_in(guards(), name));
        [(is_not, "paths"), (is_translated, "nat-paths")].into_iter().filter_map(|(is, section)| is.then_some(section))
    }

    fn allows(&self, mut kind: impl Iterator<Item = &'static str>, name: &str) -> bool {
        self.names.contains(name) || !kind.any(|other| self.names.contains(other))
    }
}

fn modes() -> impl Iterator<Item = &'static str> {
    MODES.iter().map(|mode| mode.name)
}

fn variants() -> impl Iterator<Item = &'static str> {
    VARIANTS.iter().map(|variant| variant.name)
}

fn comparisons() -> impl Iterator<Item = &'static str> {
    COMPARISONS.iter().map(|comparison| comparison.name)
}

fn guards() -> impl Iterator<Item = &'static str> {
    guards::VARIANTS.iter().map(|variant| variant.name)
}

fn parts() -> impl Iterator<Item = &'static str> {
    modes().chain(variants()).chain(comparisons()).chain(guards())
}

fn is_in(mut kind: impl Iterator<Item = &'static str>, name: &str) -> bool {
    kind.any(|other| other == name)
}

/// Whether `name` is the section, or the group that it is in.
fn is_or_begins(section: &str, name: &str) -> bool {
    section.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn known() -> Vec<&'static str> {
    let mut seen = BTreeSet::new();
    SECTIONS.iter().map(|(name, _)| *name).chain(parts()).filter(|name| seen.insert(*name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(names: &[&str]) -> Result<Only> {
        Only::parse(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn nothing_named_is_everything() -> Result<()> {
        let all = only(&[])?;
        assert!(all.is_everything() && all.section("paths") && all.mode("udp") && all.variant("bridge"));
        Ok(())
    }

    #[test]
    fn a_kind_of_traffic_restricts_neither_paths_nor_needs_its_section_named() -> Result<()> {
        let udp = only(&["udp"])?;
        assert!(udp.section("paths") && udp.mode("udp") && udp.variant("nftables-10"));
        assert!(!udp.is_everything() && !udp.section("packets") && !udp.mode("crr"));
        Ok(())
    }

    #[test]
    fn a_group_is_all_of_its_sections() -> Result<()> {
        let nat = only(&["nat", "crr"])?;
        assert!(["nat-paths", "nat-packets", "nat-backends"].iter().all(|section| nat.section(section)));
        assert!(!nat.section("paths") && nat.mode("crr") && !nat.mode("udp"));
        assert!(!only(&["nat-packets"])?.section("nat-paths") && only(&["na"]).is_err());
        Ok(())
    }

    #[test]
    fn what_is_translated_is_chosen_by_who_asks_and_who_translates() -> Result<()> {
        let some = only(&["published", "crr", "netpol-100"])?;
        assert!(some.section("nat-paths") && !some.section("paths") && !some.is_everything());
        assert!(some.comparison("published") && !some.comparison("virtual"));
        assert!(some.guard("netpol-100") && !some.guard("iptables-100") && some.mode("crr"));
        let guard = only(&["netpol-100"])?;
        assert!(guard.section("nat-paths") && !guard.section("paths"));
        let both = only(&["published", "netpol"])?;
        assert!(both.section("nat-paths") && both.section("paths"));
        let either = only(&["iptables-100", "crr"])?;
        assert!(either.section("paths") && !either.section("nat-paths"));
        let both = only(&["nat", "paths", "iptables-100"])?;
        assert!(both.guard("iptables-100") && both.variant("iptables-100") && !both.variant("iptables-10"));
        Ok(())
    }

    #[test]
    fn an_unknown_name_is_told_with_the_known_ones() {
        let error = only(&["upd"]).err().expect("an error").to_string();
        assert!(error.contains("upd") && error.contains("udp") && error.contains("iptables-10"), "{error}");
    }

    #[test]
    fn no_section_is_called_like_a_part() {
        for part in parts() {
            assert!(!SECTIONS.iter().any(|(section, _)| is_or_begins(section, part)), "{part}");
        }
    }
}
