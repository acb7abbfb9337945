//! What `velum inspect checkpoint` says of an opened page.

use std::fmt;

use super::{LEAF_BLOCKS, PageError, Payload, level_blocks};
use crate::{format::metadata::ObjectRef, id::BLOCK_BYTES};

/// A page in words, a few lines for its head and one per entry; `{:#}` leaves the entries out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary(Payload);

/// Reads an opened page of any kind for display.
///
/// # Errors
/// When the bytes are not exactly one page.
pub fn summarise(payload: &[u8]) -> Result<Summary, PageError> {
    Payload::decode(payload).map(Summary)
}

impl Summary {
    /// The page itself.
    #[must_use]
    pub const fn payload(&self) -> &Payload {
        &self.0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Payload::Leaf(_) => self.leaf(f),
            Payload::Inner(_) => self.inner(f),
            Payload::Root(_) => self.root(f),
            Payload::Usage(_) => self.usage(f),
        }
    }
}

impl Summary {
    fn leaf(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Payload::Leaf(leaf) = &self.0 else { return Ok(()) };
        let mapped: u64 = leaf.runs.iter().map(|run| u64::from(run.count)).sum();
        writeln!(
            f,
            "leaf page, blocks {}..{}: {mapped} mapped in {} runs over {} segments",
            leaf.first,
            leaf.first.0 + LEAF_BLOCKS,
            leaf.runs.len(),
            leaf.segments.len()
        )?;
        if f.alternate() {
            return Ok(());
        }
        for run in &leaf.runs {
            let start = leaf.first.0 + u64::from(run.start);
            let Some(frame) = leaf.frame(run) else { continue };
            writeln!(
                f,
                "  {start}..{}: segment {}/{} frame {} at byte {}, blocks {}..{} of it, key epoch {}",
                start + u64::from(run.count),
                frame.incarnation,
                frame.segment,
                frame.frame,
                frame.offset,
                run.skip,
                u16::from(run.skip) + u16::from(run.count),
                frame.key_epoch
            )?;
        }
        Ok(())
    }

    fn inner(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Payload::Inner(inner) = &self.0 else { return Ok(()) };
        let end = inner.first.0 + level_blocks(inner.level);
        writeln!(
            f,
            "inner page of level {}, blocks {}..{end}: {} pages",
            inner.level,
            inner.first,
            inner.children.len()
        )?;
        if f.alternate() {
            return Ok(());
        }
        for child in &inner.children {
            writeln!(f, "  slot {}: {}", child.slot, Named(&child.page))?;
        }
        Ok(())
    }

    fn root(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Payload::Root(root) = &self.0 else { return Ok(()) };
        writeln!(f, "checkpoint root of sequence record {} (chain {})", root.cut.seq, root.cut.chain)?;
        writeln!(
            f,
            "journal position {} of epoch {} (chain {})",
            root.cut.last, root.cut.epoch, root.cut.journal_chain
        )?;
        writeln!(
            f,
            "volume of {} bytes, {} bytes mapped; level {}, {} pages, {} usage pages",
            root.size_blocks.saturating_mul(BLOCK_BYTES),
            root.mapped_blocks.saturating_mul(BLOCK_BYTES),
            root.level,
            root.children.len(),
            root.usage.len()
        )?;
        if f.alternate() {
            return Ok(());
        }
        for child in &root.children {
            writeln!(f, "  slot {}: {}", child.slot, Named(&child.page))?;
        }
        for usage in &root.usage {
            writeln!(f, "  usage {}/{}: {}", usage.index.incarnation, usage.index.index, Named(&usage.page))?;
        }
        Ok(())
    }

    fn usage(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Payload::Usage(usage) = &self.0 else { return Ok(()) };
        let live: u64 = usage.segments.iter().map(|segment| u64::from(segment.live_blocks)).sum();
        writeln!(
            f,
            "usage page {}/{}: {} segments, {live} live blocks",
            usage.index.incarnation,
            usage.index.index,
            usage.segments.len()
        )?;
        if f.alternate() {
            return Ok(());
        }
        for segment in &usage.segments {
            writeln!(f, "  {}: {} live blocks", Named(&segment.object), segment.live_blocks)?;
        }
        Ok(())
    }
}

/// An object as people read it.
struct Named<'a>(&'a ObjectRef);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ObjectRef { incarnation, number, bytes, hash } = self.0;
        write!(f, "object {incarnation}/{number}, {bytes} bytes, hash {hash}")
    }
}
