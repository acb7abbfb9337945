//! Chance.

/// A source of random bytes fit for keys and nonces.
pub trait Entropy {
    /// Fills `bytes` with fresh random bytes; the process stops when the source fails, for nothing can go on without it.
    fn fill(&self, bytes: &mut [u8]);

    /// 32 fresh bytes.
    fn fresh32(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.fill(&mut bytes);
        bytes
    }

    /// 16 fresh bytes, for ids.
    fn fresh16(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        bytes
    }

    /// A fresh number, for jitter.
    fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}
