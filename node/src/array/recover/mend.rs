//! What is put right in the clouds once the new life is claimed, and what the report says becomes of each.
//!
//! Only what was seen to be damaged is written over, and only by bytes that another cloud holds whole. Identity and key slots
//! are written where the operator named the cloud for this cluster and nothing under their names is another cluster's. What
//! is merely missing is left to the node, which brings it to each cloud by its cursor; so is an empty cloud as a whole. A
//! write that fails costs nothing but that copy, and the report tells.

use futures_util::{StreamExt, stream};
use velum_protocol::format::metadata::CloudName;

use super::{
    CloudReport, History, Plan, Standing, Verify,
    source::{Fixed, Source, Sources},
};
use crate::{
    cloud::identity::Identity,
    keyring::{IDENTITY_NAME, slots_name},
};

/// Objects on their way to one cloud at once: bounds memory to this many segments per cloud.
const AT_ONCE: usize = 8;

/// Mends every cloud that was asked.
pub(super) async fn mend(sources: &Sources, identity: &Identity) {
    for source in sources.used() {
        if source.fixed() == Fixed::Wanting {
            // Slots first: a cloud with an identity object always has the slots to open it with.
            let (slots, names) = (slots_name(identity.generation), &identity.object);
            let stored =
                sources.put(source, &slots, &identity.slots).await && sources.put(source, IDENTITY_NAME, names).await;
            source.count_mended(stored);
        }
        let hurt = stream::iter(source.hurt());
        hurt.for_each_concurrent(AT_ONCE, |(name, hash)| async move {
            let mended = match sources.whole(&name, &hash, source).await {
                Some(stored) => sources.put(source, &name, &stored).await,
                None => false,
            };
            source.count_mended(mended);
        })
        .await;
    }
}

/// What each cloud has shown and what becomes of it: those given, then those of the catalogue that were not.
pub(super) fn reports(sources: &Sources, history: &History, plan: &Plan) -> Vec<CloudReport> {
    let given = sources.reports();
    let absent = history.catalogue.clouds.iter().filter(|cloud| given.iter().all(|given| given.name != cloud.name.0));
    let absent = absent.map(|cloud| {
        let (standing, why) = sources.standing(&cloud.name);
        CloudReport { name: cloud.name.0.clone(), standing, why, ..CloudReport::default() }
    });
    let absent: Vec<_> = absent.collect();
    let told = given.into_iter().chain(absent);
    told.map(|cloud| CloudReport { follows: follows(&cloud, plan), ..cloud }).collect()
}

/// What becomes of a cloud.
fn follows(cloud: &CloudReport, plan: &Plan) -> &'static str {
    let is_given_up = plan.accept_missing.contains(&CloudName(cloud.name.clone()));
    match cloud.standing {
        Standing::Good if cloud.unmended > 0 => "not all that is damaged could be replaced; it is read elsewhere",
        Standing::Good => "the node brings it what it lacks",
        Standing::Empty => "it is filled again by the node",
        Standing::Damaged if cloud.unmended > 0 => {
            "not all that is damaged could be replaced; empty it before the node starts, and the node fills it again"
        }
        Standing::Damaged if plan.verify == Verify::Chain || is_given_up && plan.verify != Verify::Full => {
            "it was not looked through; empty it before the node starts, and the node fills it again"
        }
        Standing::Damaged => "what is damaged was replaced, its identity included, and the node brings what it lacks",
        Standing::Foreign => {
            "it is never written to; give the cluster an empty place under this URL, and the node fills it"
        }
        Standing::Silent => "the node brings it what it lacks once it answers",
        Standing::Absent => "the cluster goes on without it",
    }
}

impl Source {
    /// True when the whole of it is to be read, whatever else is looked at.
    pub(super) fn is_to_be_read(&self, plan: &Plan) -> bool {
        self.standing() == Standing::Damaged && !plan.accept_missing.contains(&self.name)
    }
}
