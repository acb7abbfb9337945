//! The disk cache under restarts and damage: whatever happens to its files, a block is right or not there.

#![expect(clippy::cast_possible_truncation, reason = "numbers in these tests are small")]

use std::{
    cell::Cell,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use velum_protocol::id::{Incarnation, KeyEpoch, ObjectNumber, VolumeId};

use super::*;
use crate::{
    env::{
        Clock, Clouds, Compute, Disk, Entropy, File, Listener, Local, Network, OpenMode, Urgency, WallTime,
        network::Address,
    },
    keyring::{ProviderSecret, create_cluster},
};

/// Files in memory, and what is to go wrong with them.
#[derive(Clone, Default)]
struct MemoryDisk(Rc<DiskState>);

#[derive(Default)]
struct DiskState {
    files: RefCell<BTreeMap<PathBuf, Rc<MemoryFile>>>,
    full: Cell<bool>,
    reads: Cell<u32>,
    writes: Cell<u32>,
}

#[derive(Default)]
struct MemoryFile {
    bytes: RefCell<Vec<u8>>,
}

struct OpenFile {
    file: Rc<MemoryFile>,
    disk: Rc<DiskState>,
}

fn ready<T: 'static>(value: T) -> Local<T> {
    Box::pin(std::future::ready(value))
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Local<io::Result<Rc<dyn File>>> {
        let mut files = self.0.files.borrow_mut();
        let existing = files.get(path).cloned();
        let file = match (existing, mode) {
            (Some(_), OpenMode::CreateNew) => return ready(Err(io::ErrorKind::AlreadyExists.into())),
            (None, OpenMode::Read | OpenMode::ReadWrite) => return ready(Err(io::ErrorKind::NotFound.into())),
            (Some(file), OpenMode::Read | OpenMode::ReadWrite) => file,
            (None, OpenMode::CreateNew) => Rc::clone(files.entry(path.to_owned()).or_default()),
        };
        ready(Ok(Rc::new(OpenFile { file, disk: Rc::clone(&self.0) })))
    }

    fn list(&self, _dir: &Path) -> Local<io::Result<Vec<String>>> {
        let files = self.0.files.borrow();
        ready(Ok(files.keys().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()))
    }

    fn create_dir_all(&self, _dir: &Path) -> Local<io::Result<()>> {
        ready(Ok(()))
    }

    fn rename(&self, _from: &Path, _to: &Path) -> Local<io::Result<()>> {
        unimplemented_here()
    }

    fn remove(&self, path: &Path) -> Local<io::Result<()>> {
        let removed = self.0.files.borrow_mut().remove(path);
        ready(removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into()))
    }

    fn sync_dir(&self, _dir: &Path) -> Local<io::Result<()>> {
        unimplemented_here()
    }

    fn boot(&self) -> Local<io::Result<velum_protocol::id::BootId>> {
        unimplemented_here()
    }

    fn lock(&self, _path: PathBuf) -> Local<io::Result<Box<dyn std::any::Any>>> {
        unimplemented_here()
    }
}

impl File for OpenFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.disk.full.get() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk.writes.set(self.disk.writes.get() + 1);
        let mut file = self.file.bytes.borrow_mut();
        let (from, to) = (offset as usize, offset as usize + bytes.len());
        if file.len() < to {
            file.resize(to, 0);
        }
        file[from..to].copy_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, offset: u64, len: usize) -> Local<io::Result<Bytes>> {
        self.disk.reads.set(self.disk.reads.get() + 1);
        let file = self.file.bytes.borrow();
        let found = file.get(offset as usize..offset as usize + len).map(Bytes::copy_from_slice);
        ready(found.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
    }

    fn sync(&self) -> Local<io::Result<()>> {
        unimplemented_here()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.bytes.borrow().len() as u64)
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.file.bytes.borrow_mut().resize(bytes as usize, 0);
        Ok(())
    }
}

fn unimplemented_here<T>() -> T {
    panic!("the disk cache does not ask for this");
}

/// Everything else the cache asks of the world.
#[derive(Default)]
struct Rest {
    now: Cell<u64>,
    drawn: Cell<u64>,
}

