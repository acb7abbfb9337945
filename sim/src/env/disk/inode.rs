//! One file's bytes: what the page cache shows, what the medium holds, and every version in between.

use std::{collections::BTreeMap, rc::Rc};

use crate::rng::Rng;

/// Bytes in a page of the page cache, the unit of write-back.
pub const PAGE: usize = 4096;
/// Bytes in a sector, the unit the medium writes atomically.
pub const SECTOR: usize = 512;
/// Versions of one dirty page kept apart; with more, the ones in the middle can no longer be what a crash leaves.
const VERSIONS_MAX: usize = 8;

type Page = Rc<[u8; PAGE]>;
type Pages = BTreeMap<u64, Page>;

/// What a crash of the machine makes of unsynced writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Everything had been written back just in time.
    KeepAll,
    /// Nothing had been written back.
    LoseAll,
    /// Each page on its own: kept, lost, or some version in between.
    Pages,
    /// Like `Pages`, and some pages are torn between versions at sector bounds.
    Torn,
}

/// A file's contents.
#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    current: Pages,
    size: u64,
    durable: Pages,
    durable_size: u64,
    /// Unsynced versions of each page, oldest first; the last one is the current page.
    dirty: BTreeMap<u64, Vec<Page>>,
    /// Unsynced sizes, oldest first.
    sizes: Vec<u64>,
}

/// What a sync that starts now must make durable.
pub(super) struct SyncPoint {
    pages: Vec<(u64, Page)>,
    size: u64,
    sizes: usize,
}

impl Inode {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that the file takes on the medium, pages never written being holes.
    pub(super) fn allocated(&self) -> u64 {
        (self.current.len() * PAGE) as u64
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (index, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let len = rest.len().min(PAGE - within);
            let page = self.current.entry(index).or_insert_with(|| Rc::new([0; PAGE]));
            Rc::make_mut(page)[within..within + len].copy_from_slice(&rest[..len]);
            let versions = self.dirty.entry(index).or_default();
            if versions.len() == VERSIONS_MAX {
                versions.remove(VERSIONS_MAX / 2);
            }
            versions.push(Rc::clone(page));
            rest = &rest[len..];
            at += len as u64;
        }
        if at > self.size {
            self.size = at;
            self.sizes.push(at);
        }
    }

    pub(super) fn set_size(&mut self, size: u64) {
        if size < self.size {
            // Cut pages read as zeros when the file grows again; the medium keeps them until the next sync or crash.
            let kept = size.div_ceil(PAGE as u64);
            for index in self.current.split_off(&kept).into_keys() {
                self.dirty.entry(index).or_default().push(Rc::new([0; PAGE]));
            }
            let within = (size % PAGE as u64) as usize;
            if within > 0 && self.current.contains_key(&(kept - 1)) {
                self.write(size, &vec![0; PAGE - within]);
            }
        }
        self.size = size;
        self.sizes.push(size);
    }

    /// `None` when the range leaves the file.
    pub(super) fn read(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        if offset.checked_add(len as u64)? > self.size {
            return None;
        }
        let mut out = vec![0; len];
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (index, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let count = (len - done).min(PAGE - within);
            if let Some(page) = self.current.get(&index) {
                out[done..done + count].copy_from_slice(&page[within..within + count]);
            }
            done += count;
        }
        Some(out)
    }

    pub(super) fn sync_point(&self) -> SyncPoint {
        let newest = |(index, versions): (&u64, &Vec<Page>)| versions.last().map(|page| (*index, Rc::clone(page)));
        SyncPoint { pages: self.dirty.iter().filter_map(newest).collect(), size: self.size, sizes: self.sizes.len() }
    }

