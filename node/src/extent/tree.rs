//! The tree of pages: slots, inner pages, and the walks over them.

use std::{cell::Cell, rc::Rc};

use velum_protocol::{
    format::{
        location::Frame,
        metadata::ObjectRef,
        page::{self, FAN_OUT, Payload, level_blocks},
    },
    id::BlockIndex,
};

use super::{
    Mapped, PageNeeded,
    leaf::Leaf,
    overlay::Overlay,
    residency::{PageKey, Residency},
    usage::UsageTable,
};

/// How many pages [`super::ExtentMap::pages_needed_for_checkpoint`] names at a time: enough to keep many fetches in
/// flight, small beside what the pages themselves take.
pub(super) const PAGES_NEEDED_MAX: usize = 256;

/// Blocks `start..end` of the volume, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Span {
    /// The part of it in `first..end`.
    fn clip(self, first: u64, end: u64) -> Self {
        Self { start: self.start.max(first), end: self.end.min(end) }
    }

    /// Start and end counted from the first block of a leaf it lies in.
    fn in_leaf(self, first: u64) -> (u16, u16) {
        let offset = |block: u64| u16::try_from(block - first).expect("a span in a leaf ends within 4,096 blocks");
        (offset(self.start), offset(self.end))
    }
}

/// A page's place in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Leaves are level 0.
    pub(super) level: u8,
    /// Counted over all pages that its level can have.
    pub(super) index: u64,
}

impl Place {
    pub(super) const fn of(level: u8, first: u64) -> Self {
        Self { level, index: first / level_blocks(level) }
    }

    /// The top of a tree of `level`.
    pub(super) const fn top(level: u8) -> Self {
        Self { level, index: 0 }
    }

    pub(super) const fn first(self) -> u64 {
        self.index * level_blocks(self.level)
    }

    const fn end(self) -> u64 {
        self.first() + level_blocks(self.level)
    }

    pub(super) fn child(self, slot: usize) -> Self {
        Self { level: self.level - 1, index: self.index * FAN_OUT + slot as u64 }
    }

    /// The slot of its child at `level` that `block` lies in.
    fn slot_of(self, block: u64) -> usize {
        let slot = (block - self.first()) / level_blocks(self.level - 1);
        usize::try_from(slot).expect("slots are below 256")
    }
}

/// What a change of the tree works on besides the tree.
pub(super) struct Context<'a> {
    pub(super) generation: u64,
    pub(super) usage: &'a mut UsageTable,
    pub(super) residency: &'a mut Residency,
}

/// What is known of one child page.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    /// Its object in the newest checkpoint.
    pub(super) stored: Option<Rc<ObjectRef>>,
    /// The generation it, or a page below it, last changed in since it was stored; 0 when it is as stored.
    pub(super) changed: u64,
    pub(super) child: Child,
}

/// Where a child page is.
#[derive(Clone, Debug, Default)]
pub(super) enum Child {
    /// Nothing is mapped there.
    #[default]
    Vacant,
    /// In the clouds as stored, with updates pending.
    Away(Overlay),
    /// Resident leaf, never without runs.
    Leaf(Rc<Leaf>),
    /// Resident inner page; all of its slots may be vacant until the next checkpoint.
    Inner(Rc<Inner>),
}

impl Slot {
    /// A slot that names a page in the clouds.
    fn away(page: ObjectRef) -> Self {
        Self { stored: Some(Rc::new(page)), changed: 0, child: Child::Away(Overlay::default()) }
    }

    /// A slot that holds an inner page which has no object yet.
    pub(super) fn unwritten(inner: Rc<Inner>, generation: u64, place: Place, residency: &mut Residency) -> Self {
        residency.enter(PageKey::Tree(place), Inner::WEIGHT);
        let mut slot = Self { stored: None, changed: 0, child: Child::Inner(inner) };
        residency.stamp(&mut slot.changed, generation);
        slot
    }

    /// Nothing is mapped here, nothing is stored, and no checkpoint has anything to settle here: a page that was written
    /// and trimmed again before it was ever stored is counted as changed still, and one under way may be storing it.
    pub(super) fn is_vacant(&self) -> bool {
        matches!(self.child, Child::Vacant) && self.stored.is_none() && self.changed == 0
    }

