//! Connections through services and out of pools: whatever the policies, the services and the packets are, the classifiers
//! in the kernel translate as a simple model says, at every hook on the way, and each packet arrives as if it had been
//! written anew for whom it reaches.
//!
//! | file | what |
//! |---|---|
//! | `world` | random services and pools, with the backends that they may choose |
//! | `script` | random conversations through them |
//! | `packet` | what is said, byte by byte, checksums calculated in full |
//! | `way` | the hooks that a packet passes, in the kernel |
//! | `oracle` | connections and their translations, as promised |
//! | `play` | all of it together |

mod oracle;
mod packet;
mod play;
mod script;
mod way;
mod world;
