//! Opens a journal in two parts. The first looks at every file, judges what is there and changes nothing, so that whoever
//! starts the node can still refuse. The second writes the unsynced tail anew into a fresh file, and only then lets anything
//! be acked.
//!
//! A tail is written anew, not only synced: after a failed sync the page cache may hold what the disk does not, and a
//! second sync would say yes to that. A crash at any point of this leaves a journal that opens to the same records.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use velum_protocol::format::journal::{
    FileHeaders, JournalFormatError, LiveFile, Mark, Position, RECORD_HEADER_LEN, RECORDS_OFFSET, RecordKind, Ring,
    StreamId,
};
use velum_protocol::version::LeadError;

use super::{
    JournalError, JournalIdentity, JournalSettings,
    machine::{self, Chore, Machine, RING_RECORD_BYTES_MAX},
    reach::{ReachFile, Reached},
    replay::{Damage, DamageKind, Gap, Replay, Scanned, Verdict, in_order, judge},
    scan::{Scanner, Step, read_headers},
    shell::{Shared, perform},
};
use crate::env::{Clock, Env, File, OpenMode};

/// A file of the directory, before anything is changed.
pub(super) struct Probe {
    id: u32,
    file: Rc<dyn File>,
    /// Its length as it should be.
    bytes: u64,
    /// False when it is shorter, or was never written through.
    whole: bool,
    header: Header,
    /// Which header place that was read from.
    place: usize,
    /// The other place holds something unreadable.
    doubtful: bool,
}

/// What a file's first sector says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    /// In this lap; the checksum that the first record links to, unless the lap was learned from records.
    Lap(u64, Option<u32>),
    /// Never written: the file was being made when the node stopped.
    Blank,
    /// Not readable.
    Damaged,
    /// The header of another file of this journal.
    OtherFile,
}

/// Name of a journal file.
pub(super) fn file_name(id: u32) -> String {
    format!("{id:04}.journal")
}

/// A journal that was looked at and not changed.
pub(super) struct Examined {
    env: Env,
    dir: PathBuf,
    settings: JournalSettings,
    identity: JournalIdentity,
    probes: Vec<Probe>,
    reached: Reached,
    verdict: Verdict,
}

/// Looks at the journal in `dir`, if there is one.
pub(super) async fn examine(
    env: &Env,
    dir: &Path,
    settings: JournalSettings,
    identity: JournalIdentity,
) -> Result<(Examined, Replay), JournalError> {
    settings.check()?;
    let mut probes = survey(env, dir, identity, settings).await?;
    let reached = Reached::read(env, dir, identity).await?;
    find_laps(&env.clock, &mut probes).await;
    let mut verdict = read_all(&env.clock, &probes, &reached).await?;
    in_order(&mut verdict.replay.records);
    verdict.replay.created = probes.is_empty();
    for probe in probes.iter().filter(|probe| probe.header == Header::OtherFile) {
        let damage = Damage { file: probe.id, lap: 0, offset: 0, bytes: probe.bytes, kind: DamageKind::FileMissing };
        verdict.replay.damage.push(damage);
        verdict.known.shunned.insert(probe.id);
    }
    verdict.known.file_bytes_min = probes.iter().map(|probe| probe.bytes).min();
    let replay = std::mem::take(&mut verdict.replay);
    let (env, dir) = (env.clone(), dir.to_path_buf());
    let examined = Examined { env, dir, settings, identity, probes, reached, verdict };
    examined.check_lengths()?;
    Ok((examined, replay))
}

impl Examined {
    /// The longest record that fits every file.
    fn record_bytes_max(&self) -> u64 {
        machine::record_bytes_max(self.settings, self.verdict.known.file_bytes_min)
    }

    pub(super) fn settings(&self) -> JournalSettings {
        self.settings
    }

    /// The longest body that fits every file.
    pub(super) fn body_bytes_max(&self) -> usize {
        machine::body_bytes_max(self.record_bytes_max())
    }

