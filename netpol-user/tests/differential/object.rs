//! The object that is loaded.

use netpol_user::datapath::{Datapath, Pins};

use crate::support::Host;

/// Little endian, 64 bits: the only kind that the build makes.
struct Elf(&'static [u8]);

impl Elf {
    fn half(&self, at: usize) -> usize {
        u16::from_le_bytes(self.0[at..at + 2].try_into().unwrap()).into()
    }

    fn word(&self, at: usize) -> usize {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap()) as usize
    }

    fn long(&self, at: usize) -> usize {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap()) as usize
    }

    /// Where the headers of sections begin (ELF-64 object file format, figures 3 and 8).
    fn sections(&self) -> Vec<usize> {
        let (start, size, count) = (self.long(0x28), self.half(0x3a), self.half(0x3c));
        (0..count).map(|number| start + number * size).collect()
    }

    /// The names of all symbols.
    fn symbols(&self) -> Vec<&'static str> {
        const SYMBOLS: usize = 2;
        let sections = self.sections();
        let tables = sections.iter().filter(|&&section| self.word(section + 4) == SYMBOLS);
        let names = tables.flat_map(|&table| {
            let (start, size, each) = (self.long(table + 0x18), self.long(table + 0x20), self.long(table + 0x38));
            let strings = self.long(sections[self.word(table + 0x28)] + 0x18);
            (start..start + size).step_by(each).map(move |symbol| self.text(strings + self.word(symbol)))
        });
        names.collect()
    }

    fn text(&self, at: usize) -> &'static str {
        let bytes = &self.0[at..];
        let end = bytes.iter().position(|byte| *byte == 0).unwrap();
        std::str::from_utf8(&bytes[..end]).unwrap()
    }
}

#[test]
fn the_classifiers_have_no_way_to_panic() {
    let elf = Elf(Datapath::object());
    assert_eq!(&elf.0[..6], b"\x7fELF\x02\x01");
    let symbols = elf.symbols();
    for program in [
        "from_workload",
        "to_workload",
        "from_uplink",
        "to_uplink",
        "judge4",
        "judge6",
        "audit4",
        "audit6",
        "connect4",
        "getpeername6",
    ] {
        assert!(symbols.contains(&program), "no {program} among {symbols:?}");
    }
    let panics: Vec<_> = symbols.iter().filter(|name| name.contains("panic")).collect();
    assert!(panics.is_empty(), "{panics:?}");
}

#[test]
fn the_verifier_takes_the_classifiers_with_room_to_spare() {
    /// Of a million that the kernel looks at: whoever adds to this should know.
    const MOST: u32 = 350_000;
    /// The smallest program that does something: what a socket is told.
    const LEAST: u32 = 20;
    let host = Host::new();
    let datapath =
        Datapath::open_or_load(&Pins::at(host.bpffs()), None, None).expect("the kernel takes the classifiers");
    let counts = datapath.verified_instructions().expect("the kernel knows its programs");
    println!("verified instructions: {counts:?}");
    for (name, count) in counts {
        let count = count.expect("kernels since 5.16 count");
        assert!((LEAST..MOST).contains(&count), "{name}: {count} instructions");
    }
}
