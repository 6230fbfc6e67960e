//! `SPDK_SYS_SANITIZE`: a sanitizer of gcc's, in SPDK and in the shim.

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sanitizer {
    /// Wrong uses of memory. The program must be built with it too (`-Zsanitizer=address`), and then it
    /// has rustc's runtime.
    Address,
    /// What C leaves undefined. Rust has none, so gcc's runtime is linked.
    Undefined,
}

impl Sanitizer {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Address, Self::Undefined];

    /// What the variable and the compiler call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Undefined => "undefined",
        }
    }

    /// What SPDK's configuration calls it.
    pub fn entry(self) -> &'static str {
        match self {
            Self::Address => "ASAN",
            Self::Undefined => "UBSAN",
        }
    }

    /// For SPDK's configure.
    pub fn configure_flag(self) -> String {
        format!("--enable-{}", self.entry().to_lowercase())
    }

    /// For the compiler.
    pub fn compiler_flag(self) -> String {
        format!("-fsanitize={}", self.name())
    }

    /// The runtime to link, if rustc does not bring one.
    pub fn library(self) -> Option<&'static str> {
        match self {
            Self::Address => None,
            Self::Undefined => Some("ubsan"),
        }
    }
}
