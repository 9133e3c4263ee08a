//! The packets that events are about, for Wireshark and its like: pcapng, with verdict and rule as a comment of each.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use netpol_common::event::SNAP;
use pcap_file::{
    DataLink,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};

use crate::{cli::output::escape, observe::Happening};

/// A file of packets.
pub struct Capture {
    file: PcapNgWriter<BufWriter<File>>,
    /// Of the blocks that name them.
    interfaces: HashMap<String, u32>,
}

/// Times are in units of 10^-9 s.
const NANOSECONDS: u8 = 9;

impl Capture {
    /// Packets are nobody's but the owner's.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("{}", path.display()))?;
        let file = PcapNgWriter::new(BufWriter::new(file)).with_context(|| format!("{}", path.display()))?;
        Ok(Self { file, interfaces: HashMap::new() })
    }

    pub fn packet(&mut self, happening: &Happening) -> Result<()> {
        let Some(frame) = happening.frame.as_ref().filter(|frame| !frame.bytes.is_empty()) else { return Ok(()) };
        let flow = happening.flow();
        let interface_id = self.interface(&flow.interface.to_string())?;
        let verdict = flow.drop_reason.unwrap_or(flow.verdict);
        let comment = format!("{} {verdict}: {}", happening.kind.name(), flow.explanation);
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: flow.time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO),
            original_len: frame.length,
            data: (&frame.bytes).into(),
            options: vec![EnhancedPacketOption::Comment(escape(&comment).into())],
        };
        self.file.write_pcapng_block(block).context("writing packets")?;
        Ok(())
    }

    pub fn flush(&mut self) -> Result<()> {
        self.file.get_mut().flush().context("writing packets")
    }

    /// The block's number of an interface, which is described where its first packet is.
    fn interface(&mut self, name: &str) -> Result<u32> {
        if let Some(number) = self.interfaces.get(name) {
            return Ok(*number);
        }
        let number = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: SNAP as u32,
            options: vec![
                InterfaceDescriptionOption::IfName(escape(name).into()),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        self.file.write_pcapng_block(block).context("writing packets")?;
        self.interfaces.insert(name.to_owned(), number);
        Ok(number)
    }
}