    /// Maps `span`, which lies in this page, to `frame`; false when that changes nothing.
    fn replace(&mut self, place: Place, span: Span, frame: Option<&Frame>, context: &mut Context<'_>) -> bool {
        if matches!(self.child, Child::Vacant) {
            if frame.is_none() {
                return false;
            }
            self.occupy(place, context.residency);
        }
        let changed = match &mut self.child {
            Child::Vacant => false,
            Child::Away(pending) => {
                let usage = &mut *context.usage;
                let (generation, residency) = (context.generation, &mut *context.residency);
                let before = pending.len();
                pending.replace(span, frame, |frame, blocks| {
                    usage.remove(frame.incarnation, frame.segment, blocks, generation, residency);
                });
                residency.pending_updates = residency.pending_updates + pending.len() - before;
                true
            }
            Child::Leaf(leaf) => {
                let (start, end) = span.in_leaf(place.first());
                let changed = frame.is_some() || leaf.overlaps(start, end);
                if changed {
                    replace_in_leaf(leaf, (start, end), frame, context);
                    let weight = leaf.weight();
                    if leaf.is_vacant() {
                        context.residency.leave(PageKey::Tree(place), weight);
                        self.child = Child::Vacant;
                    }
                }
                changed
            }
            Child::Inner(inner) => Rc::make_mut(inner).replace(place, span, frame, context),
        };
        if changed {
            context.residency.stamp(&mut self.changed, context.generation);
        }
        changed
    }

    /// Puts a resident page without content into a vacant slot.
    fn occupy(&mut self, place: Place, residency: &mut Residency) {
        let (child, weight) = if place.level == 0 {
            let leaf = Leaf::vacant(place.first());
            let weight = leaf.weight();
            (Child::Leaf(Rc::new(leaf)), weight)
        } else {
            (Child::Inner(Rc::new(Inner::vacant())), Inner::WEIGHT)
        };
        self.child = child;
        residency.enter(PageKey::Tree(place), weight);
    }

    fn lookup(&self, place: Place, span: Span, out: &mut Vec<Mapped>) -> Result<(), PageNeeded> {
        match &self.child {
            Child::Vacant => {
                push(out, Mapped { start: BlockIndex(span.start), count: span.end - span.start, location: None });
                Ok(())
            }
            Child::Away(pending) => {
                if pending.lookup(span, out) {
                    Ok(())
                } else {
                    Err(PageNeeded(self.stored_object().clone()))
                }
            }
            Child::Leaf(leaf) => {
                let (start, end) = span.in_leaf(place.first());
                leaf.lookup(start, end, out);
                Ok(())
            }
            Child::Inner(inner) => inner.lookup(place, span, out),
        }
    }

    /// Takes the page if it is the one this slot waits for, and merges what is pending on it.
    pub(super) fn page_loaded(&mut self, place: Place, page: &ObjectRef, payload: Payload, context: &mut Context<'_>) {
        if !matches!(self.child, Child::Away(_)) || self.stored.as_deref() != Some(page) {
            return;
        }
        let (child, weight) = match payload {
            Payload::Leaf(leaf) => {
                let leaf = Leaf::of(leaf);
                let weight = leaf.weight();
                (Child::Leaf(Rc::new(leaf)), weight)
            }
            Payload::Inner(inner) => (Child::Inner(Rc::new(Inner::of_children(&inner.children))), Inner::WEIGHT),
            Payload::Root(_) | Payload::Usage(_) => return,
        };
        context.residency.enter(PageKey::Tree(place), weight);
        let Child::Away(pending) = std::mem::replace(&mut self.child, child) else { return };
        context.residency.pending_updates -= pending.len();
        for (span, frame) in pending.into_updates() {
            self.replace(place, span, frame.as_ref(), context);
        }
    }

    /// Lets go of the page if it is as stored, not used lately and has no resident children.
    pub(super) fn evict(&mut self, place: Place, residency: &mut Residency) {
        if self.changed != 0 || self.stored.is_none() {
            return;
        }
        let weight = match &self.child {
            Child::Leaf(leaf) if !leaf.touched.replace(false) => leaf.weight(),
            Child::Inner(inner) if !inner.touched.replace(false) && !inner.has_resident() => Inner::WEIGHT,
            Child::Vacant | Child::Away(_) | Child::Leaf(_) | Child::Inner(_) => return,
        };
        residency.leave(PageKey::Tree(place), weight);
        self.child = Child::Away(Overlay::default());
    }

    /// A checkpoint of `generation` has written the page as `object`, `None` when nothing was left of it.
    pub(super) fn finish(
        &mut self,
        place: Place,
        generation: u64,
        object: Option<ObjectRef>,
        residency: &mut Residency,
    ) {
        self.stored = object.map(Rc::new);
        if self.changed > generation {
            return;
        }
        residency.unstamp(&mut self.changed);
        if self.stored.is_none() && matches!(self.child, Child::Inner(_)) {
            residency.leave(PageKey::Tree(place), Inner::WEIGHT);
            self.child = Child::Vacant;
        }
    }

    fn stored_object(&self) -> &ObjectRef {
        self.stored.as_deref().expect("a page that is away is stored")
    }
}

