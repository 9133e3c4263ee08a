//! The state of a TCP connection, as far as the flags tell that were seen in either direction.
//!
//! The kernel keeps no state machine for it, only which flags occurred. So these are RFC 9293's states put
//! together, and a lost segment after the hook may make the ends see it otherwise.

use netpol_common::parse::tcp::{ACK, FIN, RST, SYN};
use serde::{Serialize, Serializer};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The opener has not confirmed an answer yet.
    SynSent,
    Established,
    /// One end has said that it sends no more.
    Closing,
    /// Both have.
    Closed,
    /// Either end broke it off.
    Reset,
}

/// Of what the opener and the other end have sent, the first line that holds.
type Line = (State, fn(opener: u8, other: u8) -> bool);

const TABLE: [Line; 5] = [
    (State::Reset, |opener, other| (opener | other) & RST != 0),
    (State::Closed, |opener, other| opener & other & FIN != 0),
    (State::Closing, |opener, other| (opener | other) & FIN != 0),
    (State::SynSent, |opener, _| opener & (SYN | ACK) == SYN),
    (State::Established, |_, _| true),
];

impl State {
    /// By the flags of all segments so far.
    pub fn of(opener: u8, other: u8) -> Self {
        let line = TABLE.iter().find(|(_, holds)| holds(opener, other));
        line.map_or(Self::Established, |(state, _)| *state)
    }

    /// As in RFC 9293 section 3.3.2, where it has the state.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "SYN-SENT",
            Self::Established => "ESTABLISHED",
            Self::Closing => "CLOSING",
            Self::Closed => "CLOSED",
            Self::Reset => "RESET",
        }
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_both_directions_tell_the_state() {
        for (opener, other, state) in [
            (SYN, 0, State::SynSent),
            (SYN, SYN | ACK, State::SynSent),
            (SYN | ACK, SYN | ACK, State::Established),
            // older than the classifiers
            (ACK, 0, State::Established),
            (0, ACK, State::Established),
            (SYN | ACK | FIN, SYN | ACK, State::Closing),
            (SYN | ACK, SYN | ACK | FIN, State::Closing),
            (SYN | ACK | FIN, SYN | ACK | FIN, State::Closed),
            (SYN, RST | ACK, State::Reset),
            (SYN | ACK | FIN, SYN | ACK | FIN | RST, State::Reset),
        ] {
            assert_eq!(State::of(opener, other), state, "{opener:#x} {other:#x}");
        }
    }
}
