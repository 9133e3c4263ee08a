//! One connection, explained: who speaks, what a service makes of it, what the policies of both ends say and why, how it
//! leaves. From documents alone; of what is loaded the kernel is asked, too.
//!
//! | file | one idea |
//! |---|---|
//! | `published` | services, and who is behind them |
//! | `target` | who is spoken to: an endpoint, an address, a service |
//! | `explain` | what the ordered rules say, for every backend |
//! | `frame` | the first packet of a connection |
//! | `path` | that packet from hook to hook, through a copy of the classifiers |
//! | `answer` | what the kernel says, beside what the rules say |
//! | `live` | what is loaded: names, tables and classifiers of one generation |
//!
//! The rules are interpreted, the kernel looks tables up that were compiled from them: neither knows of the other, so
//! where they differ something is wrong, and it is said.

mod answer;
mod explain;
mod frame;
mod live;
mod path;
mod published;
mod target;

pub use answer::{Answer, Delivery, Leaving, Step};
pub use explain::{Asked, Behind, Explanation, Host, Leg, Masquerade, Translation, explain};
pub use live::{Error, Live};
pub use published::{Backend, Service, of_documents, of_names};
pub use target::{NoPort, Target, target};
