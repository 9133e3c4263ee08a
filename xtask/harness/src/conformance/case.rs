//! A connectivity case, as its file says it. An unknown field is an error: a case whose meaning
//! isn't understood whole proves nothing.

use std::{collections::BTreeMap, fs, net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result, ensure};
use netpol_user::model::Labels;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
pub struct Case {
    pub format: u32,
    pub name: String,
    pub model: Model,
    pub steps: Vec<Step>,
}

impl Case {
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let case: Self = serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        ensure!(case.format == 1, "{}: format {} is not known, only 1", path.display(), case.format);
        Ok(case)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub namespaces: Vec<Namespace>,
    #[serde(default)]
    pub externals: Vec<External>,
    #[serde(default)]
    pub calico_profile: Profile,
}

/// What happens to a pod that no policy decides about.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    #[default]
    Allow,
    Deny,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    pub name: String,
    #[serde(default)]
    pub labels: Labels,
    #[serde(default)]
    pub pods: Vec<Pod>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    pub name: String,
    pub labels: Labels,
    pub ip: Ipv4Addr,
    pub ports: Vec<Port>,
    /// Means nothing without Kubernetes; see [`super::connectivity`].
    #[serde(rename = "service_account")]
    _service_account: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    pub port: u16,
    pub name: Option<String>,
    pub protocol: String,
}

/// An address outside, written `@name`.
#[derive(Clone, Debug, Deserialize)]
pub struct External {
    pub name: String,
    pub ip: Ipv4Addr,
    pub kind: ExternalKind,
    #[serde(default)]
    pub labels: Labels,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExternalKind {
    External,
    /// A machine of the cluster.
    Node,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub name: Option<String>,
    #[serde(default)]
    pub delete: Vec<ObjectKey>,
    #[serde(default)]
    pub delete_pods: Vec<String>,
    #[serde(default)]
    pub delete_namespaces: Vec<String>,
    #[serde(default)]
    pub create_namespaces: Vec<Namespace>,
    #[serde(default)]
    pub create_pods: Vec<NewPod>,
    #[serde(default)]
    pub set_labels: Vec<SetLabels>,
    #[serde(default)]
    pub apply: Vec<Value>,
    pub expected: Vec<Row>,
    /// Notes about where the rows come from.
    #[serde(rename = "author_rows")]
    _author_rows: Option<Value>,
    #[serde(rename = "tests")]
    _tests: Option<Value>,
}

/// What `delete` names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectKey {
    pub kind: String,
    /// Empty for kinds without one.
    #[serde(default)]
    pub namespace: String,
    pub name: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct NewPod {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub ip: Ipv4Addr,
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLabels {
    pub namespace: String,
    /// `None`: the labels of the namespace itself.
    pub pod: Option<String>,
    pub labels: BTreeMap<String, String>,
}

/// What must hold after a step.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// `namespace/pod` or `@name`.
    pub from: String,
    pub to: String,
    #[serde(default)]
    pub port: u16,
    pub protocol: String,
    pub allowed: bool,
    /// The client must use it.
    pub src_port: Option<u16>,
    pub icmp_type: Option<u8>,
    pub icmp_code: Option<u8>,
}