impl Clock for Rest {
    fn now(&self) -> Instant {
        Instant(self.now.get())
    }

    fn wall(&self) -> WallTime {
        WallTime(0)
    }

    fn sleep(&self, _duration: Duration) -> Local<()> {
        unimplemented_here()
    }
}

impl Entropy for Rest {
    fn fill(&self, bytes: &mut [u8]) {
        self.drawn.set(self.drawn.get() + 1);
        blake3::Hasher::new().update(&self.drawn.get().to_le_bytes()).finalize_xof().fill(bytes);
    }
}

impl Compute for Rest {
    fn run(&self, _: Urgency, job: Box<dyn FnOnce() + Send>) -> Local<()> {
        job();
        ready(())
    }
}

impl Network for Rest {
    fn listen(&self, _address: &Address) -> Local<io::Result<Rc<dyn Listener>>> {
        unimplemented_here()
    }
}

impl Clouds for Rest {
    fn open(
        &self,
        _url: &str,
        _options: &BTreeMap<String, String>,
    ) -> Result<Rc<dyn crate::env::CloudStore>, crate::env::CloudStoreError> {
        unimplemented_here()
    }
}

struct World {
    disk: MemoryDisk,
    rest: Rc<Rest>,
    key: SealKey,
    bytes_max: u64,
}

/// A cache file of so many slots.
fn bytes_for(slots: u64) -> u64 {
    4096 + slots * (SLOT_BYTES as u64 + 48)
}

impl World {
    fn new(bytes_max: u64) -> Self {
        Self { disk: MemoryDisk::default(), rest: Rc::default(), key: key(VolumeId([9; 16])), bytes_max }
    }

    fn env(&self) -> Env {
        Env {
            clock: self.rest.clone(),
            entropy: self.rest.clone(),
            disk: Rc::new(self.disk.clone()),
            network: self.rest.clone(),
            clouds: self.rest.clone(),
            compute: self.rest.clone(),
        }
    }

    fn settings(&self) -> DiskCacheSettings {
        DiskCacheSettings {
            dir: PathBuf::from("/cache"),
            bytes_max: self.bytes_max,
            cluster: ClusterId([1; 16]),
            node: NodeId(2),
        }
    }

    async fn open(&self) -> DiskCache {
        DiskCache::open(&self.env(), self.settings()).await
    }

    async fn fill(&self, cache: &DiskCache, numbers: std::ops::Range<u64>) {
        for number in numbers {
            cache.insert(at(number), contents(number), &self.key);
        }
        while !cache.is_idle() {
            tokio::task::yield_now().await;
        }
    }

    /// Reads blocks, checks that each is right or not there, and counts those that are there.
    async fn read(&self, cache: &DiskCache, numbers: std::ops::Range<u64>) -> usize {
        let blocks = cache.get_run(numbers.clone().map(at).collect(), &self.key).await;
        for (number, block) in numbers.zip(&blocks) {
            assert!(
                block.as_ref().is_none_or(|block| *block == contents(number)),
                "block {number} is right or not there"
            );
        }
        blocks.iter().flatten().count()
    }

    /// Changes the bytes of every cache file.
    fn damage(&self, mut change: impl FnMut(&mut Vec<u8>)) {
        for file in self.disk.0.files.borrow().values() {
            change(&mut file.bytes.borrow_mut());
        }
    }

    fn file_count(&self) -> usize {
        self.disk.0.files.borrow().len()
    }
}

fn key(volume: VolumeId) -> SealKey {
    let entropy = Rest::default();
    entropy.drawn.set(u64::from(volume.0[0]) << 32);
    let secret = ProviderSecret::from_keyfile(0o600, (0..32).collect()).unwrap();
    let keyring = create_cluster(&entropy, &secret).unwrap().keyring;
    let wrapped = keyring.new_volume_keys(&entropy, volume, KeyEpoch(1));
    keyring.volume(volume, &wrapped).unwrap().cache
}

fn at(number: u64) -> BlockLocation {
    BlockLocation {
        volume: VolumeId([9; 16]),
        incarnation: Incarnation(1),
        segment: ObjectNumber(number / 16),
        frame: (number % 16) as u32,
        block: 3,
    }
}

