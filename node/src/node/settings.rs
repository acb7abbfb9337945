//! What an operator's settings mean for the parts of a node.

use super::layout::Layout;
use crate::{
    array::{ArraySettings, flush::machine::Triggers},
    cache::DiskCacheSettings,
    config::NodeConfig,
    journal::JournalSettings,
    keyring::Keyring,
};

/// Of the disk cache.
pub(super) fn disk_cache(config: &NodeConfig, keyring: &Keyring) -> DiskCacheSettings {
    DiskCacheSettings {
        dir: Layout::new(&config.dir).cache(),
        bytes_max: config.cache.disk_bytes.bytes(),
        cluster: keyring.cluster(),
        node: config.node,
    }
}

/// Of the journal.
pub(super) fn journal(config: &NodeConfig) -> JournalSettings {
    JournalSettings {
        file_bytes: config.journal.file_bytes.bytes(),
        files_at_start: usize::try_from(config.journal.files_initial).unwrap_or(usize::MAX),
        bytes_max: config.journal.bytes_max.bytes(),
    }
}

/// Of what moves dirty extents to the clouds.
pub(super) fn array(config: &NodeConfig) -> ArraySettings {
    ArraySettings {
        flush: Triggers { bytes: config.flush.bytes.bytes(), interval: config.flush.interval },
        checkpoint_records: config.checkpoint.records,
        checkpoint_bytes: config.checkpoint.bytes.bytes(),
        reclaim_grace: config.reclaim.grace,
        compact_live_percent: config.compact.live_percent,
    }
}
