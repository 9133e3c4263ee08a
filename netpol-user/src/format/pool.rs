//! Calico's `IPPool`: whose address is translated on the way out. Nothing here hands addresses out.

use super::{
    object::{Collected, Object},
    validate,
};
use crate::model::Pool;

/// Fields that say how Calico hands out and announces addresses.
const CALICOS: [&str; 8] = [
    "allowedUses",
    "assignmentMode",
    "blockSize",
    "disableBGPExport",
    "ipipMode",
    "namespaceSelector",
    "nodeSelector",
    "vxlanMode",
];

pub fn read(mut object: Object<'_>, collected: &mut Collected) {
    let report = object.report;
    let Some(mut spec) = object.required_spec() else { return };
    spec.ignore(&CALICOS);
    let text = spec.text("cidr");
    let cidr = spec.require("cidr", text).and_then(|text| validate::cidr(report, text));
    let nat_outgoing = spec.boolean("natOutgoing").unwrap_or(false);
    let disabled = spec.boolean("disabled").unwrap_or(false);
    let (Some(cidr), Some(text)) = (cidr, text) else { return };
    collected.pools.push(Pool { name: object.name(), cidr, nat_outgoing, disabled, origin: report.origin(text.at) });
}
