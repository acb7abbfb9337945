//! Commands about volumes as an operator sees them: create, resize, delete, ACLs; and the catalogue's head.

use velum_protocol::{
    format::metadata::{AclEntry, Command},
    id::{BLOCK_BYTES, REGION_BLOCKS, VOLUME_BYTES_MAX},
};

use super::{
    apply::{Answer, Rejection},
    state::{State, VolumeState},
};

const NAME_LEN_MAX: usize = 63;
const PRINCIPAL_LEN_MAX: usize = 128;

impl State {
    pub(super) fn apply_to_volumes(&mut self, command: &Command) -> Result<Answer, Rejection> {
        let change = self.catalogue_wanted + 1;
        match command {
            Command::CreateVolume { volume, name, size_bytes, keys, acl } => {
                check_name(name)?;
                check_size(*size_bytes)?;
                acl.iter().try_for_each(check_acl)?;
                if self.volume_named(name).is_some() || self.volumes.contains_key(volume) {
                    return Err(Rejection::NameTaken);
                }
                let created = VolumeState::new(name.clone(), *size_bytes, keys.clone(), acl.clone(), change);
                self.volumes.insert(*volume, created);
            }
            Command::ResizeVolume { volume, size_bytes } => {
                check_size(*size_bytes)?;
                let volume = self.live_volume_mut(*volume)?;
                volume.size_bytes = *size_bytes;
                volume.described = change;
            }
            Command::DeleteVolume { volume } => {
                self.live_volume_mut(*volume)?.deleted = true;
                self.end_attachments(*volume);
            }
            Command::SetAcl { volume, entry } => {
                check_acl(entry)?;
                let volume = self.live_volume_mut(*volume)?;
                volume.acl.retain(|old| (&old.principal, old.range) != (&entry.principal, entry.range));
                volume.acl.push(entry.clone());
                volume.acl_version += 1;
                volume.described = change;
            }
            Command::ForgetVolume { volume } => {
                if !self.volume_mut(*volume)?.deleted {
                    return Err(Rejection::NotEmpty);
                }
                self.volumes.remove(volume);
                self.left.retain(|(of, _), _| of != volume);
                self.ensembles.remove(volume);
                self.attachments.remove(volume);
            }
            Command::MoveCatalogue { number, hash, change, record } => {
                if *number != self.catalogue.0 + 1 || *change > self.catalogue_wanted {
                    return Err(Rejection::CatalogueUnfit);
                }
                self.catalogue = (*number, *hash);
                self.catalogue_record = record.clone();
                self.catalogue_shown = *change;
                return Ok(Answer::Done);
            }
            _ => unreachable!("apply_command routes volume commands only"),
        }
        self.catalogue_wanted = change;
        Ok(Answer::Done)
    }
}

/// Names are the operator's, but no path is ever made of one.
fn check_name(name: &str) -> Result<(), Rejection> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    if (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(fits) { Ok(()) } else { Err(Rejection::BadName) }
}

fn check_size(bytes: u64) -> Result<(), Rejection> {
    let fits = bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES) && bytes <= VOLUME_BYTES_MAX;
    if fits { Ok(()) } else { Err(Rejection::BadSize) }
}

fn check_acl(entry: &AclEntry) -> Result<(), Rejection> {
    let principal = (1..=PRINCIPAL_LEN_MAX).contains(&entry.principal.len());
    let range = entry.range.is_none_or(|(first, end)| {
        first < end && first.0.is_multiple_of(REGION_BLOCKS) && end.0.is_multiple_of(REGION_BLOCKS)
    });
    if principal && range { Ok(()) } else { Err(Rejection::BadAcl) }
}
