//! `--only`: names of sections, kinds of traffic and paths, in one list. `nat` is all sections `nat-...`.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use super::{SECTIONS, traffic::MODES, variants::VARIANTS};

/// What to restrict the run to; nothing named of a kind means all of that kind.
pub struct Only {
    sections: BTreeSet<String>,
    modes: BTreeSet<String>,
    variants: BTreeSet<String>,
}

impl Only {
    pub fn parse(names: &[String]) -> Result<Self> {
        let mut only = Self { sections: BTreeSet::new(), modes: BTreeSet::new(), variants: BTreeSet::new() };
        for name in names {
            let sections = SECTIONS.iter().map(|(section, _)| *section).filter(|section| is_or_begins(section, name));
            let before = only.sections.len();
            only.sections.extend(sections.map(str::to_owned));
            let kind = if only.sections.len() > before {
                continue;
            } else if MODES.iter().any(|mode| mode.name == name) {
                &mut only.modes
            } else if VARIANTS.iter().any(|variant| variant.name == name) {
                &mut only.variants
            } else {
                bail!("--only {name}: there is no such section, traffic or path; there are {}", known().join(", "));
            };
            kind.insert(name.clone());
        }
        // Traffic and paths are what the section of paths is made of.
        if only.sections.is_empty() && !names.is_empty() {
            only.sections.insert("paths".to_owned());
        }
        Ok(only)
    }

    pub fn section(&self, name: &str) -> bool {
        self.sections.is_empty() || self.sections.contains(name)
    }

    pub fn mode(&self, name: &str) -> bool {
        self.modes.is_empty() || self.modes.contains(name)
    }

    pub fn variant(&self, name: &str) -> bool {
        self.variants.is_empty() || self.variants.contains(name)
    }

    pub fn is_everything(&self) -> bool {
        self.sections.is_empty() && self.modes.is_empty() && self.variants.is_empty()
    }
}

/// Whether `name` is the section, or the group that it is in.
fn is_or_begins(section: &str, name: &str) -> bool {
    section.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn known() -> Vec<&'static str> {
    let sections = SECTIONS.iter().map(|(name, _)| *name);
    sections.chain(MODES.iter().map(|mode| mode.name)).chain(VARIANTS.iter().map(|variant| variant.name)).collect()
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
    fn an_unknown_name_is_told_with_the_known_ones() {
        let error = only(&["upd"]).err().expect("an error").to_string();
        assert!(error.contains("upd") && error.contains("udp") && error.contains("iptables-10"), "{error}");
    }

    #[test]
    fn no_name_means_two_things() {
        let names = known();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }
}