fn contents(number: u64) -> Bytes {
    let mut contents = vec![0; BLOCK_LEN];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut contents);
    contents.into()
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test());
}

#[test]
fn blocks_are_found_again_also_after_a_restart() {
    run(async || {
        let world = World::new(bytes_for(100));
        let cache = world.open().await;
        assert_eq!(cache.get(&at(1), &world.key).await, None);
        world.fill(&cache, 0..50).await;
        assert_eq!(world.read(&cache, 0..60).await, 50);
        let cache = world.open().await;
        assert_eq!(world.read(&cache, 0..60).await, 50);
        assert_eq!((cache.stats().blocks, cache.stats().discarded), (50, 0));
        world.fill(&cache, 50..100).await;
        assert_eq!(world.read(&cache, 0..100).await, 100, "a restarted cache goes on in its empty slots");
    });
}

#[test]
fn adjacent_blocks_are_written_and_read_together() {
    run(async || {
        let world = World::new(bytes_for(1000));
        let cache = world.open().await;
        world.fill(&cache, 0..512).await;
        assert_eq!(world.disk.0.writes.get(), 1 + 2 * 8, "a header, and two writes per batch of 64");
        world.disk.0.reads.set(0);
        assert_eq!(world.read(&cache, 0..256).await, 256);
        assert_eq!(world.disk.0.reads.get(), 4, "runs of 64 slots");
    });
}

#[test]
fn files_are_made_as_the_cache_grows_and_never_beyond_the_limit() {
    run(async || {
        let world = World::new(2 * FILE_BYTES + 5);
        let cache = world.open().await;
        assert_eq!(world.file_count(), 0, "a fresh cache takes nothing");
        world.fill(&cache, 0..10).await;
        assert_eq!(world.file_count(), 1);
        for file in world.disk.0.files.borrow().values() {
            assert_eq!(file.bytes.borrow().len() as u64, FILE_BYTES);
        }
    });
}

#[test]
fn a_full_cache_evicts_and_keeps_what_is_read() {
    run(async || {
        let world = World::new(bytes_for(100));
        let cache = world.open().await;
        world.fill(&cache, 0..100).await;
        for _ in 0..3 {
            world.read(&cache, 0..20).await;
        }
        world.fill(&cache, 1000..1240).await;
        assert_eq!(world.read(&cache, 0..20).await, 20, "the working set outlives a scan three times the cache");
        assert!(world.read(&cache, 20..100).await < 10);
        assert_eq!(cache.stats().blocks, 100);
        world.damage(|file| assert_eq!(file.len() as u64, bytes_for(100)));
    });
}

#[test]
fn a_cache_smaller_than_a_batch_works() {
    run(async || {
        let world = World::new(bytes_for(3));
        let cache = world.open().await;
        world.fill(&cache, 0..100).await;
        assert_eq!(world.read(&cache, 0..100).await, 3);
        let none = World { bytes_max: 0, ..World::new(0) };
        let cache = none.open().await;
        none.fill(&cache, 0..10).await;
        assert_eq!((none.read(&cache, 0..10).await, none.file_count()), (0, 0));
    });
}

#[test]
fn a_flipped_bit_anywhere_costs_at_most_what_it_hits() {
    run(async || {
        let world = World::new(bytes_for(4));
        let cache = world.open().await;
        world.fill(&cache, 0..4).await;
        for position in (0..bytes_for(4)).step_by(41) {
            world.damage(|file| file[position as usize] ^= 0x40);
            let cache = world.open().await;
            let found = world.read(&cache, 0..4).await;
            let expected = match position {
                0..64 => 0,
                64..4096 => 4,
                _ => 3,
            };
            assert_eq!(found, expected, "bit at {position}");
            if found == 0 {
                world.fill(&cache, 0..4).await;
            } else {
                world.damage(|file| file[position as usize] ^= 0x40);
            }
        }
    });
}

