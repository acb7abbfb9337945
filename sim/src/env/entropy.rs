//! A node's chance: a seeded stream per life of its process, or, on purpose, the same stream in every life.

use std::rc::Rc;

use velum_node::env::Entropy;

use crate::rng::Rng;

/// Entropy of one life of a node's process.
pub struct NodeEntropy {
    rng: Rc<Rng>,
}

impl NodeEntropy {
    /// Draws from `rng`.
    #[must_use]
    pub fn new(rng: Rc<Rng>) -> Self {
        Self { rng }
    }
}

impl Entropy for NodeEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.rng.fill(bytes);
    }
}
