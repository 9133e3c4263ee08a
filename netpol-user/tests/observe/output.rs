//! What is told, for people and for Wireshark.

use std::{fs::File, thread};

use pcap_file::pcapng::{
    Block, PcapNgReader,
    blocks::{enhanced_packet::EnhancedPacketOption, interface_description::InterfaceDescriptionOption},
};

use crate::{
    between, loaded,
    support::{
        Attempt::Tcp,
        Family, Scene,
        Seen::{Answered, Silent},
        check, wait_until,
    },
};

#[test]
fn packets_are_written_with_their_verdicts() {
    let Scene { host, a, b, c, .. } = &loaded();
    let file = host.folder().join("packets.pcapng");
    let mut watch = host.observe(&["--pcap", file.to_str().unwrap(), "--type", "new,drop", "proto:tcp"]);
    let _server = b.serve_tcp(80);
    check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (c, Tcp(b.at(Family::V6, 80)), Silent)]);
    watch.event("a to b", between("new", "a", "b", 80));
    watch.event("c to b", between("drop", "c", "b", 80));
    watch.end();
    let mut reader = PcapNgReader::new(File::open(&file).expect("the file")).expect("a section");
    let (mut interfaces, mut packets) = (vec![], vec![]);
    while let Some(block) = reader.next_block() {
        match block.expect("a block") {
            Block::InterfaceDescription(block) => {
                interfaces.extend(block.options.iter().filter_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                }))
            }
            Block::EnhancedPacket(block) => {
                let comment = block.options.iter().find_map(|option| match option {
                    EnhancedPacketOption::Comment(comment) => Some(comment.to_string()),
                    _ => None,
                });
                packets.push((
                    interfaces[block.interface_id as usize].clone(),
                    block.data.to_vec(),
                    comment,
                    block.original_len,
                ));
            }
            _ => {}
        }
    }
    assert_eq!(packets.len(), watch.told.iter().filter(|event| event["type"] != "suppressed").count());
    let of = |interface: &str| packets.iter().find(|packet| packet.0 == interface).expect("a packet");
    let (_, frame, comment, length) = of("v-a");
    assert_eq!((&frame[..6], &frame[12..14], &frame[26..30]), (&b.mac()[..], &[8, 0][..], &[10, 0, 0, 10][..]));
    assert_eq!(frame.len(), *length as usize);
    assert!(comment.as_ref().is_some_and(|comment| comment.starts_with("new allowed: ")), "{comment:?}");
    let (_, frame, comment, _) = of("v-c");
    assert_eq!((&frame[6..12], &frame[12..14]), (&c.mac()[..], &[0x86, 0xdd][..]));
    let comment = comment.as_ref().expect("a comment");
    assert!(comment.starts_with("drop policy-ingress: ") && comment.contains("no rule allows tcp/80"), "{comment}");
}

#[test]
fn words_are_for_people() {
    let Scene { host, a, b, c, .. } = &loaded();
    let _server = b.serve_tcp(80);
    for (format, wanted) in [("compact", " > default/b:80 TCP: "), ("table", "default/b:80  ")] {
        let running = thread::scope(|scope| {
            let watching =
                scope.spawn(|| host.netpol(&["observe", "-o", format, "--count", "1", "--type", "new", "to:b"]));
            wait_until("it observes", || host.observers() == 1);
            check(&[(a, Tcp(b.at(Family::V4, 80)), Answered), (c, Tcp(b.at(Family::V4, 80)), Silent)]);
            watching.join().expect("an end")
        });
        let told = running.ok();
        assert!(told.lines().any(|line| line.contains("new") && line.contains(wanted)), "{told}");
    }
    let wrong = host.netpol(&["observe", "reson:spoofed"]);
    assert!(wrong.code == 1 && wrong.stderr.contains("did you mean `reason:`"), "{wrong:?}");
}
