//! What `matrix` and `trace` share: reading documents, and finding who is meant by a name.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Result, anyhow, bail};

use super::{Instance, diagnostics};
use crate::{
    datapath::Datapath,
    format::{self, Loaded},
    model::{World, probe::Place},
    state::Names,
};

/// How alike two names must be, from 0 to 1, for one to be offered instead of the other.
const ALIKE: f64 = 0.65;
const OFFERED: usize = 3;

/// Reads what the documents say about endpoints and policies.
pub fn read(paths: &[PathBuf]) -> Result<World> {
    Ok(load(paths)?.world)
}

/// What the documents of the last load say.
pub fn loaded(instance: &Instance) -> Result<World> {
    let instance = instance.open();
    world_of(&instance.names(&Datapath::open(&instance.pins)?)?)
}

/// What the documents say that these names were written with.
pub fn world_of(names: &Names) -> Result<World> {
    if names.sources.is_empty() {
        bail!("the documents of the last load are lost; name them")
    }
    Ok(names.documents()?.world)
}

/// Reads the documents; what is wrong or doubtful in them goes to standard error.
pub fn load(paths: &[PathBuf]) -> Result<Loaded> {
    match format::read(paths) {
        Ok(loaded) => {
            if !loaded.warnings.is_empty() {
                eprintln!("{}", diagnostics::render_warnings(&loaded.warnings, &loaded.sources));
            }
            Ok(loaded)
        }
        Err(invalid) => {
            eprintln!("{}", diagnostics::render(&invalid));
            bail!("{invalid}")
        }
    }
}

/// An outside address: one that no endpoint has.
pub fn outside(world: &World, address: IpAddr) -> Result<Place> {
    match Place::of_address(world, address) {
        Place::At { endpoint, .. } => {
            bail!("{address} is not outside: it is an address of {}", world.endpoints[endpoint].name)
        }
        place => Ok(place),
    }
}

/// `namespace/name`, a name that only one endpoint has or that is in the namespace `default`, or
/// an address.
pub fn place(world: &World, text: &str) -> Result<Place> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Place::of_address(world, address));
    }
    let named = |test: &dyn Fn(&str, &str) -> bool| -> Vec<usize> {
        let names = world.endpoints.iter().map(|endpoint| &endpoint.name).enumerate();
        names.filter(|(_, name)| test(&name.namespace, &name.name)).map(|(index, _)| index).collect()
    };
    let found = match text.split_once('/') {
        Some((namespace, name)) => named(&|ns, n| (ns, n) == (namespace, name)),
        None => {
            let default = named(&|ns, n| (ns, n) == ("default", text));
            if default.is_empty() { named(&|_, n| n == text) } else { default }
        }
    };
    match found.as_slice() {
        [] => Err(unknown(world, text)),
        [one] => Ok(Place::Endpoint(*one)),
        several => {
            let names: Vec<_> = several.iter().map(|&index| world.endpoints[index].name.to_string()).collect();
            bail!("{text:?} could be {}; say which namespace", names.join(" or "))
        }
    }
}

fn unknown(world: &World, text: &str) -> anyhow::Error {
    let alike = |name: &str| strsim::normalized_damerau_levenshtein(name, text).max(strsim::jaro_winkler(name, text));
    let likeness = |full: &str, name: &str| alike(full).max(alike(name));
    let endpoints = world.endpoints.iter().map(|endpoint| &endpoint.name);
    let mut near: Vec<_> = endpoints
        .map(|name| (likeness(&name.to_string(), &name.name), name.to_string()))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let names: Vec<_> = near.into_iter().take(OFFERED).map(|(_, name)| name).collect();
    match names.as_slice() {
        [] => anyhow!("no endpoint is called {text:?}; `netpol matrix` lists those that there are"),
        names => anyhow!("no endpoint is called {text:?}; did you mean {}?", names.join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample::{endpoint, world};

    #[test]
    fn bare_name_prefers_namespace_default_then_a_unique_match() {
        let world = world(&[
            endpoint("shop/web", ""),
            endpoint("default/db", ""),
            endpoint("shop/db", ""),
            endpoint("x/web2", ""),
        ]);
        for (text, index) in [("shop/web", 0), ("web", 0), ("db", 1), ("shop/db", 2), ("web2", 3)] {
            assert_eq!(place(&world, text).expect(text), Place::Endpoint(index), "{text}");
        }
    }

    #[test]
    fn ambiguous_name_lists_the_candidates() {
        let world = world(&[endpoint("a/web", ""), endpoint("b/web", "")]);
        assert_eq!(
            place(&world, "web").unwrap_err().to_string(),
            r#""web" could be a/web or b/web; say which namespace"#
        );
    }

    #[test]
    fn unknown_name_offers_the_nearest() {
        let world = world(&[endpoint("shop/postgres-db", ""), endpoint("shop/redis-cache", "")]);
        let error = place(&world, "shop/postgre-db").unwrap_err().to_string();
        assert!(
            error.starts_with(r#"no endpoint is called "shop/postgre-db"; did you mean shop/postgres-db"#),
            "{error}"
        );
        assert!(place(&world, "zzz").unwrap_err().to_string().contains("netpol matrix"));
    }

    #[test]
    fn address_means_the_endpoint_that_has_it() {
        let world = world(&[endpoint("shop/web", "10.0.0.10")]);
        let address = "10.0.0.10".parse().unwrap();
        assert_eq!(place(&world, "10.0.0.10").unwrap(), Place::At { endpoint: 0, address });
        assert!(matches!(place(&world, "192.0.2.1").unwrap(), Place::Outside(_)));
        assert!(outside(&world, address).unwrap_err().to_string().contains("an address of shop/web"));
    }
}
