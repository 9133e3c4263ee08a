//! The world of a case after each of its steps.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context as _, Result, bail};
use netpol_user::model::Labels;
use serde_json::Value;

use super::case::{External, Model, Namespace, NewPod, ObjectKey, Pod, Port, SetLabels, Step};

/// Everything that exists; objects by kind, namespace and name.
#[derive(Debug, Default)]
pub struct State {
    pub namespaces: BTreeMap<String, Labels>,
    /// By `namespace/name`.
    pub pods: BTreeMap<String, Workload>,
    /// By `@name`.
    pub externals: BTreeMap<String, External>,
    /// By group and key: two APIs have a `NetworkPolicy`.
    pub objects: BTreeMap<(String, ObjectKey), Value>,
}

#[derive(Debug)]
pub struct Workload {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub ip: Ipv4Addr,
    pub ports: Vec<Port>,
}

impl State {
    pub fn new(model: &Model) -> Self {
        let mut state = Self::default();
        for namespace in &model.namespaces {
            state.create_namespace(namespace);
        }
        for external in &model.externals {
            state.externals.insert(format!("@{}", external.name), external.clone());
        }
        state
    }

    /// In the order that the format prescribes.
    pub fn take(&mut self, step: &Step) -> Result<()> {
        for key in &step.delete {
            let before = self.objects.len();
            self.objects.retain(|(_, other), _| other != key);
            if self.objects.len() == before {
                bail!("there is no {} {}/{} to delete", key.kind, key.namespace, key.name);
            }
        }
        for pod in &step.delete_pods {
            self.pods.remove(pod).with_context(|| format!("there is no pod {pod} to delete"))?;
        }
        for namespace in &step.delete_namespaces {
            self.delete_namespace(namespace)?;
        }
        for namespace in &step.create_namespaces {
            self.create_namespace(namespace);
        }
        for NewPod { namespace, name, labels, ip, ports } in &step.create_pods {
            self.create_pod(
                namespace,
                Workload {
                    namespace: namespace.clone(),
                    name: name.clone(),
                    labels: labels.clone(),
                    ip: *ip,
                    ports: ports.clone(),
                },
            );
        }
        for labels in &step.set_labels {
            self.set_labels(labels)?;
        }
        for object in &step.apply {
            self.objects.insert(key(object)?, object.clone());
        }
        Ok(())
    }

    /// Of a pod or an outside address, as rows and placeholders write them.
    pub fn address(&self, end: &str) -> Result<Ipv4Addr> {
        let pod = self.pods.get(end).map(|pod| pod.ip);
        pod.or_else(|| self.externals.get(end).map(|external| external.ip))
            .with_context(|| format!("nothing is called {end}"))
    }

    fn create_namespace(&mut self, namespace: &Namespace) {
        self.namespaces.insert(namespace.name.clone(), namespace.labels.clone());
        for Pod { name, labels, ip, ports, .. } in &namespace.pods {
            self.create_pod(
                &namespace.name,
                Workload {
                    namespace: namespace.name.clone(),
                    name: name.clone(),
                    labels: labels.clone(),
                    ip: *ip,
                    ports: ports.clone(),
                },
            );
        }
    }

    fn create_pod(&mut self, namespace: &str, pod: Workload) {
        self.pods.insert(format!("{namespace}/{}", pod.name), pod);
    }

    fn delete_namespace(&mut self, name: &str) -> Result<()> {
        self.namespaces.remove(name).with_context(|| format!("there is no namespace {name} to delete"))?;
        self.pods.retain(|_, pod| pod.namespace != name);
        self.objects.retain(|(_, key), _| key.namespace != name);
        Ok(())
    }

    fn set_labels(&mut self, SetLabels { namespace, pod, labels }: &SetLabels) -> Result<()> {
        let of = match pod {
            Some(pod) => self.pods.get_mut(&format!("{namespace}/{pod}")).map(|pod| &mut pod.labels),
            None => self.namespaces.get_mut(namespace),
        };
        of.with_context(|| format!("there is no {namespace}/{pod:?} to label"))?.clone_from(labels);
        Ok(())
    }
}

fn key(object: &Value) -> Result<(String, ObjectKey)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let version = text(&object["apiVersion"]).context("an object without apiVersion")?;
    let group = version.split_once('/').map_or("", |(group, _)| group).to_owned();
    let metadata = &object["metadata"];
    let key = ObjectKey {
        kind: text(&object["kind"]).context("an object without kind")?,
        namespace: text(&metadata["namespace"]).unwrap_or_default(),
        name: text(&metadata["name"]).context("an object without name")?,
    };
    Ok((group, key))
}
