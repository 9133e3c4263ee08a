//! No two connections share the key of their answers, and what comes back is what was sent.
