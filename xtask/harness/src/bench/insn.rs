//! Instructions of BPF programs, as Documentation/bpf/standardization/instruction-set.rst has them.

const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (destination as u64) << 8
        | (source as u64) << 12
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}

/// Returns r0.
pub const EXIT: u64 = new(0x95, 0, 0, 0, 0);

pub const fn mov(to: u8, from: u8) -> u64 {
    new(0xbf, to, from, 0, 0)
}

pub const fn set(to: u8, value: i32) -> u64 {
    new(0xb7, to, 0, 0, value)
}

pub const fn add(to: u8, value: i32) -> u64 {
    new(0x07, to, 0, 0, value)
}

pub const fn and(to: u8, value: i32) -> u64 {
    new(0x57, to, 0, 0, value)
}

pub const fn modulo(to: u8, value: i32) -> u64 {
    new(0x97, to, 0, 0, value)
}

pub const fn shift_right(to: u8, bits: i32) -> u64 {
    new(0x77, to, 0, 0, bits)
}

pub const fn be16(register: u8) -> u64 {
    new(0xdc, register, 0, 0, 16)
}

pub const fn load32(to: u8, from: u8, offset: i16) -> u64 {
    new(0x61, to, from, offset, 0)
}

pub const fn load64(to: u8, from: u8, offset: i16) -> u64 {
    new(0x79, to, from, offset, 0)
}

pub const fn store16(to: u8, from: u8, offset: i16) -> u64 {
    new(0x6b, to, from, offset, 0)
}

pub const fn store64(to: u8, from: u8, offset: i16) -> u64 {
    new(0x7b, to, from, offset, 0)
}

/// `distance`: instructions between this and where it jumps to.
pub const fn jump_if_greater(register: u8, than: u8, distance: i16) -> u64 {
    new(0x2d, register, than, distance, 0)
}

/// The map, or (`value`) the first element of an array.
pub const fn map(to: u8, descriptor: i32, value: bool) -> [u64; 2] {
    [new(0x18, to, if value { 2 } else { 1 }, 0, descriptor), 0]
}

/// A helper's call, by its number in `uapi/linux/bpf.h`.
pub const fn call(helper: i32) -> u64 {
    new(0x85, 0, 0, 0, helper)
}

/// A word on the stack.
pub const fn store_word(at: i16, value: i32) -> u64 {
    new(0x7a, 10, 0, at, value)
}
