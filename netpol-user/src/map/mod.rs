//! The graph of who talks to whom, drawn: as a page that follows what happens, or into a file.
//!
//! | file | one idea |
//! |---|---|
//! | `reading` | one look at the kernel, with the rates since the one before |
//! | `view` | which namespaces are open, and which stand for their endpoints |
//! | `layout` | where boxes and nodes are |
//! | `route` | how edges go around nodes, and where their labels have room |
//! | `words` | what the picture says, in words |
//! | `svg`, `dot`, `mermaid` | the picture as a file |
//! | `page` | the picture as a page, by server-sent events |
//!
//! Page and SVG file are one picture: positions, curves and words are made here, the script of the page only draws them.
//! The same graph gives the same picture.

pub mod dot;
mod layout;
pub mod mermaid;
pub mod page;
mod reading;
mod route;
#[cfg(test)]
mod sample;
pub mod svg;
mod view;
mod words;

pub use reading::Reading;
pub use view::{Opened, Picture};
