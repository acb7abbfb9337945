//! Single behaviours of the map, one test each.

use super::*;

/// A bench with blocks at the start of each of `leaves` leaves, all in one committed checkpoint.
fn checkpointed(size_blocks: u64, leaves: impl Iterator<Item = u64>) -> Bench {
    let mut bench = Bench::new(size_blocks);
    let runs: Vec<(u64, u16, bool)> = leaves.map(|leaf| (leaf * 4096, 8, false)).collect();
    bench.write(&runs);
    bench.begin();
    bench.finish();
    bench
}

fn evict_all(bench: &mut Bench) {
    (0..8 + 3 * bench.map.stats().resident_pages / 64).for_each(|_| bench.map.evict(0));
    assert_eq!(bench.map.stats(), MapStats { mapped_blocks: bench.model.len() as u64, ..MapStats::default() });
}

#[test]
fn a_volume_never_written_is_one_hole_and_needs_no_page() {
    let mut map = ExtentMap::empty(1 << 30);
    let mut out = Vec::new();
    map.lookup(BlockIndex(5), 1 << 29, &mut out).unwrap();
    assert_eq!(out, [Mapped { start: BlockIndex(5), count: 1 << 29, location: None }]);
    assert_eq!(map.stats().resident_pages, 0);
}

#[test]
fn trimming_what_was_never_written_changes_nothing() {
    let mut map = ExtentMap::empty(1 << 34);
    map.apply(&RunUpdate { start: BlockIndex(0), count: 1 << 34, frame: None }).unwrap();
    assert_eq!((map.changed_pages(), map.stats().resident_pages), (0, 0));
}

#[test]
fn a_look_up_appends_and_leaves_earlier_answers_alone() {
    let mut bench = checkpointed(1 << 20, 0..1);
    evict_all(&mut bench);
    let earlier = Mapped { start: BlockIndex(0), count: 4096, location: None };
    let mut out = vec![earlier];
    let needed = bench.map.lookup(BlockIndex(4096), 4096, &mut out);
    assert_eq!(needed, Ok(()));
    assert_eq!(out, [earlier, Mapped { start: BlockIndex(4096), count: 4096, location: None }]);
    assert!(bench.map.lookup(BlockIndex(0), 9000, &mut out).is_err());
    assert_eq!(out.len(), 2);
}

#[test]
fn updates_of_a_page_that_is_away_are_answered_without_it() {
    let mut bench = checkpointed(3 << 20, [0, 256].into_iter());
    evict_all(&mut bench);
    bench.write(&[(0, 4, false), (4096 * 256 + 2, 2, false)]);
    let mut out = Vec::new();
    bench.map.lookup(BlockIndex(0), 4, &mut out).unwrap();
    assert_eq!(out, expected(&bench.model, 0, 4));
    assert!(matches!(bench.map.lookup(BlockIndex(0), 5, &mut out), Err(PageNeeded(_))));
    assert!(bench.map.stats().resident_pages <= 1, "at most the usage page of the new segment");
    bench.check(0, 4096);
    bench.check(4096 * 256, 4096);
}

#[test]
fn a_checkpoint_writes_only_what_changed() {
    let mut bench = checkpointed(3 << 20, (0..300).chain(512..600));
    bench.write(&[(4096 * 280, 2, false)]);
    // Leaf, inner page, and the usage pages of the old segment and the new one.
    let pages = bench.map.changed_pages();
    assert!((3..=4).contains(&pages), "{pages} pages change with one block");
    let before = bench.pages.len();
    bench.begin();
    bench.finish();
    assert!(bench.pages.len() <= before + 1, "as many pages are condemned as are written anew");
}

#[test]
fn a_checkpoint_without_changes_is_a_root() {
    let mut bench = checkpointed(1 << 20, 0..3);
    bench.begin();
    assert_eq!(bench.running.as_ref().unwrap().plan.page_count(), 0);
    bench.finish();
    bench.restart();
    bench.check(0, 1 << 20);
}

#[test]
fn a_checkpoint_is_refused_while_another_is_written_or_pages_are_missing() {
    let mut bench = checkpointed(1 << 20, 0..3);
    evict_all(&mut bench);
    bench.write(&[(0, 1, false)]);
    let mut never = || panic!("no number is used up");
    assert_eq!(bench.map.begin_checkpoint(&mut never, INCARNATION).err(), Some(CheckpointRefused::PagesNeeded));
    bench.begin();
    assert_eq!(bench.map.begin_checkpoint(&mut never, INCARNATION).err(), Some(CheckpointRefused::Running));
}