fn replace_in_leaf(leaf: &mut Rc<Leaf>, (start, end): (u16, u16), frame: Option<&Frame>, context: &mut Context<'_>) {
    let before = leaf.weight();
    let leaf = Rc::make_mut(leaf);
    let (usage, generation, residency) = (&mut *context.usage, context.generation, &mut *context.residency);
    leaf.replace(start, end, frame, |segment, blocks| {
        usage.remove(segment.incarnation, segment.number, blocks, generation, residency);
    });
    leaf.touched.set(true);
    context.residency.reweigh(before, leaf.weight());
}

/// An inner page in memory.
#[derive(Clone, Debug)]
pub(super) struct Inner {
    /// Always 256.
    slots: Vec<Slot>,
    /// Used since the clock hand came by.
    touched: Cell<bool>,
}

impl Inner {
    /// Memory one takes.
    #[expect(clippy::cast_possible_truncation, reason = "the fan-out is 256")]
    pub(super) const WEIGHT: u64 = (size_of::<Self>() + FAN_OUT as usize * (size_of::<Slot>() + 80)) as u64;

    pub(super) fn vacant() -> Self {
        Self { slots: (0..FAN_OUT).map(|_| Slot::default()).collect(), touched: Cell::new(true) }
    }

    /// An inner page whose children are all away.
    pub(super) fn of_children(children: &[page::Child]) -> Self {
        let mut inner = Self::vacant();
        for child in children {
            *inner.slots.get_mut(usize::from(child.slot)).expect(SLOTS) = Slot::away(child.page.clone());
        }
        inner
    }

    /// The slots with their numbers.
    pub(super) fn slots(&self) -> impl Iterator<Item = (u8, &Slot)> {
        (0..=u8::MAX).zip(&self.slots)
    }

    pub(super) fn is_vacant(&self) -> bool {
        self.slots.iter().all(Slot::is_vacant)
    }

    pub(super) fn set_first(&mut self, slot: Slot) {
        *self.slots.first_mut().expect(SLOTS) = slot;
    }

    /// Maps `span`, as far as it lies in this page; false when that changes nothing.
    pub(super) fn replace(
        &mut self,
        place: Place,
        span: Span,
        frame: Option<&Frame>,
        context: &mut Context<'_>,
    ) -> bool {
        self.touched.set(true);
        let (first, last) = (place.slot_of(span.start), place.slot_of(span.end - 1));
        let mut changed = false;
        for (at, slot) in self.slots.iter_mut().enumerate().take(last + 1).skip(first) {
            let child = place.child(at);
            changed |= slot.replace(child, span.clip(child.first(), child.end()), frame, context);
        }
        changed
    }

    pub(super) fn lookup(&self, place: Place, span: Span, out: &mut Vec<Mapped>) -> Result<(), PageNeeded> {
        self.touched.set(true);
        let (first, last) = (place.slot_of(span.start), place.slot_of(span.end - 1));
        for (at, slot) in self.slots.iter().enumerate().take(last + 1).skip(first) {
            let child = place.child(at);
            slot.lookup(child, span.clip(child.first(), child.end()), out)?;
        }
        Ok(())
    }

    /// The slot of the page at `place`; `None` when a page above it is not resident. Copies shared pages on the way.
    pub(super) fn slot_mut(top: &mut Rc<Self>, place: Place, level: u8) -> Option<&mut Slot> {
        if place.level >= level || place.first() >= level_blocks(level) {
            return None;
        }
        let mut at = Place::top(level);
        let mut inner = top;
        loop {
            let slot_index = at.slot_of(place.first());
            let slot = Rc::make_mut(inner).slots.get_mut(slot_index)?;
            at = at.child(slot_index);
            if at == place {
                return Some(slot);
            }
            let Child::Inner(below) = &mut slot.child else { return None };
            inner = below;
        }
    }

    /// Names pages that are away with updates pending, up to [`PAGES_NEEDED_MAX`].
    pub(super) fn pages_pending(&self, needed: &mut Vec<ObjectRef>) {
        for slot in self.slots.iter().filter(|slot| slot.changed != 0) {
            match &slot.child {
                Child::Away(_) if needed.len() < PAGES_NEEDED_MAX => needed.push(slot.stored_object().clone()),
                Child::Inner(inner) => inner.pages_pending(needed),
                Child::Away(_) | Child::Vacant | Child::Leaf(_) => {}
            }
        }
    }

    fn has_resident(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot.child, Child::Leaf(_) | Child::Inner(_)))
    }
}

const SLOTS: &str = "an inner page has 256 slots";

/// Appends a run to an answer, joining what says the same.
pub(super) fn push(out: &mut Vec<Mapped>, next: Mapped) {
    if let Some(last) = out.last_mut()
        && last.location == next.location
        && last.start.0 + last.count == next.start.0
    {
        last.count += next.count;
    } else {
        out.push(next);
    }
}