#[test]
fn damage_while_running_is_a_miss_and_heals_by_refilling() {
    run(async || {
        let world = World::new(bytes_for(50));
        let cache = world.open().await;
        world.fill(&cache, 0..50).await;
        world.damage(|file| file[4096..].fill(0xee));
        assert_eq!(world.read(&cache, 0..50).await, 0);
        assert_eq!((cache.stats().blocks, cache.stats().discarded), (0, 50));
        world.fill(&cache, 0..50).await;
        assert_eq!(world.read(&cache, 0..50).await, 50);

        world.damage(|file| file.truncate(9000));
        assert_eq!(world.read(&cache, 0..50).await, 0);
        world.fill(&cache, 0..50).await;
        assert_eq!(world.read(&cache, 0..50).await, 50);
        assert_eq!(cache.stats().failures, 0);
    });
}

#[test]
fn a_cut_file_keeps_what_is_left_of_it_over_a_restart() {
    run(async || {
        let world = World::new(bytes_for(50));
        let cache = world.open().await;
        world.fill(&cache, 0..50).await;
        for length in [bytes_for(50) - 1, 4096 + 50 * 48 + 10 * SLOT_BYTES as u64, 5000, 64, 63, 0] {
            world.damage(|file| file.truncate(length as usize));
            let cache = world.open().await;
            let found = world.read(&cache, 0..50).await as u64;
            let slots_left = length.saturating_sub(4096 + 50 * 48) / SLOT_BYTES as u64;
            assert_eq!(found, slots_left, "cut to {length} bytes");
        }
    });
}

#[test]
fn deleted_files_are_made_anew() {
    run(async || {
        let world = World::new(bytes_for(50));
        let cache = world.open().await;
        world.fill(&cache, 0..50).await;
        world.disk.0.files.borrow_mut().clear();
        assert_eq!(world.read(&cache, 0..50).await, 50, "an open file outlives its name");
        let cache = world.open().await;
        assert_eq!(world.read(&cache, 0..50).await, 0);
        world.fill(&cache, 0..50).await;
        assert_eq!(world.read(&cache, 0..50).await, 50);
    });
}

#[test]
fn slots_swapped_with_their_table_entries_do_not_open() {
    run(async || {
        let world = World::new(bytes_for(2));
        let cache = world.open().await;
        world.fill(&cache, 0..2).await;
        world.damage(|file| {
            let slots = 4096 + 2 * 48;
            let (first, second) = file[slots..].split_at_mut(SLOT_BYTES);
            first.swap_with_slice(second);
        });
        assert_eq!(world.read(&cache, 0..2).await, 0);
    });
}

#[test]
fn a_file_of_another_cluster_node_or_geometry_is_not_used() {
    run(async || {
        let world = World::new(bytes_for(50));
        let cache = world.open().await;
        world.fill(&cache, 0..50).await;
        let other_node = DiskCacheSettings { node: NodeId(3), ..world.settings() };
        assert_eq!(DiskCache::open(&world.env(), other_node).await.stats().blocks, 0);
        assert_eq!(world.file_count(), 0, "it is removed");
        let cache = world.open().await;
        world.fill(&cache, 0..50).await;
        let smaller = DiskCacheSettings { bytes_max: bytes_for(40), ..world.settings() };
        assert_eq!(DiskCache::open(&world.env(), smaller).await.stats().blocks, 0);
    });
}

#[test]
fn another_key_opens_nothing() {
    run(async || {
        let world = World::new(bytes_for(50));
        let cache = world.open().await;
        world.fill(&cache, 0..3).await;
        assert!(cache.get(&at(1), &key(VolumeId([8; 16]))).await.is_none());
    });
}

#[test]
fn a_full_disk_pauses_fills_and_nothing_else() {
    run(async || {
        let world = World::new(bytes_for(50));
        let cache = world.open().await;
        world.fill(&cache, 0..20).await;
        world.disk.0.full.set(true);
        world.fill(&cache, 20..40).await;
        assert_eq!(cache.stats().failures, 1);
        assert_eq!(world.read(&cache, 0..40).await, 20, "reads go on");
        world.disk.0.full.set(false);
        world.fill(&cache, 20..40).await;
        assert_eq!(world.read(&cache, 20..40).await, 0, "fills rest");
        world.rest.now.set(61_000_000);
        world.fill(&cache, 20..40).await;
        assert_eq!(world.read(&cache, 0..40).await, 40);
    });
}