#[test]
fn a_checkpoint_is_refused_while_a_live_segment_has_no_name() {
    let mut map = ExtentMap::empty(5000);
    let mut bench = Bench::new(5000);
    bench.write(&[(0, 1, false)]);
    map.apply(&bench.records[0].updates[0]).unwrap();
    let segment = bench.records[0].segments[0].number;
    let mut never = || panic!("no number is used up");
    assert_eq!(
        map.begin_checkpoint(&mut never, INCARNATION).err(),
        Some(CheckpointRefused::Unnamed { incarnation: INCARNATION, segment })
    );
}

#[test]
fn a_segment_is_dead_when_its_last_block_is_displaced_and_not_before_the_page_says_so() {
    let mut bench = checkpointed(1 << 20, 0..2);
    let segment = bench.records[0].segments[0].number;
    bench.write(&[(0, 8, false)]);
    assert_eq!(bench.map.live_blocks(INCARNATION, segment), Some(8));
    bench.begin();
    bench.finish();
    evict_all(&mut bench);
    bench.trim(4096, 8);
    assert_eq!(bench.map.dead_segments(), [], "the displaced run lies on a page that is away");
    bench.begin();
    assert_eq!(bench.map.dead_segments(), [(INCARNATION, segment)]);
    bench.finish();
    assert_eq!(bench.map.dead_segments(), []);
    assert!(!bench.segments.contains(&segment), "the checkpoint condemned it");
}

#[test]
fn a_segment_displaced_during_a_checkpoint_is_condemned_by_the_next() {
    let mut bench = checkpointed(1 << 20, 0..1);
    let segment = bench.records[0].segments[0].number;
    bench.begin();
    bench.trim(0, 8);
    assert_eq!(bench.map.dead_segments(), [(INCARNATION, segment)]);
    bench.finish();
    assert!(bench.segments.contains(&segment), "the checkpoint of before still refers to it");
    bench.begin();
    bench.finish();
    assert!(!bench.segments.contains(&segment));
}

#[test]
fn shrinking_and_growing_shows_zeros() {
    let mut bench = checkpointed(3 << 20, [0, 1, 300, 600].into_iter());
    evict_all(&mut bench);
    for size in [5000, 3 << 20, 4096 * 300 + 3, 3 << 20] {
        bench.resize(size);
        bench.check(0, size);
    }
    assert_eq!(bench.model.len(), 16, "two of the four leaves lie within every size");
    bench.begin();
    bench.finish();
    bench.restart();
    bench.check(0, 3 << 20);
}

#[test]
fn growing_past_the_top_keeps_everything_also_during_a_checkpoint() {
    let mut bench = checkpointed(5000, 0..1);
    bench.write(&[(4096, 4, false)]);
    bench.begin();
    bench.resize(1 << 34);
    bench.write(&[((1 << 34) - 3, 3, false), (20, 4, false)]);
    bench.finish();
    bench.check(0, 6000);
    bench.begin();
    bench.finish();
    bench.restart();
    bench.check(0, 6000);
    bench.check((1 << 34) - 5000, 5000);
}

#[test]
fn a_page_that_is_damaged_or_another_one_is_not_taken_and_can_be_had_again() {
    let mut bench = checkpointed(1 << 20, 0..2);
    evict_all(&mut bench);
    let mut out = Vec::new();
    let PageNeeded(page) = bench.map.lookup(BlockIndex(0), 1, &mut out).unwrap_err();
    let payload = bench.pages[&page.number].clone();
    assert!(matches!(bench.map.page_loaded(&page, &payload[1..]), Err(MapError::Page { .. })));
    assert!(matches!(bench.map.page_loaded(&page, &[]), Err(MapError::Page { .. })));
    let root = bench.committed.root.clone().unwrap();
    let root_payload = bench.pages[&root.number].clone();
    assert_eq!(bench.map.page_loaded(&page, &root_payload), Err(MapError::Place(page.number)));
    let other = bench.pages.iter().find(|(number, payload)| **number != page.number && payload[0] == 1).unwrap();
    bench.map.page_loaded(&page, other.1).unwrap();
    assert_eq!(bench.map.lookup(BlockIndex(0), 1, &mut out), Err(PageNeeded(page.clone())));
    bench.map.page_loaded(&page, &payload).unwrap();
    bench.map.page_loaded(&page, &payload).unwrap();
    bench.check(0, 100);
}

#[test]
fn an_update_that_makes_no_sense_is_refused() {
    let mut bench = Bench::new(5000);
    bench.write(&[(10, 8, false)]);
    let frame = bench.records[0].updates[0].frame;
    for (start, count, frame) in [
        (10, 0, None),
        (u64::MAX, 2, None),
        (1 << 34, 1, None),
        (9, 2, frame),
        (17, 2, frame),
        (10, 17, frame.map(|frame| Frame { blocks: 17, ..frame })),
    ] {
        let refused = bench.map.apply(&RunUpdate { start: BlockIndex(start), count, frame });
        assert_eq!(refused, Err(MapError::Update { start: BlockIndex(start), count }));
    }
    bench.check(0, 5000);
}

