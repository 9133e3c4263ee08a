//! Which cases go live: all of the suites that are about behaviour, and of the generated ones, on
//! request, only some. Which, changes with the seed and not with the time: the same commit has the
//! same result.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
};

use super::connectivity::set;

/// The sets that no sample leaves out.
const ALWAYS: [&str; 4] = ["calico", "cnp", "e2e", "recipe"];

/// All cases of [`ALWAYS`] and `size` of the others, in their order.
pub fn choose(cases: &[PathBuf], size: usize, seed: &str) -> Vec<PathBuf> {
    let always = |case: &&PathBuf| ALWAYS.contains(&set(case).as_str());
    let mut others: Vec<_> = cases.iter().filter(|case| !always(case)).collect();
    others.sort_by_key(|case| {
        let mut hasher = DefaultHasher::new();
        (seed, case.file_name()).hash(&mut hasher);
        hasher.finish()
    });
    others.truncate(size);
    cases.iter().filter(|case| always(case) || others.contains(case)).cloned().collect()
}

/// The commit that the working tree is at, so that each has its own sample; else nothing.
pub fn seed() -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let commit = Command::new("git").arg("-C").arg(repository).args(["rev-parse", "--short=12", "HEAD"]).output();
    let commit = commit.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    commit.map(|commit| String::from_utf8_lossy(&commit).trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cases() -> Vec<PathBuf> {
        let numbered = |set: &str| (0..50).map(move |number| format!("cases/{set}-{number}.json")).collect::<Vec<_>>();
        ["cyclonus", "e2e", "e2egrid"].map(numbered).concat().into_iter().map(PathBuf::from).collect()
    }

    fn count(chosen: &[PathBuf], of: &str) -> usize {
        chosen.iter().filter(|case| set(case) == of).count()
    }

    #[test]
    fn sample_is_of_the_generated_cases_alone() {
        let chosen = choose(&cases(), 20, "seed");
        assert_eq!(chosen.len(), 70);
        assert_eq!(count(&chosen, "e2e"), 50);
        assert_eq!(choose(&cases(), 100, "seed"), cases());
    }

    #[test]
    fn sample_changes_with_the_seed_and_with_nothing_else() {
        assert_eq!(choose(&cases(), 20, "one"), choose(&cases(), 20, "one"));
        assert_ne!(choose(&cases(), 20, "one"), choose(&cases(), 20, "two"));
    }

    #[test]
    fn every_case_has_its_turn() {
        let seeds = (0..100).map(|seed: u8| seed.to_string());
        let chosen: std::collections::BTreeSet<_> = seeds.flat_map(|seed| choose(&cases(), 20, &seed)).collect();
        assert_eq!(chosen.len(), cases().len());
    }
}
