//! Plain data that crosses the line between kernel and userspace.

/// Declares table types: `repr(C)`, copyable, without padding, `aya::Pod` for the loader.
///
/// Padding would be uninitialised memory: the kernel compares keys bytewise and the verifier
/// refuses to let it leave the stack.
macro_rules! pod {
    ($($(#[$meta:meta])* pub struct $name:ident $(<$($param:ident : $bound:path),*>)? {
        $($(#[$field_meta:meta])* pub $field:ident : $type:ty),* $(,)?
    })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name $(<$($param: $bound),*>)? { $($(#[$field_meta])* pub $field: $type),* }

        impl $(<$($param: $bound),*>)? $name $(<$($param),*>)? {
            /// Fails to compile where the layout has padding.
            pub const NO_PADDING: () = assert!(
                size_of::<Self>() == 0 $(+ size_of::<$type>())*,
                concat!("padding in ", stringify!($name)),
            );

            /// Takes a copy of the other. Of an assignment, which says nothing of whether both overlap, the BPF backend
            /// makes a loop over the bytes.
            #[inline(always)]
            pub fn copy_from(&mut self, other: &Self) {
                core::slice::from_mut(self).copy_from_slice(core::slice::from_ref(other));
            }
        }

        #[cfg(feature = "user")]
        // SAFETY: repr(C) over plain integers, and without padding (NO_PADDING).
        unsafe impl $(<$($param: $bound + 'static),*>)? aya::Pod for $name $(<$($param),*>)? {}
    )*};
}

/// Gives a type whose value is a set of bits the two ways to use it.
macro_rules! bits {
    ($name:ident) => {
        impl $name {
            #[inline(always)]
            pub const fn has(self, bit: Self) -> bool {
                self.0 & bit.0 != 0
            }

            #[inline(always)]
            pub const fn with(self, bit: Self) -> Self {
                Self(self.0 | bit.0)
            }
        }
    };
}
