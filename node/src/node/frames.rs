//! Where a volume's clean blocks and map pages come from: the disk cache, and the clouds behind it.

use std::rc::Rc;

use bytes::Bytes;
use velum_protocol::{
    format::{location::Frame, metadata::ObjectRef},
    id::{BlockIndex, VolumeId},
};

use crate::{
    cache::{BlockLocation, DiskCache},
    cloud::{FetchError, Fetcher},
    env::Local,
    keyring::{KeySet, ObjectKind, SealKey},
    volume::{
        FrameSource,
        machine::{FetchFailure, Fetched},
    },
};

pub(super) struct VolumeFrames {
    volume: VolumeId,
    keys: KeySet,
    /// Seals this volume's slots in the disk cache. Slots of an earlier key epoch do not open, which is a miss.
    slots: SealKey,
    disk: DiskCache,
    fetcher: Fetcher,
}

impl VolumeFrames {
    /// `None` when the volume has no keys.
    pub(super) fn new(keys: &KeySet, disk: &DiskCache, fetcher: &Fetcher) -> Option<Rc<Self>> {
        Some(Rc::new(Self {
            volume: keys.volume(),
            keys: keys.clone(),
            slots: keys.newest()?.cache.clone(),
            disk: disk.clone(),
            fetcher: fetcher.clone(),
        }))
    }
}

impl FrameSource for VolumeFrames {
    fn frame(&self, frame: &Frame, wanted: u16) -> Local<Result<Fetched, FetchFailure>> {
        let places: Vec<u16> = (0..frame.blocks).filter(|place| wanted & (1 << place) != 0).collect();
        let block = |place: &u16| BlockIndex(frame.start.0 + u64::from(*place));
        let locations: Vec<BlockLocation> =
            places.iter().filter_map(|place| BlockLocation::of(self.volume, frame, block(place))).collect();
        let cached = locations
            .iter()
            .all(|location| self.disk.contains(location))
            .then(|| self.disk.get_run(locations, &self.slots));
        let fetched = self.keys.epoch(frame.key_epoch).map(|keys| self.fetcher.frame(self.volume, keys, frame));
        Box::pin(async move {
            if let Some(cached) = cached {
                let blocks: Option<Vec<Bytes>> = cached.await.into_iter().collect();
                if let Some(blocks) = blocks {
                    return Ok(Fetched::Blocks(places.into_iter().zip(blocks).collect()));
                }
            }
            match fetched {
                Some(fetched) => fetched.await.map(Fetched::Frame).map_err(|error| failure(&error)),
                None => Err(FetchFailure::Lost),
            }
        })
    }

    fn page(&self, page: &ObjectRef) -> Local<Result<Bytes, FetchFailure>> {
        let fetched = self.fetcher.object(ObjectKind::Page, self.volume, page);
        let (keys, page) = (self.keys.clone(), page.clone());
        Box::pin(async move {
            let stored = fetched.await.map_err(|error| failure(&error))?;
            // The hash was right, so what does not open was stored like that: no other copy is better.
            keys.open_page(&page, &stored).map(Bytes::from).map_err(|_| FetchFailure::Lost)
        })
    }

    fn keep(&self, blocks: Vec<(BlockLocation, Bytes)>) {
        for (location, contents) in blocks {
            self.disk.insert(location, contents, &self.slots);
        }
    }

    fn moved(&self, blocks: Vec<(BlockLocation, BlockLocation, Bytes)>) {
        // Only what was worth keeping before: a compaction must not push out what guests use.
        let kept = blocks.into_iter().filter(|(from, ..)| self.disk.contains(from));
        self.keep(kept.map(|(_, to, contents)| (to, contents)).collect());
    }
}

fn failure(error: &FetchError) -> FetchFailure {
    match error {
        FetchError::Lost { .. } => FetchFailure::Lost,
    }
}