#[test]
fn the_queue_is_bounded() {
    run(async || {
        let world = World::new(bytes_for(10_000));
        let cache = world.open().await;
        let block = contents(0);
        for number in 0..QUEUE_BLOCKS_MAX as u64 + 100 {
            cache.insert(at(number), block.clone(), &world.key);
        }
        assert_eq!(cache.stats().dropped, 100);
    });
}

#[test]
fn no_plaintext_reaches_the_files() {
    run(async || {
        let world = World::new(bytes_for(4));
        let cache = world.open().await;
        world.fill(&cache, 0..4).await;
        world.damage(|file| {
            for number in 0..4 {
                let canary = &contents(number)[100..116];
                assert!(!file.windows(16).any(|window| window == canary), "a canary of block {number}");
            }
        });
    });
}

#[derive(Clone, Debug)]
enum Event {
    Fill(u64, u64),
    Read(u64, u64),
    Flip(prop::sample::Index),
    Cut(prop::sample::Index),
    /// Bytes of one place turn up at another.
    Move(prop::sample::Index, prop::sample::Index, usize),
    /// Older contents of all files come back, as after a power loss or from a backup.
    Revert,
    Delete,
    Full(bool),
    Restart,
    Wait,
}

fn event() -> impl Strategy<Value = Event> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (0_u64..80, 1_u64..30).prop_map(|(first, count)| Event::Fill(first, count)),
        6 => (0_u64..80, 1_u64..30).prop_map(|(first, count)| Event::Read(first, count)),
        2 => index().prop_map(Event::Flip),
        1 => index().prop_map(Event::Cut),
        2 => (index(), index(), 1_usize..9000).prop_map(|(from, to, bytes)| Event::Move(from, to, bytes)),
        1 => Just(Event::Revert),
        1 => Just(Event::Delete),
        1 => any::<bool>().prop_map(Event::Full),
        2 => Just(Event::Restart),
        1 => Just(Event::Wait),
    ]
}

async fn live_through(world: &World, events: Vec<Event>) {
    let mut cache = world.open().await;
    let mut older: Vec<Vec<u8>> = Vec::new();
    for event in events {
        match event {
            Event::Fill(first, count) => world.fill(&cache, first..first + count).await,
            Event::Read(first, count) => {
                world.read(&cache, first..first + count).await;
            }
            Event::Flip(at) => world.damage(|file| {
                if !file.is_empty() {
                    let at = at.index(file.len());
                    file[at] ^= 4;
                }
            }),
            Event::Cut(at) => world.damage(|file| file.truncate(at.index(file.len() + 1))),
            Event::Move(from, to, bytes) => world.damage(|file| {
                if file.len() > bytes {
                    let (from, to) = (from.index(file.len() - bytes), to.index(file.len() - bytes));
                    file.copy_within(from..from + bytes, to);
                }
            }),
            Event::Revert => {
                let mut newer = Vec::new();
                world.damage(|file| newer.push(file.clone()));
                let mut back = older.into_iter();
                world.damage(|file| *file = back.next().unwrap_or_default());
                older = newer;
            }
            Event::Delete => world.disk.0.files.borrow_mut().clear(),
            Event::Full(full) => world.disk.0.full.set(full),
            Event::Restart => cache = world.open().await,
            Event::Wait => world.rest.now.set(world.rest.now.get() + 61_000_000),
        }
        let stats = cache.stats();
        assert!(stats.blocks <= 50 && stats.bytes <= world.bytes_max);
    }
    // Whatever happened: once the disk is sound again, the cache works again.
    world.disk.0.full.set(false);
    world.rest.now.set(world.rest.now.get() + 61_000_000);
    world.read(&cache, 0..110).await;
    // A fill may displace blocks of its own while older ones have reads to live on, so it takes a few.
    for _ in 0..6 {
        world.fill(&cache, 200..220).await;
        world.read(&cache, 200..220).await;
    }
    assert_eq!(world.read(&cache, 200..220).await, 20);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_damage_is_a_miss_and_passes(events in prop::collection::vec(event(), 1..40)) {
        run(async || live_through(&World::new(bytes_for(50)), events).await);
    }
}
