//! Who may ask, and what a browser may do with the answer.
//!
//! A page on the Internet can send a visitor's browser to a port of his own machine. It cannot read what comes back
//! unless the browser believes that both are of one origin, which an attacker brings about by letting a name of his
//! point to 127.0.0.1 (DNS rebinding). Then the request carries that name as its `Host`: it is refused.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

/// How long an answer may take to begin.
const PATIENCE: Duration = Duration::from_secs(20);

/// What every answer carries. Scripts and styles come from here alone, nothing is framed, nothing is kept.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// By which names this port may be called.
#[derive(Debug)]
pub struct Guard {
    address: IpAddr,
    names: Vec<String>,
}

impl Guard {
    pub fn new(address: IpAddr, names: &[String]) -> Self {
        Self { address, names: names.iter().map(|name| name.to_ascii_lowercase()).collect() }
    }

    /// Whether a request with these headers is for us, and of a page of ours or of no page at all.
    fn admits(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if !host.is_some_and(|host| self.knows(host)) {
            return Err("this port is not called by that name; `--host NAME` allows one more\n");
        }
        let says = |name: &str, value: &str| headers.get(name).is_some_and(|it| it == value);
        let foreign = says("sec-fetch-site", "cross-site") || says("sec-fetch-site", "same-site");
        // following a link is what people do
        if foreign && !says("sec-fetch-mode", "navigate") {
            return Err("pages of other sites are told nothing\n");
        }
        Ok(())
    }

    fn knows(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host().to_ascii_lowercase();
        let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
        match address {
            // an address is nobody's to point elsewhere
            Ok(address) => address.is_loopback() || address == self.address || self.address.is_unspecified(),
            Err(_) => name == "localhost" || self.names.contains(&name),
        }
    }
}

/// The layer around all routes.
pub async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let mut response = match guard.admits(request.headers()) {
        Err(why) => (StatusCode::FORBIDDEN, why).into_response(),
        Ok(()) => match tokio::time::timeout(PATIENCE, next.run(request)).await {
            Ok(response) => response,
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "reading the kernel took too long\n").into_response(),
        },
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knows(listening: &str, host: &str) -> bool {
        Guard::new(listening.parse().unwrap(), &["Monitor.example".into()]).knows(host)
    }

    #[test]
    fn a_name_that_points_here_is_refused() {
        for host in ["evil.example", "evil.example:8088", "127.0.0.1.evil.example", "localhost.evil.example", "", "a b"]
        {
            assert!(!knows("127.0.0.1", host), "{host}");
            assert!(!knows("0.0.0.0", host), "{host}");
        }
    }

    #[test]
    fn loopback_the_own_address_and_given_names_are_known() {
        for host in ["127.0.0.1:8088", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8088", "monitor.EXAMPLE:9464"] {
            assert!(knows("127.0.0.1", host), "{host}");
        }
        assert!(knows("192.0.2.1", "192.0.2.1:80") && !knows("192.0.2.1", "192.0.2.2:80"));
        assert!(knows("::", "[2001:db8::1]:80"));
    }

    #[test]
    fn other_sites_may_link_here_and_no_more() {
        let guard = Guard::new("127.0.0.1".parse().unwrap(), &[]);
        let admits = |site: &str, mode: &str| {
            let pairs = [("host", "localhost"), ("sec-fetch-site", site), ("sec-fetch-mode", mode)];
            let headers = pairs.map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()));
            guard.admits(&headers.into_iter().collect()).is_ok()
        };
        assert!(admits("cross-site", "navigate") && admits("same-origin", "cors") && admits("none", "navigate"));
        assert!(!admits("cross-site", "no-cors") && !admits("same-site", "cors"));
    }
}
