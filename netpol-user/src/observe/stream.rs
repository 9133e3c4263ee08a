//! What happens, one after the other: events of the kernel with the names of their generation, ends of connections
//! with their totals, and how much was missed.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    os::unix::fs::MetadataExt as _,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    Happening, Reader, What,
    connection::{Key, is_backwards, reversed},
    tcp,
};
use crate::{
    datapath::{self, Datapath, Event, Observer, Untold, Wants},
    enforce::{self, Instance},
};

/// How often to look what was missed, and whether anything is loaded still.
const LOOK: Duration = Duration::from_secs(1);
/// After a FIN or RST: what belongs to the same end, the last ACK too, comes within this time, and is in the totals.
const LINGER: Duration = Duration::from_millis(250);
/// An end is told once: a RST may follow long after both FINs.
const ENDED: Duration = Duration::from_secs(5);
/// The most events of one look, so that what was read is told before more is read.
const AT_ONCE: usize = 8192;
/// The most of the last look, which is to be of all that there is: but more may come meanwhile.
const LAST: usize = 1 << 24;
/// How many generations' names are kept: events of an old one may still be in the ring.
const READERS: usize = 4;

/// What somebody wants to be told.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub kinds: Vec<What>,
    /// The frames as well.
    pub frames: bool,
    /// What is translated at interfaces to the outside, too.
    pub uplinks: bool,
    /// Bytes of the ring.
    pub room: u32,
}

/// One of a stream.
#[derive(Debug)]
pub enum Item {
    Happening(Box<Happening>),
    /// So many events had no room, because they were not read in time.
    Lost(u64),
    /// So many drops were like others that were told, or too many of one interface.
    Suppressed(u64),
    /// Nothing was told or counted for so long: the process was stopped.
    Gap(Duration),
}

/// An observer, and what is needed to make sense of what it hears.
pub struct Stream<'a> {
    instance: &'a Instance,
    datapath: Datapath,
    observer: Observer,
    wanted: Wanted,
    /// By generation, the latest last.
    readers: VecDeque<Arc<Reader>>,
    /// Ends that were seen, until their totals are complete: when that is, and the latest event.
    ending: HashMap<Key, (Instant, Event)>,
    ended: HashMap<Key, Instant>,
    looked: Instant,
    /// Of the pin: another one, and everything is another instance's.
    inode: u64,
}

impl<'a> Stream<'a> {
    /// Begins to observe.
    pub fn open(instance: &'a Instance, wanted: Wanted) -> Result<Self, enforce::Error> {
        let inode = inode(instance);
        let datapath = Datapath::open(&instance.pins)?;
        let reader = Arc::new(Reader::new(instance.names(&datapath)?.into()));
        let wants = wanted.kinds.iter().fold(Wants::NOTHING, |wants, kind| match kind {
            What::New => wants.with(Wants::NEW),
            What::Drop => wants.with(Wants::DROP),
            What::Closed => wants.with(Wants::CLOSING),
            What::Flow => wants,
        });
        let wants = if wanted.frames { wants.with(Wants::FRAMES) } else { wants };
        let observer = datapath.observe(&instance.state, wants, wanted.room)?;
        Ok(Self {
            instance,
            datapath,
            observer,
            wanted,
            readers: VecDeque::from([reader]),
            ending: HashMap::new(),
            ended: HashMap::new(),
            looked: Instant::now(),
            inode,
        })
    }

