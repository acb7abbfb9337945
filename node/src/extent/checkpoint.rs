//! Writing the map to the clouds.
//!
//! A plan holds the changed pages of one instant, shared with the map, which goes on changing copies of its own. The
//! caller takes pages in order, seals each, says what object it became, and stores the objects in any order; at last the
//! root. When Raft has taken the checkpoint, it is finished: pages untouched since are equal to their objects now.

use std::{collections::BTreeMap, rc::Rc};

use velum_protocol::{
    format::{
        metadata::ObjectRef,
        page::{Child as ChildRef, Cut, InnerPayload, RootPayload, USAGE_PAGES_MAX, UsageIndex, UsageRef},
    },
    id::{BlockIndex, Hash, Incarnation, ObjectNumber},
};

use super::{
    ExtentMap,
    leaf::Leaf,
    residency::PageKey,
    tree::{Child, Inner, Place, Slot},
    usage::{Table, UsagePage, UsageTable},
};

/// Why a checkpoint cannot begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointRefused {
    /// The plan before is neither finished nor abandoned.
    #[error("a checkpoint is being written already")]
    Running,
    /// Load what [`ExtentMap::pages_needed_for_checkpoint`] names first.
    #[error("pages with pending updates are not loaded")]
    PagesNeeded,
    /// The volume's live segments are spread over more usage pages than a root names.
    #[error("live segments are spread too thin for a root to name their usage pages")]
    TooManyUsagePages,
    /// Blocks are mapped to a segment that [`ExtentMap::add_segment`] was not told of: a defect of the caller.
    #[error("segment {incarnation}/{segment} is referred to and was never named")]
    Unnamed {
        /// The cluster life.
        incarnation: Incarnation,
        /// The segment.
        segment: ObjectNumber,
    },
}

/// One page to seal and store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagePlan {
    /// Its object number.
    pub number: ObjectNumber,
    /// What to seal.
    pub payload: Vec<u8>,
}

/// The changed pages of one instant of a map.
#[derive(Debug)]
pub struct CheckpointPlan {
    incarnation: Incarnation,
    /// Changes stamped up to here are in the plan.
    generation: u64,
    /// Children before their parents.
    pages: Vec<Planned>,
    /// Pages handed out so far.
    next: usize,
    /// What became of each page handed out or gone.
    written: BTreeMap<PageKey, Option<ObjectRef>>,
    /// The page handed out last, until its object is known.
    awaited: Option<(PageKey, ObjectNumber)>,
    condemned: Vec<ObjectRef>,
    /// Those of the condemned that were written for abandoned checkpoints.
    orphans: Vec<ObjectRef>,
    /// Segments among the condemned.
    dead: BTreeMap<UsageIndex, Vec<ObjectNumber>>,
    root: RootPlan,
}

#[derive(Debug)]
struct Planned {
    key: PageKey,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// Nothing is left of the page.
    Gone,
    Leaf(ObjectNumber, Rc<Leaf>),
    Inner(ObjectNumber, Place, Rc<Inner>),
    Usage(ObjectNumber, UsageIndex, Rc<UsagePage>),
}

#[derive(Debug)]
struct RootPlan {
    number: ObjectNumber,
    size_blocks: u64,
    mapped_blocks: u64,
    level: u8,
    top: Rc<Inner>,
    /// Usage pages that need not be written.
    usage_kept: Vec<UsageRef>,
}

