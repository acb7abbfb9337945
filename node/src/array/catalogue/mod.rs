//! The catalogue in the clouds: which volumes there are, with their sizes, ACLs and wrapped keys.
//!
//! [`machine`] decides, [`shell`] seals, agrees and stores. [`Catalogue`] is the handle.

pub mod machine;
pub(crate) mod shell;
pub(crate) mod shown;

use std::rc::Rc;

use velum_protocol::format::metadata::CloudName;

use self::{
    machine::{Input, Machine},
    shell::CatalogueShell,
};
use super::context::ArrayContext;
use crate::actor::{self, Handle};

/// Publishes every change of the metadata that a recovery must know. Lives as long as the `LocalSet` it was started on.
#[derive(Clone)]
pub struct Catalogue {
    array: ArrayContext,
    handle: Handle<Input>,
}

impl Catalogue {
    /// Starts publishing. With several nodes the keeper does, and the others look when it has.
    #[must_use]
    pub fn start(array: &ArrayContext) -> Self {
        let clouds = array.copies.clouds();
        let machine = Machine::new(clouds.clouds.iter().map(|cloud| cloud.name().clone()), clouds.quorum);
        let shell = CatalogueShell::new(array.clone());
        let handle = actor::start(Rc::clone(&array.env.clock), machine, shell);
        handle.call(Input::Tick);
        Self { array: array.clone(), handle }
    }

    /// Completes when enough clouds show every change made so far.
    pub async fn published(&self) {
        let wanted = self.array.metadata.with(|state| state.catalogue_wanted);
        self.handle.call(Input::Changed);
        self.array.shown.reaches(wanted).await;
    }

    /// Brings everything to a cloud again in which nothing is believed to be any more, and nothing is under way.
    pub fn start_over(&self, cloud: &CloudName) {
        self.handle.call(Input::StartOver { cloud: cloud.clone() });
    }

    /// True when enough clouds show a change.
    #[must_use]
    pub fn is_published(&self, change: u64) -> bool {
        self.array.shown.has(change)
    }
}