    /// Records are written again, at this start or later, so each must fit the files that may be made.
    fn check_lengths(&self) -> Result<(), JournalError> {
        let known = &self.verdict.known;
        let records = known.live.iter().flat_map(|file| &file.records);
        let is_live = |stream: &StreamId, at: &Position| known.trims.get(stream).is_none_or(|trimmed| at > trimmed);
        let live = records.filter(|(stream, at, _)| is_live(stream, at)).map(|(.., bytes)| *bytes);
        let record_bytes = live.max().unwrap_or(0);
        if record_bytes <= self.record_bytes_max() {
            return Ok(());
        }
        let wanted_bytes = (record_bytes + RECORDS_OFFSET + RING_RECORD_BYTES_MAX).next_multiple_of(4096);
        Err(JournalError::FilesTooShort { record_bytes, file_bytes: self.settings.file_bytes, wanted_bytes })
    }
}

/// Opens every journal file and reads its first sector.
async fn survey(
    env: &Env,
    dir: &Path,
    identity: JournalIdentity,
    settings: JournalSettings,
) -> Result<Vec<Probe>, JournalError> {
    let names = match env.disk.list(dir).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names.map_err(JournalError::io("list", dir))?,
    };
    let mut probes = Vec::new();
    for name in names {
        let Some(id) = name.strip_suffix(".journal").and_then(|id| id.parse().ok()).filter(|id| file_name(*id) == name)
        else {
            continue;
        };
        let path = dir.join(&name);
        let file = env.disk.open(&path, OpenMode::ReadWrite).await.map_err(JournalError::io("open", &path))?;
        let size = file.size().map_err(JournalError::io("measure", &path))?;
        let sectors = read_headers(&*env.clock, &*file).await.map_err(JournalError::io("measure", &path))?;
        let FileHeaders { current, place, doubtful } = FileHeaders::decode(&sectors);
        let bytes = current.map_or(settings.file_bytes, |(header, _)| header.file_bytes);
        let whole = current.is_ok() && size >= bytes;
        let header = match current {
            Ok((header, _)) if (header.cluster, header.node) != (identity.cluster, identity.node) => {
                return Err(JournalError::Foreign { path, found_cluster: header.cluster, found_node: header.node });
            }
            Ok((header, _)) if header.file != id => Header::OtherFile,
            Ok((header, crc)) => Header::Lap(header.lap, Some(crc)),
            Err(source @ JournalFormatError::Lead(LeadError::Newer { .. })) => {
                return Err(JournalError::Newer { path, source });
            }
            Err(_) if doubtful => Header::Damaged,
            Err(_) => Header::Blank,
        };
        probes.push(Probe { id, file, bytes, whole, header, place, doubtful });
    }
    Ok(probes)
}

/// Learns the laps of files from their records, where a header cannot be read and may have been the newer one.
async fn find_laps(clock: &Rc<dyn Clock>, probes: &mut [Probe]) {
    for probe in probes.iter_mut().filter(|probe| probe.doubtful || probe.header == Header::Blank) {
        let known = match probe.header {
            Header::Lap(lap, _) => lap,
            Header::Blank | Header::Damaged => 0,
            Header::OtherFile => continue,
        };
        let Ok(mut scanner) = Scanner::new(clock, Rc::clone(&probe.file), probe.id, 0, None) else { continue };
        if let Some(lap) = scanner.find_lap().await.filter(|lap| *lap > known) {
            probe.header = Header::Lap(lap, None);
            // The unreadable one was the newer.
            probe.place = if known > 0 { 1 - probe.place } else { probe.place };
        }
    }
}

