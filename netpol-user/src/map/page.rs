//! The picture as a page of this machine. It asks nobody else: every script, style and letter is part of the program.
//!
//! | path | |
//! |---|---|
//! | `/` and `/assets/...` | the page |
//! | `/api/graph` | the graph, as `map -o json` prints it |
//! | `/events?open=NS,NS&shut=NS,NS` | graph and picture each second, as server-sent events |
//! | `/map.svg` | the picture as a file, with the same parameters |

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use futures_util::stream;
use serde::Deserialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Interval, MissedTickBehavior, interval},
};

use super::{Opened, Picture, Reading, svg::svg};
use crate::{enforce, web::Kept};

/// Who looks at once. All of them are told the same readings.
const VIEWERS: usize = 16;
const SECOND: Duration = Duration::from_secs(1);

/// Name, type and content of all that the page is made of.
const ASSETS: [(&str, &str, &str); 7] = [
    ("picture.css", "text/css", include_str!("assets/picture.css")),
    ("page.css", "text/css", include_str!("assets/page.css")),
    ("main.js", "text/javascript", include_str!("assets/main.js")),
    ("dom.js", "text/javascript", include_str!("assets/dom.js")),
    ("picture.js", "text/javascript", include_str!("assets/picture.js")),
    ("table.js", "text/javascript", include_str!("assets/table.js")),
    ("details.js", "text/javascript", include_str!("assets/details.js")),
];
const PAGE: &str = include_str!("assets/index.html");

/// A reading, and its graph as JSON, once for everybody.
struct Shared {
    reading: Reading,
    json: String,
}

#[derive(Clone)]
struct Page {
    kept: Arc<Kept<Shared>>,
    viewers: Arc<Semaphore>,
}

/// Namespaces, separated by commas.
#[derive(Deserialize)]
struct Wish {
    #[serde(default)]
    open: String,
    #[serde(default)]
    shut: String,
}

impl Wish {
    fn opened(&self) -> Opened {
        let names = |list: &str| -> BTreeSet<String> {
            list.split(',').filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect()
        };
        Opened { open: names(&self.open), shut: names(&self.shut) }
    }
}

/// The routes of the page about an instance. The kernel is read only while somebody looks.
pub fn routes(instance: enforce::Instance) -> Router {
    let read = move |before: Option<&Shared>| {
        let reading = Reading::take(&instance, before.map(|before| &before.reading));
        let reading = reading.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
        let json = serde_json::to_string(&reading.graph).map_err(|error| error.to_string())?;
        Ok(Shared { reading, json })
    };
    // a little less than the viewers' second, so each of their seconds brings news
    let kept = Arc::new(Kept::new(SECOND * 9 / 10, read));
    Router::new()
        .route("/", get(|| async { ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE) }))
        .route("/assets/{name}", get(asset))
        .route("/api/graph", get(graph))
        .route("/map.svg", get(file))
        .route("/events", get(events))
        .with_state(Page { kept, viewers: Arc::new(Semaphore::new(VIEWERS)) })
}

async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => ([(header::CONTENT_TYPE, format!("{kind}; charset=utf-8"))], *text).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn graph(State(page): State<Page>) -> Response {
    match page.kept.get().await {
        Ok(shared) => ([(header::CONTENT_TYPE, "application/json")], shared.json.clone()).into_response(),
        Err(error) => failed(&error),
    }
}

async fn file(State(page): State<Page>, Query(wish): Query<Wish>) -> Response {
    match page.kept.get().await {
        Ok(shared) => {
            let graph = &shared.reading.graph;
            let text = svg(graph, &Picture::of(graph, &wish.opened()));
            ([(header::CONTENT_TYPE, "image/svg+xml")], text).into_response()
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &str) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

/// Someone who looks.
struct Viewer {
    page: Page,
    opened: Opened,
    seconds: Interval,
    /// Given back when the connection ends.
    _place: OwnedSemaphorePermit,
}

async fn events(State(page): State<Page>, Query(wish): Query<Wish>) -> Response {
    let Ok(place) = Arc::clone(&page.viewers).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{VIEWERS} others are looking already\n")).into_response();
    };
    let mut seconds = interval(SECOND);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let viewer = Viewer { page, opened: wish.opened(), seconds, _place: place };
    let events = stream::unfold(viewer, |mut viewer| async {
        viewer.seconds.tick().await;
        let event = viewer.event().await;
        Some((Ok::<_, Infallible>(event), viewer))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(10 * SECOND)).into_response()
}

impl Viewer {
    async fn event(&self) -> Event {
        let told = match self.page.kept.get().await {
            Ok(shared) => {
                let picture = Picture::of(&shared.reading.graph, &self.opened);
                serde_json::to_string(&picture)
                    .map(|picture| format!("{{\"graph\":{},\"picture\":{picture}}}", shared.json))
                    .map_err(|error| error.to_string())
            }
            Err(error) => Err(error),
        };
        match told {
            Ok(data) => Event::default().event("picture").data(data),
            // one line: a line's end would begin another field
            Err(error) => Event::default().event("failure").data(error.replace(['\r', '\n'], " ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_nobody_else_and_writes_no_markup() {
        for (name, _, text) in ASSETS.into_iter().chain([("index.html", "", PAGE)]) {
            let plain = text.replace("http://www.w3.org/2000/svg", "");
            for foreign in
                ["http:", "https:", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!plain.contains(foreign), "{foreign} in {name}");
            }
        }
        // the content security policy allows no inline script, style or handler
        for inline in ["<style", "style=", "onclick", "<script>"] {
            assert!(!PAGE.contains(inline), "{inline}");
        }
    }

    #[test]
    fn everything_that_the_page_names_is_there() {
        let named = PAGE.split('"').filter_map(|part| part.strip_prefix("/assets/"));
        let imported =
            ASSETS.iter().flat_map(|(_, _, text)| text.split('"').filter_map(|part| part.strip_prefix("./")));
        let all: Vec<_> = named.chain(imported).collect();
        assert!(all.len() > 5, "{all:?}");
        for name in all {
            assert!(ASSETS.iter().any(|(known, ..)| *known == name), "{name}");
        }
    }
}
