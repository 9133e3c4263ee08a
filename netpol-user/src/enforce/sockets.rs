//! The host's own sockets are led to a backend once, when they connect. Where that is none of the service's any more, a
//! connected socket would go on talking to it, whatever is published: it is closed.

use std::{collections::HashSet, io, net::IpAddr};

use netpol_common::{
    service::MemberKey,
    wire::{Address, Protocol},
};

use crate::{
    compile::Snapshot,
    datapath::{self, Datapath},
    format::{Diagnostic, Loaded},
    model::Origin,
    sockets::{self, Connected},
};

/// Published address, port, protocol, backend and its port.
type Member = (IpAddr, u16, Protocol, IpAddr, u16);

/// Closes connected sockets of this namespace that netpol has led to a backend which `snapshot` does not have there.
/// Returns how many, or why the kernel does not.
pub(super) fn close_former(datapath: &Datapath, snapshot: &Snapshot) -> Result<io::Result<usize>, datapath::Error> {
    let members: HashSet<Member> =
        snapshot.members4.iter().map(member).chain(snapshot.members6.iter().map(member)).collect();
    let mut former = HashSet::new();
    datapath.each_asked(|asked| {
        let datapath::Asked { cookie, protocol, backend, backend_port, published, published_port } = asked;
        if !members.contains(&(published, published_port, protocol, backend, backend_port)) {
            former.insert(Connected { cookie, protocol, peer: backend, peer_port: backend_port });
        }
    })?;
    // most loads take nothing away
    Ok(if former.is_empty() { Ok(0) } else { sockets::close(|socket| former.contains(socket)) })
}

fn member<A: Address + Into<IpAddr>>((key, _): &(MemberKey<A>, u32)) -> Member {
    (key.address.into(), key.port.to_host(), key.protocol, key.backend.into(), key.backend_port.to_host())
}

/// What a load says where they stay open.
pub(super) fn unclosed(loaded: &Loaded, error: &io::Error) -> Diagnostic {
    let of_service = || loaded.world.services.first().map(|service| service.origin.clone());
    let whole =
        || Origin { file: loaded.sources.first().map_or("", |source| source.name.as_str()).into(), line: 0, column: 0 };
    let help = match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EPROTONOSUPPORT) => {
            "the kernel needs CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG and CONFIG_INET_DIAG_DESTROY (the modules are \
             tcp_diag and udp_diag); until then restart the programs that have them open"
        }
        Some(libc::EPERM) => "that takes CAP_NET_ADMIN; until then restart the programs that have them open",
        _ => "load again, or restart the programs that have them open",
    };
    Diagnostic {
        origin: of_service().unwrap_or_else(whole),
        message: format!(
            "sockets of the host itself that are connected with backends which are none any more stay connected: {error}"
        ),
        help: Some(help.to_owned()),
    }
}