/// Reads all files that count.
async fn read_all(clock: &Rc<dyn Clock>, probes: &[Probe], reached: &Reached) -> Result<Verdict, JournalError> {
    let mut by_lap: BTreeMap<u64, &Probe> = BTreeMap::new();
    for probe in probes {
        if let Header::Lap(lap, _) = probe.header {
            by_lap.insert(lap, probe);
        }
    }
    let lap_last = by_lap.keys().next_back().copied().unwrap_or(0);
    let used = used_laps(clock, &by_lap, reached).await;
    let mut scans = BTreeMap::new();
    let mut table: Option<(Mark, Ring)> = None;
    // From the newest back to the first ring record, which names all files that count before it.
    for lap in used.iter().rev() {
        let scan = scan(clock, by_lap.get(lap).expect("used laps are known"), *lap, None, &[]).await;
        table = scan.ring();
        scans.insert(*lap, scan);
        if table.is_some() {
            break;
        }
    }
    let (ring_at, ring) = table.unwrap_or_default();
    // Files that must be there: those that the ring names, and the one in which the last sync ended behind that.
    let ended_in = reached.durable().filter(|durable| durable.end.lap > ring_at.lap);
    let ended_in =
        ended_in.map(|durable| LiveFile { file: durable.file, lap: durable.end.lap, end: durable.end.offset });
    let mut missing = Vec::new();
    for live in ring.files.iter().copied().chain(ended_in.filter(|live| !scans.contains_key(&live.lap))) {
        match by_lap.get(&live.lap).filter(|probe| probe.id == live.file) {
            Some(probe) => {
                scans.insert(live.lap, scan(clock, probe, live.lap, Some(live.end), &ring.trims).await);
            }
            // In a later lap: it was trimmed and prepared after the ring record was written.
            None if probes.iter().any(|probe| probe.id == live.file && is_later(probe.header, live.lap)) => {}
            None => missing.push(live),
        }
    }
    let seen = scans.values().flat_map(|scan| &scan.records).map(|found| found.header.durable.lap).max();
    let mut verdict = judge(scans.into_values().collect(), &missing, &ring, reached);
    // What stands in the place of a missing file is left for whoever looks into the loss.
    verdict.known.shunned =
        missing.iter().map(|lost| lost.file).filter(|id| probes.iter().any(|p| p.id == *id)).collect();
    let named = missing.iter().map(|lost| lost.lap).chain(reached.written().map(|written| written.lap));
    verdict.known.lap_last = lap_last.max(seen.unwrap_or(0)).max(named.max().unwrap_or(0));
    Ok(verdict)
}

fn is_later(header: Header, lap: u64) -> bool {
    matches!(header, Header::Lap(found, _) if found > lap)
}

/// The laps that hold records. Files are used in lap order, so all behind the newest used one only stand ready.
async fn used_laps(clock: &Rc<dyn Clock>, by_lap: &BTreeMap<u64, &Probe>, reached: &Reached) -> BTreeSet<u64> {
    let mut newest = None;
    for (lap, probe) in by_lap.iter().rev() {
        if let Ok(mut scanner) = scanner(clock, probe, *lap)
            && matches!(scanner.step().await, Step::Record(_))
        {
            newest = Some(*lap);
            break;
        }
    }
    // The first record of the next one may be what is damaged.
    for (lap, probe) in by_lap.range(newest.map_or(0, |lap| lap + 1)..) {
        let Ok(mut scanner) = scanner(clock, probe, *lap) else { break };
        if scanner.resume().await.is_none() {
            break;
        }
        newest = Some(*lap);
    }
    // Nor need any of its records be left.
    let noted = [reached.durable().map(|durable| durable.end.lap), reached.written().map(|written| written.lap)];
    let newest = noted.into_iter().flatten().chain(newest).max();
    newest.map_or_else(BTreeSet::new, |newest| by_lap.range(..=newest).map(|(lap, _)| *lap).collect())
}

fn scanner(clock: &Rc<dyn Clock>, probe: &Probe, lap: u64) -> std::io::Result<Scanner> {
    let link = match probe.header {
        Header::Lap(_, link) => link,
        Header::Blank | Header::Damaged | Header::OtherFile => None,
    };
    Scanner::new(clock, Rc::clone(&probe.file), probe.id, lap, link)
}

/// Walks through one file. Bodies that are trimmed are not kept.
async fn scan(
    clock: &Rc<dyn Clock>,
    probe: &Probe,
    lap: u64,
    end: Option<u64>,
    trims: &[(StreamId, Position)],
) -> Scanned {
    let header_readable = matches!(probe.header, Header::Lap(_, Some(_)));
    let mut scanned = Scanned {
        file: probe.id,
        lap,
        bytes: probe.bytes,
        header_place: probe.place,
        header_readable,
        records: Vec::new(),
        gaps: Vec::new(),
        stop: RECORDS_OFFSET,
        stop_flaw: super::scan::Flaw::NoHeader,
    };
    let Ok(mut scanner) = scanner(clock, probe, lap) else { return scanned };
    if let Some(end) = end {
        scanner.end_at(end);
    }
    let trims: BTreeMap<StreamId, Position> = trims.iter().copied().collect();
    loop {
        let mut found = match scanner.step().await {
            Step::Record(found) => found,
            Step::Stop(flaw) => {
                let from = scanner.next;
                let Some(found) = scanner.resume().await else {
                    (scanned.stop, scanned.stop_flaw) = (from, flaw);
                    return scanned;
                };
                let records_before = scanned.records.len();
                scanned.gaps.push(Gap { from, to: found.at().offset, flaw, records_before });
                found
            }
        };
        if let RecordKind::Stream(stream, at) = found.header.kind
            && trims.get(&stream).is_some_and(|trimmed| at <= *trimmed)
        {
            found.body = bytes::Bytes::new();
        }
        scanned.records.push(found);
    }
}

