//! Performs what the catalogue machine decides.

use std::time::Duration;

use bytes::Bytes;
use velum_protocol::{
    format::{
        catalogue::{CATALOGUE_BYTES_MAX, Catalogue, CatalogueCloud, CatalogueVolume},
        metadata::{CloudName, Command},
    },
    id::Incarnation,
};

use super::machine::{Effect, Input, LOOK_INTERVAL, Machine, Standing};
use crate::{
    actor::{Handle, Shell},
    array::{
        context::ArrayContext,
        copies::{CopyError, fits_in},
        life,
    },
    cloud::Cloud,
    keyring::Keyring,
    metadata::State,
};

/// Pause between looks at what the keeper does, and how many of them are made before a cloud counts as failing.
const FOLLOW_PAUSE: Duration = Duration::from_millis(100);
const FOLLOW_LOOKS: u32 = 50;

/// The shell of the catalogue.
pub(crate) struct CatalogueShell {
    array: ArrayContext,
}

impl CatalogueShell {
    pub(crate) const fn new(array: ArrayContext) -> Self {
        Self { array }
    }
}

impl Shell<Machine> for CatalogueShell {
    fn perform(&mut self, effect: Effect, own: &Handle<Input>) {
        let array = self.array.clone();
        match effect {
            // The keeper does it; what is left here is to see what became of it.
            Effect::Append if !array.is_keeper() => own.spawn(async move {
                array.env.clock.sleep(FOLLOW_PAUSE).await;
                Input::Appended(standing(&array))
            }),
            Effect::Publish { cloud } if !array.is_keeper() => own.spawn(async move {
                match await_newest(&array, &cloud).await {
                    Some(number) => Input::Published { cloud, number },
                    None => Input::NotPublished { cloud },
                }
            }),
            Effect::Arm => own.after(&*array.env.clock, LOOK_INTERVAL, Input::Tick),
            Effect::Look => own.call(Input::Looked(standing(&array))),
            Effect::Append => own.spawn(async move {
                append(&array).await;
                Input::Appended(standing(&array))
            }),
            // Entered at once: what began before a cloud was closed ends before it starts over.
            Effect::Publish { cloud } => match array.copies.enter(&cloud) {
                Some((visit, target)) => own.spawn(async move {
                    let published = publish(&array, &target).await;
                    drop(visit);
                    match published {
                        Ok(number) => Input::Published { cloud, number },
                        Err(error) => {
                            tracing::debug!(cloud = cloud.0, %error, "the cloud lacks the newest catalogue record");
                            Input::NotPublished { cloud }
                        }
                    }
                }),
                None => own.call(Input::NotPublished { cloud }),
            },
            Effect::Pause { cloud, pause } => own.after(&*array.env.clock, pause, Input::Retry { cloud }),
            Effect::Shown(change) => array.shown.set(change),
        }
    }
}

fn standing(array: &ArrayContext) -> Standing {
    array.metadata.with(|state| Standing {
        // A record of an earlier life is in the clouds already; the first one of this life is yet to be made.
        number: if state.catalogue_record.is_empty() { 0 } else { state.catalogue.0 },
        shown: state.catalogue_shown,
        wanted: state.catalogue_wanted,
    })
}

/// Seals a record of the metadata as it is and proposes it. Refused when another one got in first; the machine looks again.
async fn append(array: &ArrayContext) {
    let catalogue = array.metadata.with(describe);
    let (record, hash) = array.keyring.seal_catalogue(&array.env.entropy.fresh32(), &catalogue);
    let Catalogue { number, change, .. } = catalogue;
    if let Err(rejection) = array.agree(Command::MoveCatalogue { number, hash, change, record }).await {
        tracing::warn!(number, %rejection, "a catalogue record was refused");
    }
}

/// Waits a while for the keeper to bring the newest record to a cloud; gives the record's number once it is there.
async fn await_newest(array: &ArrayContext, name: &CloudName) -> Option<u64> {
    for _ in 0..FOLLOW_LOOKS {
        let (number, incarnation) = array.metadata.with(|state| (state.catalogue.0, state.incarnation));
        // Left again for the pause: a cloud that is to begin anew waits for all visits to end.
        if let Some((_visit, target)) = array.copies.enter(name)
            && let Ok(true) = array.copies.is_there(&target, &Keyring::catalogue_id(incarnation, number)).await
            && array.copies.confirm(&target).await.is_ok()
        {
            return Some(number);
        }
        if array.is_keeper() {
            return None;
        }
        array.env.clock.sleep(FOLLOW_PAUSE).await;
    }
    None
}

/// What the catalogue says of the metadata.
fn describe(state: &State) -> Catalogue {
    let clouds = state.clouds.iter();
    let volumes = state.volumes.iter().filter(|(_, volume)| !volume.deleted);
    Catalogue {
        cluster: state.cluster,
        incarnation: state.incarnation,
        number: state.catalogue.0 + 1,
        prev_hash: state.catalogue.1,
        change: state.catalogue_wanted,
        clouds: clouds.map(|cloud| CatalogueCloud { name: cloud.name.clone(), url: cloud.url.clone() }).collect(),
        quorum: state.quorum,
        volumes: volumes
            .map(|(volume, state)| CatalogueVolume {
                volume: *volume,
                name: state.name.clone(),
                size_bytes: state.size_bytes,
                acl: state.acl.clone(),
                acl_version: state.acl_version,
                keys: state.keys.clone(),
                epoch: state.epoch,
                lineage: state.lineage,
            })
            .collect(),
    }
}

/// Brings the newest record to a cloud, after those before it that the cloud missed.
async fn publish(array: &ArrayContext, target: &Cloud) -> Result<u64, CopyError> {
    let (number, incarnation, record) =
        array.metadata.with(|state| (state.catalogue.0, state.incarnation, state.catalogue_record.clone()));
    life::tell(array, target).await?;
    fill(array, target, incarnation, number).await?;
    array.copies.put(target, &Keyring::catalogue_id(incarnation, number), record).await?;
    array.copies.confirm(target).await?;
    Ok(number)
}

/// Brings the records of this life below `number` that the cloud lacks, lowest first, back to the first one that it has, or
/// that no cloud can give now. Only the newest record counts: an older one that lies in a cloud that is away must not keep
/// it from the others, and a recovery passes the gap.
async fn fill(array: &ArrayContext, cloud: &Cloud, life: Incarnation, number: u64) -> Result<(), CopyError> {
    let mut missing: Vec<(u64, Bytes)> = Vec::new();
    for older in (1..number).rev() {
        let id = Keyring::catalogue_id(life, older);
        if array.copies.is_there(cloud, &id).await? {
            break;
        }
        let opens = |stored: &Bytes| array.keyring.open_catalogue(life, older, stored).is_ok();
        match array.copies.read_where(&id, fits_in(CATALOGUE_BYTES_MAX), Some(cloud.name()), opens).await {
            Ok(stored) => missing.push((older, stored)),
            Err(CopyError::Gone | CopyError::Source) => break,
            Err(error) => return Err(error),
        }
    }
    for (older, stored) in missing.into_iter().rev() {
        array.copies.put(cloud, &Keyring::catalogue_id(life, older), stored).await?;
    }
    Ok(())
}
