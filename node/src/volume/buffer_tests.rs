//! The buffer against a plain array of blocks per layer.

use proptest::prelude::*;

use super::*;

const BLOCKS: u64 = 24;

fn contents(mark: u8) -> Bytes {
    Bytes::from(vec![mark; 4096])
}

fn buffer() -> Buffer {
    Buffer::new(VolumeId([1; 16]), Epoch(3), Jseq(0))
}

fn look_up(buffer: &Buffer, start: u64, count: u64) -> (Vec<Option<u8>>, Option<Jseq>) {
    let mut pieces = Vec::new();
    let newest = buffer.look_up(start, count, &mut pieces);
    let mut found = Vec::new();
    let mut asked = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(bytes) => found.push(Some(bytes[0])),
            Piece::Zero(count) => found.extend((0..count).map(|_| Some(0))),
            Piece::Ask { start: at, count } => {
                assert_eq!(at, start + found.len() as u64, "asked in place");
                asked.push((at, count));
                found.extend((0..count).map(|_| None));
            }
        }
    }
    (found, newest)
}

#[test]
fn the_newest_layer_wins_and_the_map_is_asked_for_the_rest() {
    let mut buffer = buffer();
    buffer.begin(Jseq(1), Instant(5));
    buffer.write(2, contents(1));
    buffer.unmap(4, 2);
    assert!(buffer.cut(Hash([7; 32])));
    buffer.begin(Jseq(2), Instant(6));
    buffer.write(4, contents(2));
    assert_eq!(look_up(&buffer, 1, 6).0, [None, Some(1), None, Some(2), Some(0), None]);
    assert_eq!(look_up(&buffer, 0, 2).1, None, "rests on nothing here");
    assert_eq!(look_up(&buffer, 0, 4).1, Some(Jseq(1)), "on a window that was cut off");
    assert_eq!(look_up(&buffer, 0, 5).1, Some(Jseq(2)));
    assert_eq!(look_up(&buffer, 5, 9).1, Some(Jseq(1)));
}

#[test]
fn a_window_carries_its_bounds_and_leaves_when_committed() {
    let mut buffer = buffer();
    assert!(!buffer.cut(Hash::ZERO), "nothing to cut");
    for jseq in 1..=3 {
        buffer.begin(Jseq(jseq), Instant(jseq));
        buffer.write(7, contents(1));
    }
    assert_eq!((buffer.bytes(), buffer.active_changes()), (4096, 1), "an overwritten block is held once");
    assert!(buffer.cut(Hash([7; 32])));
    buffer.begin(Jseq(4), Instant(9));
    buffer.unmap(0, 1 << 40);
    assert_eq!(buffer.waiting(), (4096 + RUN_BYTES, Some(Instant(1))));
    let window = buffer.take_cut(Jseq(u64::MAX)).unwrap();
    assert_eq!((window.first, window.last, window.chain, window.epoch), (Jseq(1), Jseq(3), Hash([7; 32]), Epoch(3)));
    assert!(buffer.take_cut(Jseq(u64::MAX)).is_none(), "each window is handed out once");
    assert_eq!(buffer.waiting(), (RUN_BYTES, Some(Instant(9))));
    assert!(buffer.drop_oldest(Jseq(4)).is_none());
    let (dropped, bytes) = buffer.drop_oldest(Jseq(3)).unwrap();
    assert_eq!((dropped.last, bytes), (Jseq(3), 4096));
    assert_eq!(buffer.bytes(), RUN_BYTES);
}

#[test]
fn trims_side_by_side_become_one_run() {
    let mut buffer = buffer();
    for (jseq, start) in [(1, 4), (2, 6), (3, 5), (4, 7)] {
        buffer.begin(Jseq(jseq), Instant(1));
        buffer.unmap(start, 1);
    }
    assert_eq!((buffer.active_changes(), buffer.bytes()), (1, RUN_BYTES));
    assert_eq!(look_up(&buffer, 3, 6).0, [None, Some(0), Some(0), Some(0), Some(0), None]);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u8),
    Unmap(u64, u64),
    Cut,
    Commit,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..BLOCKS, 1..255u8).prop_map(|(block, mark)| Step::Write(block, mark)),
        4 => (0..BLOCKS, 1..BLOCKS).prop_map(|(start, count)| Step::Unmap(start, count.min(BLOCKS - start))),
        1 => Just(Step::Cut),
        1 => Just(Step::Commit),
    ]
}

proptest! {
    #[test]
    fn look_ups_and_accounting_agree_with_plain_layers(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut buffer = buffer();
        let empty = vec![None; BLOCKS as usize];
        let mut layers = vec![empty.clone()];
        let mut jseq = Jseq(0);
        for step in steps {
            match step {
                Step::Write(block, mark) => {
                    jseq = jseq.next();
                    buffer.begin(jseq, Instant(1));
                    buffer.write(block, contents(mark));
                    layers.last_mut().unwrap()[block as usize] = Some(mark);
                }
                Step::Unmap(start, count) => {
                    jseq = jseq.next();
                    buffer.begin(jseq, Instant(1));
                    buffer.unmap(start, count);
                    layers.last_mut().unwrap()[start as usize..(start + count) as usize].fill(Some(0));
                }
                Step::Cut => {
                    if buffer.cut(Hash::ZERO) {
                        layers.push(empty.clone());
                    }
                }
                Step::Commit => {
                    if let Some(window) = buffer.take_cut(Jseq(u64::MAX)) {
                        check_window(&window, &layers[layers.len() - 1 - buffer.cut.len()])?;
                        buffer.drop_oldest(window.last).unwrap();
                        layers.remove(layers.len() - 2 - buffer.cut.len());
                    }
                }
            }
            let expected: Vec<Option<u8>> = (0..BLOCKS as usize)
                .map(|block| layers.iter().rev().find_map(|layer| layer[block]))
                .collect();
            prop_assert_eq!(&look_up(&buffer, 0, BLOCKS).0, &expected);
            prop_assert_eq!(&look_up(&buffer, 5, 9).0, &expected[5..14]);
            let counted: u64 = buffer.active.changes.values().map(Held::bytes).sum();
            prop_assert_eq!(counted, buffer.active_bytes());
        }
    }
}

fn check_window(window: &Window, layer: &[Option<u8>]) -> Result<(), TestCaseError> {
    let mut found = vec![None; layer.len()];
    let mut until = 0;
    for change in &window.changes {
        prop_assert!(change.start() >= until, "in order and disjoint");
        until = change.end();
        let mark = match change {
            Change::Data { contents, .. } => contents[0],
            Change::Unmap { .. } => 0,
        };
        found[change.start() as usize..change.end() as usize].fill(Some(mark));
    }
    prop_assert_eq!(found, layer);
    Ok(())
}