/// Sets up the ring again: prepares the files that hold nothing, begins a fresh one, and writes the tail into it.
pub(super) async fn begin_anew(examined: Examined) -> Result<Shared, JournalError> {
    let Examined { env, dir, settings, identity, probes, reached, verdict } = examined;
    let Verdict { known, tail, end_before_durable, .. } = verdict;
    env.disk.create_dir_all(&dir).await.map_err(JournalError::io("create the directory", &*dir))?;
    let reach = ReachFile::open(&*env.disk, &dir, identity, &reached).await?;
    let durable = known.durable;
    let live: BTreeSet<u32> = known.live.iter().map(|file| file.file).collect();
    let shunned = known.shunned.clone();
    let mut machine = Machine::new(identity, settings, known);
    let mut files = BTreeMap::new();
    for probe in probes.into_iter().filter(|probe| !shunned.contains(&probe.id)) {
        if !live.contains(&probe.id) {
            adopt(&mut machine, &probe, &dir).await?;
        }
        files.insert(probe.id, probe.file);
    }
    let tail_bytes = tail.iter().map(|(_, _, body)| body_bytes(body.len())).sum();
    while machine.wants_file_at_start(tail_bytes) {
        let Chore::Create { file: id, bytes, header } = machine.create() else { break };
        let made = perform::create(&*env.disk, &dir.join(file_name(id)), bytes, &header).await;
        match made {
            Ok(file) => {
                files.insert(id, file);
                machine.prepared(id);
            }
            // The disk is full; the files at hand may do.
            Err(_) if machine.has_ready() => {
                machine.create_refused(id);
                break;
            }
            Err(source) => return Err(JournalError::io("create", dir.join(file_name(id)))(source)),
        }
    }
    env.disk.sync_dir(&dir).await.map_err(JournalError::io("sync the directory", &*dir))?;
    let shared = Shared::new(&env, &dir, machine, files);
    write_tail(&shared, tail, durable, end_before_durable).await?;
    // Until here the notes of the life before were the ones to go by.
    shared.begin_notes(reach).await?;
    shared.begin_chores();
    Ok(shared)
}

/// Bytes a body takes, roughly and not too few.
fn body_bytes(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX / 2) + RECORD_HEADER_LEN * 2
}

/// Takes a file that holds nothing into the ring. One that was not finished is written through first.
async fn adopt(machine: &mut Machine, probe: &Probe, dir: &Path) -> Result<(), JournalError> {
    let path: PathBuf = dir.join(file_name(probe.id));
    if !probe.whole {
        perform::write_through(&*probe.file, probe.bytes).await.map_err(JournalError::io("write", &path))?;
    }
    let Chore::Prepare { file, header } = machine.adopt(probe.id, probe.bytes, probe.place) else {
        return Ok(());
    };
    perform::prepare(&*probe.file, &header).await.map_err(JournalError::io("write the header of", &path))?;
    machine.prepared(file);
    Ok(())
}

/// Begins a fresh file, appends the tail to it and makes it durable; then declares the old places of the tail void.
async fn write_tail(
    shared: &Shared,
    tail: Vec<(StreamId, Position, bytes::Bytes)>,
    durable: Mark,
    end_before_durable: u64,
) -> Result<(), JournalError> {
    let had_tail = !tail.is_empty();
    {
        let mut inner = shared.0.borrow_mut();
        inner.roll()?;
        for (stream, at, body) in tail {
            inner.append_again(stream, at, &body)?;
        }
        if had_tail {
            inner.submit()?;
        }
    }
    if had_tail {
        shared.sync().await?;
    }
    {
        let mut inner = shared.0.borrow_mut();
        inner.machine.cut(durable, end_before_durable);
        inner.append_ring()?;
    }
    shared.sync().await
}
