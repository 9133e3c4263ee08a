//! Headers where they lie in a frame, read by value through a [`View`].

use crate::{
    drops::Drop,
    wire::{Addr4, Addr6, MacWords},
};

/// The bytes of a frame, from the Ethernet header on.
pub trait View {
    /// The header at `offset`.
    ///
    /// # Errors
    ///
    /// [`Drop::Malformed`] where the readable part of the frame ends before the header does.
    fn read<H: Header>(&self, offset: usize) -> Result<H, Drop>;

    /// Two words, as they are in memory, at an even `offset`.
    ///
    /// # Errors
    ///
    /// As for [`View::read`].
    #[inline(always)]
    fn words(&self, offset: usize) -> Result<[u32; 2], Drop> {
        let Words { first, second } = self.read(offset)?;
        Ok([first, second])
    }
}

/// Where an [`Ethertype`] is in a frame.
pub const ETHERTYPE: usize = size_of::<Ethernet>() - size_of::<Ethertype>();

/// Plain bytes that may lie at any even offset of a frame.
///
/// # Safety
///
/// The type has no padding, no invalid values, and an alignment of at most 2.
pub unsafe trait Header: Copy {}

/// Declares headers as they are on the wire: multi-byte fields are in network byte order.
macro_rules! headers {
    ($($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* pub $field:ident : $type:ty),* $(,)?
    })*) => {$(
        $(#[$meta])*
        #[repr(C, packed(2))]
        #[derive(Clone, Copy)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type),* }

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*, "padding in a header");
        // SAFETY: integers only, packed to 2, without padding.
        unsafe impl Header for $name {}
    )*};
}

headers! {
    /// IEEE 802.3.
    pub struct Ethernet {
        pub destination: MacWords,
        pub source: MacWords,
        pub ethertype: u16,
    }

    /// See [`View::words`].
    pub struct Words {
        pub first: u32,
        pub second: u32,
    }

    /// The last field of [`Ethernet`].
    pub struct Ethertype {
        pub ethertype: u16,
    }

    /// RFC 826, for Ethernet and IPv4.
    pub struct Arp {
        pub hardware: u16,
        pub protocol: u16,
        pub lengths: u16,
        pub operation: u16,
        pub sender_mac: MacWords,
        pub sender: Addr4,
        pub target_mac: MacWords,
        pub target: Addr4,
    }

    /// RFC 791, without options.
    pub struct Ipv4 {
        pub version_ihl: u8,
        pub tos: u8,
        pub total_length: u16,
        pub id: u16,
        pub fragment: u16,
        pub ttl: u8,
        pub protocol: u8,
        pub checksum: u16,
        pub source: Addr4,
        pub destination: Addr4,
    }

    /// Four bytes of a network header, the hop limit among them.
    pub struct HopWord {
        pub bytes: [u8; 4],
    }

    /// RFC 8200.
    pub struct Ipv6 {
        pub version_class: u16,
        pub flow_label: u16,
        pub payload_length: u16,
        pub next_header: u8,
        pub hop_limit: u8,
        pub source: Addr6,
        pub destination: Addr6,
    }

    /// The first bytes of an IPv6 extension header: hop-by-hop, routing, destination options.
    pub struct Extension {
        pub next_header: u8,
        /// In units of 8 bytes, not counting the first 8 (4 for AH, RFC 4302).
        pub length: u8,
        /// Of a routing header: its type.
        pub kind: u8,
        pub rest: u8,
    }

    /// RFC 8200 section 4.5.
    pub struct Ipv6Fragment {
        pub next_header: u8,
        pub reserved: u8,
        pub offset: u16,
        pub id: u32,
    }

    /// What TCP, UDP and SCTP headers begin with.
    pub struct Ports {
        pub source: u16,
        pub destination: u16,
    }

    /// RFC 9293, without options.
    pub struct Tcp {
        pub source: u16,
        pub destination: u16,
        pub sequence: u32,
        pub acknowledgement: u32,
        pub offset: u8,
        pub flags: u8,
        pub window: u16,
        pub checksum: u16,
        pub urgent: u16,
    }

    /// RFC 792 and RFC 4443; `id` of queries.
    pub struct Icmp {
        pub kind: u8,
        pub code: u8,
        pub checksum: u16,
        pub id: u16,
        pub rest: u16,
    }

    /// No byte of what comes next: reading it proves that the frame does not end before.
    pub struct Boundary {}

    /// RFC 4861 sections 4.3 and 4.4, from the ICMPv6 header on.
    pub struct Neighbour {
        pub kind: u8,
        pub code: u8,
        pub checksum: u16,
        pub flags: u32,
        pub target: Addr6,
    }
}

impl Ethernet {
    /// Of no frame.
    pub const NONE: Self = Self { destination: MacWords::ZERO, source: MacWords::ZERO, ethertype: 0 };
}

impl View for [u8] {
    fn read<H: Header>(&self, offset: usize) -> Result<H, Drop> {
        let end = offset.checked_add(size_of::<H>()).ok_or(Drop::Malformed)?;
        let bytes = self.get(offset..end).ok_or(Drop::Malformed)?;
        // SAFETY: `bytes` holds size_of::<H>() bytes, and every bit pattern is a valid header.
        Ok(unsafe { bytes.as_ptr().cast::<H>().read_unaligned() })
    }
}
