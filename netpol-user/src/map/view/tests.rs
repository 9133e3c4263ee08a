use super::*;
use crate::map::sample;

fn drawn(graph: &Graph) -> Picture {
    Picture::of(graph, &Opened::default())
}

fn at<'a>(picture: &'a Picture, id: &str) -> &'a Item {
    picture.nodes.iter().find(|node| node.id == id).unwrap_or_else(|| panic!("no {id}"))
}

/// Nothing stands on anything else.
fn assert_apart(picture: &Picture) {
    let places: Vec<_> = picture.nodes.iter().map(Placed::of).collect();
    for (index, one) in places.iter().enumerate() {
        for (other, place) in places.iter().enumerate().skip(index + 1) {
            let (a, b) = (&picture.nodes[index].id, &picture.nodes[other].id);
            assert_eq!(one.overlap(place), 0.0, "{a} and {b}");
        }
    }
    for frame in &picture.boxes {
        let of = picture.nodes.iter().filter(|node| node.namespace.as_ref() == Some(&frame.namespace));
        for node in of {
            assert!(node.x >= frame.x && node.x + node.width <= frame.x + frame.width, "{}", node.id);
            assert!(node.y >= frame.y && node.y + node.height <= frame.y + frame.height, "{}", node.id);
        }
    }
}

#[test]
fn whoever_opens_stands_left_of_whom_it_is_opened_to() {
    let graph = sample::shop();
    let picture = drawn(&graph);
    for edge in graph.edges.iter().filter(|edge| edge.verdict == Verdict::Allowed) {
        let (from, to) = (at(&picture, &edge.from), at(&picture, &edge.to));
        assert!(from.x + from.width < to.x, "{} > {}", edge.from, edge.to);
    }
    assert_apart(&picture);
}

#[test]
fn the_same_graph_gives_the_same_picture() {
    let text = |graph: &Graph| serde_json::to_string(&drawn(graph)).unwrap();
    assert_eq!(text(&sample::shop()), text(&sample::shop()));
    let mut shuffled = sample::shop();
    shuffled.edges.reverse();
    let places = |picture: Picture| picture.nodes.iter().map(|n| (n.id.clone(), n.x, n.y)).collect::<Vec<_>>();
    assert_eq!(places(drawn(&shuffled)), places(drawn(&sample::shop())));
}

#[test]
fn every_denied_edge_of_the_shop_has_its_label_and_labels_cover_nothing() {
    let picture = drawn(&sample::shop());
    let nodes: Vec<_> = picture.nodes.iter().map(Placed::of).collect();
    let denied: Vec<_> = picture.edges.iter().filter(|edge| edge.verdict == Verdict::Denied).collect();
    assert_eq!(denied.len(), 2);
    for edge in denied {
        let Some(Label { x, y, width, height, lines }) = &edge.label else { panic!("{} has no label", edge.id) };
        assert!(lines[0].starts_with("✕ denied") && lines[1].starts_with("by shop/default-deny"), "{lines:?}");
        let place = Placed { x: x - width / 2.0, y: y - height / 2.0, width: *width, height: *height };
        assert!(nodes.iter().all(|node| node.overlap(&place) == 0.0), "{}", edge.id);
        assert!(place.x >= picture.x && place.x + place.width <= picture.x + picture.width);
    }
}

#[test]
fn edges_of_the_shop_go_around_nodes() {
    let picture = drawn(&sample::shop());
    // outside to the gateway passes the edge's own column
    let skip = picture.edges.iter().find(|edge| edge.from == "outside" && edge.to == "shop/api-gateway").unwrap();
    let straight = picture.edges.iter().find(|edge| edge.from == "outside" && edge.to == "shop/nginx-lb").unwrap();
    assert_ne!(skip.path, straight.path);
}

#[test]
fn five_hundred_endpoints_are_a_few_dozen_nodes_until_one_opens_them() {
    for (namespaces, size, shown) in [(1, 500, 1), (10, 50, 59), (500, 1, 500), (100, 5, 148)] {
        let graph = sample::many(namespaces, size);
        let picture = drawn(&graph);
        assert_apart(&picture);
        if size > 1 {
            let endpoints = picture.nodes.iter().filter(|node| node.kind == ItemKind::Endpoint).count();
            assert!(endpoints <= ENDPOINTS, "{namespaces} of {size}: {endpoints}");
            assert_eq!(picture.nodes.len(), shown, "{namespaces} of {size}");
        }
        let drawn: usize = picture.edges.iter().map(|edge| edge.edges.len()).sum();
        assert_eq!(drawn, graph.edges.len(), "every edge is part of one that is drawn");
    }
    let graph = sample::many(1, 500);
    let opened = Opened { open: ["ns00".to_owned()].into(), ..Opened::default() };
    let picture = Picture::of(&graph, &opened);
    assert_eq!(picture.nodes.len(), 500);
    assert_apart(&picture);
}

#[test]
fn a_namespace_closes_when_asked_and_its_denials_stay_seen() {
    let opened = Opened { shut: ["shop".to_owned()].into(), ..Opened::default() };
    let picture = Picture::of(&sample::shop(), &opened);
    let ids: Vec<_> = picture.nodes.iter().map(|node| node.id.as_str()).collect();
    assert_eq!(ids, ["outside", "shop/"]);
    assert_eq!(at(&picture, "shop/").subtitle, "6 endpoints");
    let inside = picture.edges.iter().find(|e| e.from == e.to && e.verdict == Verdict::Denied).unwrap();
    assert_eq!(inside.edges.len(), 1);
}

#[test]
fn circles_of_callers_are_drawn_all_the_same() {
    let mut graph = sample::many(1, 4);
    graph.edges.push(sample::edge("ns00/e003", "ns00/e000", Verdict::Allowed, 80));
    graph.edges.push(sample::edge("ns00/e001", "ns00/e001", Verdict::Allowed, 80));
    let picture = drawn(&graph);
    assert_apart(&picture);
    assert_eq!(picture.edges.len(), graph.edges.len());
}

#[test]
fn an_empty_graph_is_a_picture_too() {
    let picture = drawn(&Graph { nodes: vec![], edges: vec![], ..sample::shop() });
    assert!(picture.nodes.is_empty() && picture.width > 0.0 && picture.height > 0.0);
}

#[test]
fn silent_edges_fade_and_do_not_vanish() {
    let fading = [0.0, 10.0, 60.0, 600.0, 1e6].map(strength);
    assert!(fading.windows(2).all(|pair| pair[0] >= pair[1]), "{fading:?}");
    assert_eq!((fading[0], fading[4]), (1.0, 0.35));
}

#[test]
fn a_label_finds_room_between_many_nodes() {
    let picture = drawn(&sample::many(4, 15));
    let nodes: Vec<_> = picture.nodes.iter().map(Placed::of).collect();
    let labels: Vec<_> = picture.edges.iter().filter_map(|edge| Some((edge.verdict, edge.label.as_ref()?))).collect();
    let denied = picture.edges.iter().filter(|edge| edge.verdict == Verdict::Denied).count();
    assert_eq!(labels.iter().filter(|(verdict, _)| *verdict == Verdict::Denied).count(), denied);
    for (_, Label { x, y, width, height, .. }) in labels.iter().filter(|(verdict, _)| *verdict == Verdict::Allowed) {
        let place = Placed { x: x - width / 2.0, y: y - height / 2.0, width: *width, height: *height };
        assert!(nodes.iter().all(|node| node.overlap(&place) == 0.0));
    }
}