#[test]
fn a_map_far_larger_than_its_budget_is_served_within_it() {
    const LEAVES: u64 = 3000;
    const BUDGET: u64 = 256 << 10;
    let mut bench = Bench::new(LEAVES * 4096);
    // Every block of every eighth leaf in a frame of its own would be 64 KiB a page; a few runs per leaf do here.
    for chunk in 0..LEAVES / 50 {
        let runs: Vec<(u64, u16, bool)> = (0..500).map(|run| (chunk * 50 * 4096 + run * 409, 1, false)).collect();
        bench.write(&runs);
    }
    bench.begin();
    bench.finish();
    bench.restart();
    let mut state = 1_u64;
    let mut resident_max = 0;
    for _ in 0..2000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bench.check((state >> 20) % (LEAVES * 4096), 5000);
        for _ in 0..4 {
            bench.map.evict(BUDGET);
        }
        resident_max = resident_max.max(bench.map.stats().resident_bytes);
    }
    assert!(resident_max <= BUDGET + (64 << 10), "{resident_max} bytes are resident");
    assert!(bench.map.stats().resident_pages > 10, "the budget is used");
}

#[test]
fn waiting_for_several_pages_ends_also_without_any_budget() {
    let mut bench = checkpointed(3 << 20, 250..260);
    evict_all(&mut bench);
    let mut out = Vec::new();
    for _ in 0..40 {
        match bench.map.lookup(BlockIndex(250 * 4096), 10 * 4096, &mut out) {
            Ok(()) => return,
            Err(PageNeeded(page)) => bench.load(&page),
        }
        bench.map.evict(0);
    }
    panic!("a look-up gets all its pages");
}

#[test]
fn an_impossible_count_keeps_the_segment_and_is_counted() {
    let mut bench = checkpointed(1 << 20, 0..1);
    let segment = bench.records[0].segments[0].clone();
    // The same frame mapped under a count that was lost: displaced more often than mapped.
    let mut table = UsageTable::default();
    let mut residency = Residency::default();
    table.name(&segment, 1, &mut residency);
    table.remove(INCARNATION, segment.number, 1, 1, &mut residency);
    assert_eq!(table.live_blocks(INCARNATION, segment.number), Some(u32::MAX));
    assert_eq!((table.dead().count(), table.faults()), (0, 1));
    bench.check(0, 100);
}

#[test]
fn writes_all_over_a_large_volume_want_a_checkpoint_and_it_helps() {
    let mut bench = checkpointed(3000 * 4096, 0..3000);
    evict_all(&mut bench);
    assert!(!bench.map.wants_checkpoint());
    let runs: Vec<(u64, u16, bool)> = (0..9000).map(|run| (run / 3 * 4096 + run % 3 * 100, 1, false)).collect();
    bench.write(&runs);
    assert_eq!(bench.map.stats().pending_updates, 9000);
    assert!(bench.map.wants_checkpoint());
    bench.begin();
    bench.finish();
    assert!(!bench.map.wants_checkpoint());
    evict_all(&mut bench);
}

/// A volume grew, wrote a block into the new part and shrank again; all before a checkpoint. The leaf was gone then, its
/// count as a changed page was not. Growing over a level of the tree took the top for vacant and dropped it together with
/// that page: it counted as changed for as long as the volume stayed open, though no checkpoint could write it.
#[test]
fn a_page_trimmed_before_it_was_ever_stored_is_settled_after_the_tree_is_raised() {
    let mut bench = Bench::new(5000);
    bench.resize(1 << 20);
    bench.write(&[(8168, 1, false)]);
    bench.resize(5000);
    bench.resize((1 << 20) + 10);
    bench.begin();
    bench.finish();
    assert_eq!(bench.map.changed_pages(), 0);
    let size = bench.size_blocks;
    bench.restart();
    bench.check(0, size);
    assert_eq!(bench.map.stats().usage_faults, 0);
}

/// The same page, being stored by a checkpoint while the volume shrinks and grows: its end did not find the page and the
/// node stopped.
#[test]
fn a_checkpoint_ends_though_the_tree_was_raised_over_a_page_trimmed_meanwhile() {
    let mut bench = Bench::new(1 << 20);
    bench.write(&[(8168, 1, false)]);
    bench.begin();
    bench.resize(5000);
    bench.resize((1 << 20) + 10);
    bench.finish();
    bench.begin();
    bench.finish();
    assert_eq!(bench.map.changed_pages(), 0);
    let size = bench.size_blocks;
    bench.check(0, size);
}