impl CheckpointPlan {
    /// Pages to write, the root not counted.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.pages.iter().filter(|page| !matches!(page.content, Content::Gone)).count()
    }

    /// The next page to seal, children before parents; `None` when only the root is left. Encodes one page per call.
    ///
    /// # Panics
    /// When the page handed out before has not been [sealed](Self::page_sealed).
    pub fn next_page(&mut self) -> Option<PagePlan> {
        assert!(self.awaited.is_none(), "each page's object is made known before the next page is asked for");
        loop {
            let planned = self.pages.get(self.next)?;
            self.next += 1;
            let page = match &planned.content {
                Content::Gone => {
                    self.written.insert(planned.key, None);
                    continue;
                }
                Content::Leaf(number, leaf) => PagePlan { number: *number, payload: leaf.canonical().encode() },
                Content::Usage(number, index, page) => {
                    PagePlan { number: *number, payload: page.payload(*index).encode() }
                }
                Content::Inner(number, place, inner) => {
                    let children = self.children(*place, inner);
                    let payload = InnerPayload { level: place.level, first: BlockIndex(place.first()), children };
                    PagePlan { number: *number, payload: payload.encode() }
                }
            };
            self.awaited = Some((planned.key, page.number));
            return Some(page);
        }
    }

    /// Makes known how long the page handed out last is when sealed, and its hash. Returns the object's name for storing it.
    ///
    /// # Panics
    /// When no page was handed out.
    pub fn page_sealed(&mut self, bytes: u64, hash: Hash) -> ObjectRef {
        let (key, number) = self.awaited.take().expect("an object is made known after its page was handed out");
        let object = ObjectRef { incarnation: self.incarnation, number, bytes, hash };
        self.written.insert(key, Some(object.clone()));
        object
    }

    /// The root, once all pages are sealed.
    ///
    /// # Panics
    /// When pages are left.
    #[must_use]
    pub fn root(&self, cut: &Cut) -> PagePlan {
        assert!(self.awaited.is_none() && self.next == self.pages.len(), "the root comes after all pages");
        let RootPlan { number, size_blocks, mapped_blocks, level, top, usage_kept } = &self.root;
        let mut usage = usage_kept.clone();
        for (key, object) in &self.written {
            if let (PageKey::Usage(index), Some(object)) = (key, object) {
                usage.push(UsageRef { index: *index, page: object.clone() });
            }
        }
        usage.sort_unstable_by_key(|usage| usage.index);
        let payload = RootPayload {
            cut: *cut,
            size_blocks: *size_blocks,
            mapped_blocks: *mapped_blocks,
            level: *level,
            children: self.children(Place::top(*level), top),
            usage,
        };
        PagePlan { number: *number, payload: payload.encode() }
    }

    /// Objects that this checkpoint does not refer to and the one before did, or that were written in vain: superseded
    /// pages, the root before, dead segments.
    #[must_use]
    pub fn condemned(&self) -> &[ObjectRef] {
        &self.condemned
    }

    /// Objects of the pages sealed so far, in order.
    pub fn sealed(&self) -> impl Iterator<Item = &ObjectRef> {
        self.written.values().flatten()
    }

    fn children(&self, place: Place, inner: &Inner) -> Vec<ChildRef> {
        let mut children = Vec::new();
        for (at, slot) in inner.slots() {
            let page = if slot.changed == 0 {
                slot.stored.as_deref().cloned()
            } else {
                let key = PageKey::Tree(place.child(usize::from(at)));
                self.written.get(&key).expect("children are sealed before their parents").clone()
            };
            children.extend(page.map(|page| ChildRef { slot: at, page }));
        }
        children
    }
}

impl ExtentMap {
    /// Plans a checkpoint of this instant. `numbers` hands out an object number per page and one for the root, which is
    /// the last; [`ExtentMap::changed_pages`] says how many at most, less the root.
    ///
    /// # Errors
    /// When a checkpoint is being written, or pages must be loaded first; no number is used up then.
    pub fn begin_checkpoint(
        &mut self,
        numbers: &mut dyn FnMut() -> ObjectNumber,
        incarnation: Incarnation,
    ) -> Result<CheckpointPlan, CheckpointRefused> {
        if self.checkpointing {
            return Err(CheckpointRefused::Running);
        }
        if !self.pages_needed_for_checkpoint().is_empty() {
            return Err(CheckpointRefused::PagesNeeded);
        }
        if self.usage.slots().count() > USAGE_PAGES_MAX {
            return Err(CheckpointRefused::TooManyUsagePages);
        }
        self.check_segments_named()?;
        let orphans = std::mem::take(&mut self.orphans);
        let mut pages = Pages { planned: Vec::new(), condemned: orphans.clone(), numbers };
        pages.condemned.extend(self.root.clone());
        pages.plan_inner(Place::top(self.level), &self.top);
        let (usage_kept, dead) = pages.plan_usage(&self.usage);
        let Pages { planned, condemned, numbers } = pages;
        let plan = CheckpointPlan {
            incarnation,
            generation: self.generation,
            pages: planned,
            next: 0,
            written: BTreeMap::new(),
            awaited: None,
            condemned,
            orphans,
            dead,
            root: RootPlan {
                number: numbers(),
                size_blocks: self.size_blocks,
                mapped_blocks: self.usage.mapped_blocks(),
                level: self.level,
                top: Rc::clone(&self.top),
                usage_kept,
            },
        };
        self.generation += 1;
        self.checkpointing = true;
        Ok(plan)
    }