    /// What has happened since the last look. `is_last`: there will be no other, so what waits is told now.
    ///
    /// # Errors
    /// Also when it was unloaded meanwhile.
    pub fn look(&mut self, is_last: bool) -> Result<Vec<Item>, enforce::Error> {
        let mut items = vec![];
        let most = if is_last { LAST } else { AT_ONCE };
        for _ in 0..most {
            let Some(event) = self.observer.hear() else { break };
            items.extend(self.item(event)?.map(|happening| Item::Happening(Box::new(happening))));
        }
        let now = Instant::now();
        let due: Vec<_> =
            self.ending.iter().filter(|(_, (due, _))| is_last || *due <= now).map(|(key, _)| *key).collect();
        for key in due {
            if let Some((_, event)) = self.ending.remove(&key)
                && let Some(happening) = self.end(event)?
                && self.ended.insert(key, now).is_none_or(|told| now - told > ENDED)
            {
                items.push(Item::Happening(Box::new(happening)));
            }
        }
        if is_last || now - self.looked >= LOOK {
            self.looked = now;
            self.ended.retain(|_, told| now - *told <= ENDED);
            let gap = self.observer.gap();
            if !gap.is_zero() {
                items.push(Item::Gap(gap));
            }
            let Untold { lost, suppressed } = self.observer.untold()?;
            let wants_drops = self.wanted.kinds.contains(&What::Drop);
            items.extend((lost > 0).then_some(Item::Lost(lost)));
            items.extend((suppressed > 0 && wants_drops).then_some(Item::Suppressed(suppressed)));
            if inode(self.instance) != self.inode {
                return Err(datapath::Error::NotLoaded { path: self.instance.pins.maps().join("LIVE") }.into());
            }
        }
        Ok(items)
    }

    fn item(&mut self, event: Event) -> Result<Option<Happening>, enforce::Error> {
        let reader = self.reader(event.record.generation.0)?;
        let kind = match event.kind {
            datapath::Kind::Drop => What::Drop,
            _ if !self.wanted.uplinks && reader.only_passes(&event.record) => return Ok(None),
            datapath::Kind::New => What::New,
            datapath::Kind::Closing => {
                let record = event.record.judged();
                let ends = reader.ends(&record);
                let (record, ends) =
                    if is_backwards(&record) { (reversed(&record), ends.reversed()) } else { (record, ends) };
                let key = Key::new(&reader, &record, ends);
                self.ending.insert(key, (Instant::now() + LINGER, event));
                return Ok(None);
            }
        };
        Ok(Some(Happening {
            kind,
            now: SystemTime::now(),
            reader,
            record: event.record,
            reply: None,
            was_known: event.was_known,
            suppressed: event.suppressed,
            frame: Some(event.frame),
        }))
    }

    /// The end that an event was a part of; `None`: the other half is still to come.
    fn end(&mut self, event: Event) -> Result<Option<Happening>, enforce::Error> {
        let [own, other] = self.observer.both(&event)?;
        // evicted, or another connection's by now
        let own = own.filter(|own| own.packets >= event.record.packets).unwrap_or(event.record);
        let state = tcp::State::of(own.tcp_flags, other.map_or(own.tcp_flags, |other| other.tcp_flags));
        if !matches!(state, tcp::State::Closed | tcp::State::Reset) {
            return Ok(None);
        }
        let nothing = |record: datapath::Record| datapath::Record { packets: 0, bytes: 0, tcp_flags: 0, ..record };
        let (record, reply) = if is_backwards(&own) {
            (other.unwrap_or_else(|| nothing(reversed(&own))), Some(own))
        } else {
            (own, other)
        };
        let reader = self.reader(record.generation.0)?;
        Ok(Some(Happening {
            kind: What::Closed,
            now: SystemTime::now(),
            reader,
            record,
            reply,
            was_known: false,
            suppressed: 0,
            frame: Some(event.frame),
        }))
    }

    /// The names of a generation, else the present ones.
    fn reader(&mut self, generation: u32) -> Result<Arc<Reader>, enforce::Error> {
        let of = |reader: &&Arc<Reader>| reader.names().generation == generation;
        if let Some(reader) = self.readers.iter().rev().find(of) {
            return Ok(Arc::clone(reader));
        }
        let latest = self.readers.back().map_or(0, |reader| reader.names().generation);
        if latest < generation {
            let reader = Arc::new(Reader::new(self.instance.names(&self.datapath)?.into()));
            if reader.names().generation != latest {
                self.readers.push_back(reader);
                if self.readers.len() > READERS {
                    self.readers.pop_front();
                }
            }
        }
        let latest = self.readers.back().map(Arc::clone);
        latest.map_or_else(|| Ok(Arc::new(Reader::new(self.instance.names(&self.datapath)?.into()))), Ok)
    }
}

/// 0: nothing is loaded.
fn inode(instance: &Instance) -> u64 {
    fs::metadata(instance.pins.maps().join("LIVE")).map_or(0, |metadata| metadata.ino())
}
