//! The kernel's random bytes, asked for each time: a generator in this process would repeat itself in a cloned machine.

use crate::env::Entropy;

pub(super) struct RealEntropy;

impl Entropy for RealEntropy {
    #[expect(clippy::disallowed_methods, reason = "this is where random bytes come from")]
    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("without random bytes nothing can be sealed, and the node must not go on");
    }
}