    /// Ends a sync. With `failed`, the page cache calls the pages clean although only some of them reached the medium.
    pub(super) fn synced(&mut self, point: SyncPoint, failed: Option<&Rng>) {
        for (index, page) in point.pages {
            let Some(versions) = self.dirty.get_mut(&index) else { continue };
            let Some(through) = versions.iter().position(|version| Rc::ptr_eq(version, &page)) else { continue };
            versions.drain(..=through);
            if versions.is_empty() {
                self.dirty.remove(&index);
            }
            if failed.is_none_or(|rng| rng.chance(500_000)) {
                self.durable.insert(index, page);
            }
        }
        if failed.is_none() {
            self.durable_size = point.size;
            let kept = point.size.div_ceil(PAGE as u64);
            self.durable.retain(|index, _| *index < kept);
        }
        self.sizes.drain(..point.sizes.min(self.sizes.len()));
    }

    /// The machine lost power.
    pub(super) fn crash(&mut self, loss: Loss, rng: &Rng) {
        let keep = |count: usize| match loss {
            Loss::KeepAll => count,
            Loss::LoseAll => 0,
            Loss::Pages | Loss::Torn => rng.below(count as u64 + 1) as usize,
        };
        if let Some(last) = keep(self.sizes.len()).checked_sub(1) {
            self.durable_size = self.sizes[last];
        }
        for (index, versions) in std::mem::take(&mut self.dirty) {
            let old = self.durable.get(&index).cloned();
            let version = |kept: usize| if kept == 0 { old.clone() } else { Some(Rc::clone(&versions[kept - 1])) };
            let left = if loss == Loss::Torn && rng.chance(300_000) {
                let mut torn = [0; PAGE];
                for (at, sector) in torn.chunks_exact_mut(SECTOR).enumerate() {
                    if let Some(page) = version(keep(versions.len())) {
                        sector.copy_from_slice(&page[at * SECTOR..(at + 1) * SECTOR]);
                    }
                }
                Some(Rc::new(torn))
            } else {
                version(keep(versions.len()))
            };
            if let Some(page) = left {
                self.durable.insert(index, page);
            }
        }
        self.settle();
    }

    /// Makes the page cache what the medium holds.
    pub(super) fn settle(&mut self) {
        let kept = self.durable_size.div_ceil(PAGE as u64);
        self.durable.retain(|index, _| *index < kept);
        let within = (self.durable_size % PAGE as u64) as usize;
        if within > 0
            && let Some(last) = self.durable.get_mut(&(kept - 1))
        {
            Rc::make_mut(last)[within..].fill(0);
        }
        self.sizes.clear();
        self.dirty.clear();
        self.size = self.durable_size;
        self.current.clone_from(&self.durable);
    }

    /// Places of bytes that no completed sync has brought to the medium.
    pub(super) fn unsynced(&self) -> impl Iterator<Item = u64> + '_ {
        self.dirty.keys().flat_map(|index| {
            let (current, durable) = (self.current.get(index), self.durable.get(index));
            let byte = |page: Option<&Page>, at: usize| page.map_or(0, |page| page[at]);
            let differs = move |at: &usize| byte(current, *at) != byte(durable, *at);
            (0..PAGE).filter(differs).map(move |at| index * PAGE as u64 + at as u64)
        })
    }

    /// Flips one bit of the medium and of the page cache; `false` when the file has no page to rot.
    pub(super) fn rot(&mut self, rng: &Rng) -> bool {
        let Some(index) = self.durable.keys().nth(rng.below(self.durable.len().max(1) as u64) as usize).copied() else {
            return false;
        };
        let bit = rng.below(PAGE as u64 * 8) as usize;
        for pages in [&mut self.durable, &mut self.current] {
            if let Some(page) = pages.get_mut(&index) {
                Rc::make_mut(page)[bit / 8] ^= 1 << (bit % 8);
            }
        }
        true
    }

    /// Every page that the file holds now, for scans of everything at rest.
    pub(super) fn pages(&self) -> impl Iterator<Item = &[u8; PAGE]> {
        self.current.values().map(|page| &**page)
    }
}