    /// Raft has taken the checkpoint, whose root object is `root`.
    ///
    /// # Panics
    /// When the plan is not wholly sealed or not the one begun last.
    pub fn finish_checkpoint(&mut self, plan: CheckpointPlan, root: ObjectRef) {
        let CheckpointPlan { generation, pages, mut written, dead, root: shared, .. } = plan;
        assert!(self.checkpointing && generation + 1 == self.generation, "the plan begun last is finished");
        assert_eq!(written.len(), pages.len(), "every page is sealed before a checkpoint is finished");
        self.checkpointing = false;
        let keys: Vec<PageKey> = pages.into_iter().map(|page| page.key).collect();
        // The plan's shares are gone now: else marking pages clean would copy each of them.
        drop(shared);
        for key in keys {
            let object = written.remove(&key).expect("every planned page is sealed");
            match key {
                PageKey::Tree(place) => {
                    let slot = Inner::slot_mut(&mut self.top, place, self.level)
                        .expect("a page stays resident from its change to the end of the checkpoint");
                    slot.finish(place, generation, object, &mut self.residency);
                }
                PageKey::Usage(index) => {
                    let dead = dead.get(&index).map_or(&[][..], Vec::as_slice);
                    self.usage.finish(index, generation, object, dead, &mut self.residency);
                }
            }
        }
        self.root = Some(root);
    }

    /// The checkpoint will not be taken. Its pages are condemned by the next one, and so is `root` if it was stored.
    pub fn abandon_checkpoint(&mut self, plan: CheckpointPlan, root: Option<ObjectRef>) {
        self.checkpointing = false;
        // What the plan condemned is found again by the next plan, but for orphans: those only the plan knows.
        let CheckpointPlan { written, orphans, .. } = plan;
        self.orphans.extend(orphans);
        self.orphans.extend(written.into_values().flatten().chain(root));
    }

    fn check_segments_named(&self) -> Result<(), CheckpointRefused> {
        for (index, slot) in self.usage.slots() {
            if slot.changed != 0
                && let Table::Here(page) = &slot.table
                && let Some(segment) = page.unnamed()
            {
                return Err(CheckpointRefused::Unnamed { incarnation: index.incarnation, segment });
            }
        }
        Ok(())
    }
}

/// A plan in the making.
struct Pages<'a> {
    planned: Vec<Planned>,
    condemned: Vec<ObjectRef>,
    numbers: &'a mut dyn FnMut() -> ObjectNumber,
}

impl Pages<'_> {
    /// Plans the changed pages below `inner`, children first; false when nothing is left in any of its slots.
    fn plan_inner(&mut self, place: Place, inner: &Inner) -> bool {
        let mut occupied = false;
        for (at, slot) in inner.slots() {
            occupied |=
                if slot.changed == 0 { !slot.is_vacant() } else { self.plan_slot(place.child(usize::from(at)), slot) };
        }
        occupied
    }

    /// Plans a changed page and what changed below it; false when nothing is left of it.
    fn plan_slot(&mut self, place: Place, slot: &Slot) -> bool {
        self.condemned.extend(slot.stored.as_deref().cloned());
        let content = match &slot.child {
            Child::Leaf(leaf) => Content::Leaf((self.numbers)(), Rc::clone(leaf)),
            Child::Inner(inner) if self.plan_inner(place, inner) => {
                Content::Inner((self.numbers)(), place, Rc::clone(inner))
            }
            // A page that is away does not stand here: it was asked for before the checkpoint could begin.
            Child::Vacant | Child::Inner(_) | Child::Away(_) => Content::Gone,
        };
        let occupied = !matches!(content, Content::Gone);
        self.planned.push(Planned { key: PageKey::Tree(place), content });
        occupied
    }

    /// Plans the changed usage pages; returns those that stay as they are, and the dead segments.
    fn plan_usage(&mut self, usage: &UsageTable) -> (Vec<UsageRef>, BTreeMap<UsageIndex, Vec<ObjectNumber>>) {
        let mut kept = Vec::new();
        let mut dead = BTreeMap::new();
        for (index, slot) in usage.slots() {
            let stored = slot.stored.as_deref().cloned();
            match &slot.table {
                Table::Here(page) if slot.changed != 0 => {
                    self.condemned.extend(stored);
                    self.condemned.extend(page.dead_objects().cloned());
                    dead.insert(index, page.dead_numbers().collect());
                    let content = if page.is_vacant() {
                        Content::Gone
                    } else {
                        Content::Usage((self.numbers)(), index, Rc::clone(page))
                    };
                    self.planned.push(Planned { key: PageKey::Usage(index), content });
                }
                Table::Here(_) | Table::Away(_) => kept.extend(stored.map(|page| UsageRef { index, page })),
            }
        }
        (kept, dead)
    }
}
