//! Whatever the policies and the packets are: the classifiers in the kernel do what the same logic does on
//! hash maps, and both keep the promise that state never widens policy.
//!
//! | file | what |
//! |---|---|
//! | `script` | random conversations, with tampering and publications in between |
//! | `stage` | who takes part: endpoints, the host, the world, and their frames |
//! | `host` | the logic on hash maps |
//! | `oracle` | what the ordered rules say, and who opened what |
//! | `kernel` | the classifiers, through `BPF_PROG_TEST_RUN` |
//! | `translated` | services and masquerading: the classifiers, and a model of what they promise |
//! | `object` | what must not be in the object, and what the verifier makes of it |

mod host;
mod kernel;
mod object;
mod oracle;
mod script;
mod stage;
mod translated;

#[path = "../../../netpol-common/tests/datapath/support/mod.rs"]
mod datapath;
#[path = "../support/mod.rs"]
mod support;
#[path = "../../src/compile/tests/worlds.rs"]
#[allow(dead_code, reason = "the compiler's own tests use the rest")]
mod worlds;

// for `worlds`
use netpol_user::{compile, model};
