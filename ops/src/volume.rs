//! `velum volume`: the block devices a node serves.

use std::time::Duration;

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use velum_node::config::{Size, SizeError};
use velum_protocol::{
    admin::{
        Access, AclLine, Attach, AttachmentStatus, ByteRange, CreateVolume, Deleted, Detach, Holdings, MoveVolume,
        Reads, ResizeVolume, SetPermit, VolumeStatus, VolumeSummary, is_name, is_principal, is_volume_size,
    },
    id::{BLOCK_BYTES, REGION_BLOCKS},
};

use crate::{
    client::{self, Client, Target},
    error::Failure,
    output::{self, Format, Table, bytes, optional, seconds},
};

/// How often the progress of a flush is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What can be done with volumes.
#[derive(Subcommand, Debug)]
pub(crate) enum Volume {
    /// Make a volume. Guests on TCP may use it at once, users of a unix socket when `volume allow` names them
    Create {
        /// 1 to 63 of a-z, 0-9, dot, dash and underscore; also its NBD export name
        #[arg(value_parser = volume_name)]
        name: String,
        /// Whole blocks of 4 KiB, at most 64TiB
        #[arg(long, value_parser = volume_size)]
        size: Size,
    },
    /// List the volumes
    List,
    /// Show one volume: size, exposure, how far each cloud is
    Show {
        /// The volume
        #[arg(value_parser = volume_name)]
        name: String,
    },
    /// Give a volume another size
    Resize {
        /// The volume
        #[arg(value_parser = volume_name)]
        name: String,
        /// Whole blocks of 4 KiB, at most 64TiB
        #[arg(long, value_parser = volume_size)]
        size: Size,
        /// Allow a smaller size; what lies beyond it is lost
        #[arg(long)]
        force: bool,
    },
    /// Have another node of the cluster serve a volume; ask the node that does
    Move {
        /// The volume
        #[arg(value_parser = volume_name)]
        name: String,
        /// The node that is to serve it
        #[arg(long, value_name = "NODE")]
        to: u64,
    },
    /// Wait until every write acked so far is in enough clouds
    Flush {
        /// The volume
        #[arg(value_parser = volume_name)]
        name: String,
    },
    /// End a volume: its data can no longer be read, its objects are reclaimed
    Delete {
        /// The volume
        #[arg(value_parser = volume_name)]
        name: String,
        /// Say the name again: there is no way back
        #[arg(long, value_name = "NAME")]
        confirm: String,
    },
    /// Let a principal read, or read and write
    Allow {
        /// The volume
        #[arg(value_parser = volume_name)]
        name: String,
        /// anonymous (guests on TCP), uid:NUMBER (a user of a unix socket) or * for everyone
        #[arg(value_parser = principal)]
        principal: String,
        /// What it may do
        access: Grant,
        /// Bytes START..END on bounds of 64MiB; the whole volume when not given
        #[arg(long, value_parser = byte_range)]
        range: Option<ByteRange>,
    },
    /// Let a principal neither read nor write
    Deny {
        /// The volume
        #[arg(value_parser = volume_name)]
        name: String,
        /// anonymous (guests on TCP), uid:NUMBER (a user of a unix socket) or * for everyone
        #[arg(value_parser = principal)]
        principal: String,
        /// Bytes START..END on bounds of 64MiB; the whole volume when not given
        #[arg(long, value_parser = byte_range)]
        range: Option<ByteRange>,
    },
    /// Attach a host to a volume: gives the export name under which it finds the volume at every node
    ///
    /// The name holds until the attachment is detached or stolen, or the volume's lineage changes.
    Attach {
        /// The volume
        #[arg(value_parser = volume_name)]
        name: String,
        /// Others may be attached, too, if they share it as well; each writes only where it has a permit
        #[arg(long)]
        shared: bool,
        /// Connections at a time; one more, and the oldest ends
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
        connections: u32,
        /// Who that is, for people to read
        #[arg(long, default_value = "")]
        host: String,
        /// End every other attachment of the volume; ask the node that serves it
        #[arg(long)]
        steal: bool,
    },
    /// End an attachment: nothing of it takes effect any more; ask the node that serves the volume
    Detach {
        /// The volume
        #[arg(value_parser = volume_name)]
        name: String,
        /// Its handle, or the export name
        handle: String,
    },
    /// List who is attached to a volume, by how many connections, and where each may write
    Attachments {
        /// The volume
        #[arg(value_parser = volume_name)]
        name: String,
    },
    /// Let one of the hosts that share a volume write a range, or nobody; ask the node that serves it
    Permit {
        /// The volume
        #[arg(value_parser = volume_name)]
        name: String,
        /// Bytes START..END on bounds of 64MiB
        #[arg(value_parser = byte_range)]
        range: ByteRange,
        /// The handle of the attachment that may write there, or its export name; nobody when not given
        #[arg(long, value_name = "HANDLE")]
        to: Option<String>,
        /// Take it from whoever has it
        #[arg(long)]
        steal: bool,
    },
    /// Show who may do what; of the lines that match a request the last one decides
    Acl {
        /// The volume
        #[arg(value_parser = volume_name)]
        name: String,
    },
}

/// What `allow` can give.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Grant {
    /// Read.
    Read,
    /// Read and write.
    Write,
}

/// Does it.
pub(crate) fn run(volume: &Volume, target: &Target, format: Format) -> Result<(), Failure> {
    let client = Client::new(target)?;
    client::run(async {
        match volume {
            Volume::Create { name, size } => {
                let create = CreateVolume { name: name.clone(), size_bytes: size.bytes() };
                output::print(format, &Shown(client.post(&["volumes"], Some(&create)).await?));
            }
            Volume::List => output::print(format, &Listed(client.get(&["volumes"]).await?)),
            Volume::Show { name } => output::print(format, &Shown(client.get(&["volumes", name]).await?)),
            Volume::Resize { name, size, force } => {
                let resize = ResizeVolume { size_bytes: size.bytes(), force: *force };
                output::print(format, &Shown(client.post(&["volumes", name, "resize"], Some(&resize)).await?));
            }
            Volume::Move { name, to } => {
                let to = MoveVolume { node: *to };
                output::print(format, &Shown(client.post(&["volumes", name, "move"], Some(&to)).await?));
            }
            Volume::Flush { name } => output::print(format, &Shown(flush(&client, name).await?)),
            Volume::Delete { name, confirm } => {
                if name != confirm {
                    return Err(Failure::usage(
                        format!("--confirm says `{confirm}`, the volume is `{name}`"),
                        "repeat the name of the volume that is to go",
                    ));
                }
                output::print(format, &Gone(client.delete(&["volumes", name]).await?));
            }
            Volume::Allow { name, principal, access, range } => {
                let access = match access {
                    Grant::Read => Access::Read,
                    Grant::Write => Access::Write,
                };
                set_acl(&client, format, name, AclLine { principal: principal.clone(), access, range: *range }).await?;
            }
            Volume::Deny { name, principal, range } => {
                let line = AclLine { principal: principal.clone(), access: Access::None, range: *range };
                set_acl(&client, format, name, line).await?;
            }
            Volume::Attach { name, shared, connections, host, steal } => {
                let attach = Attach { shared: *shared, connections: *connections, host: host.clone(), steal: *steal };
                let made: AttachmentStatus = client.post(&["volumes", name, "attach"], Some(&attach)).await?;
                output::print(format, &Attached(made));
            }
            Volume::Detach { name, handle } => {
                let detach = Detach { handle: handle.clone() };
                output::print(format, &Attachments(client.post(&["volumes", name, "detach"], Some(&detach)).await?));
            }
            Volume::Attachments { name } => {
                output::print(format, &Attachments(client.get(&["volumes", name, "attachments"]).await?));
            }
            Volume::Permit { name, range, to, steal } => {
                let permit = SetPermit { range: *range, holder: to.clone(), steal: *steal };
                output::print(format, &Attachments(client.post(&["volumes", name, "permits"], Some(&permit)).await?));
            }
            Volume::Acl { name } => output::print(format, &Acl(client.get(&["volumes", name, "acl"]).await?)),
        }
        Ok(())
    })
}

async fn set_acl(client: &Client, format: Format, name: &str, line: AclLine) -> Result<(), Failure> {
    output::print(format, &Acl(client.post(&["volumes", name, "acl"], Some(&line)).await?));
    Ok(())
}

/// Flushes, and shows on a terminal how much is left.
async fn flush(client: &Client, name: &str) -> Result<VolumeStatus, Failure> {
    let path = ["volumes", name];
    let before: VolumeStatus = client.get(&path).await?;
    let bar = output::bytes_bar(before.exposure.dirty_bytes, "flushing");
    let flush_path = ["volumes", name, "flush"];
    let flushing = client.post::<(), VolumeStatus>(&flush_path, None);
    let mut flushing = std::pin::pin!(flushing);
    loop {
        #[expect(clippy::disallowed_methods, reason = "a command is no part of a node and has no environment")]
        let looked = tokio::time::timeout(LOOK_EVERY, &mut flushing).await;
        if let Ok(done) = looked {
            bar.finish_and_clear();
            return done;
        }
        if !bar.is_hidden() {
            let now: VolumeStatus = client.get(&path).await?;
            bar.set_position(before.exposure.dirty_bytes.saturating_sub(now.exposure.dirty_bytes));
        }
    }
}

/// A volume's name, refused before anything is sent.
pub(crate) fn volume_name(text: &str) -> Result<String, String> {
    if is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("use 1 to 63 of a-z, 0-9, dot, dash and underscore".to_owned())
    }
}

/// A volume's size, likewise.
pub(crate) fn volume_size(text: &str) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|error: SizeError| error.to_string())?;
    if is_volume_size(size.bytes()) {
        Ok(size)
    } else {
        Err("give a multiple of 4KiB, at least 4KiB and at most 64TiB".to_owned())
    }
}

fn principal(text: &str) -> Result<String, String> {
    if is_principal(text) {
        Ok(text.to_owned())
    } else {
        Err("write anonymous, uid:NUMBER, or * (in quotes) for everyone".to_owned())
    }
}

fn byte_range(text: &str) -> Result<ByteRange, String> {
    let (start, end) = text.split_once("..").ok_or("write START..END, as in 0..64MiB")?;
    let size = |text: &str| text.parse::<Size>().map(Size::bytes).map_err(|error| error.to_string());
    let range = ByteRange { start: size(start)?, end: size(end)? };
    if range.start >= range.end {
        return Err("END must lie behind START".to_owned());
    }
    let region = REGION_BLOCKS * BLOCK_BYTES;
    match [range.start, range.end].into_iter().find(|bound| !bound.is_multiple_of(region)) {
        Some(odd) => {
            Err(format!("{} is no multiple of 64MiB, and a line holds for whole regions", Size::from_bytes(odd)))
        }
        None => Ok(range),
    }
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Listed(Vec<VolumeSummary>);

impl Table for Listed {
    fn rows(&self) -> Vec<Vec<String>> {
        let head = ["NAME", "SIZE", "DIRTY", "OLDEST", "SEQ", "DURABLE SEQ"].map(str::to_owned).to_vec();
        let row = |volume: &VolumeSummary| {
            let exposure = &volume.exposure;
            vec![
                volume.name.clone(),
                bytes(volume.size_bytes),
                bytes(exposure.dirty_bytes),
                optional(exposure.oldest_dirty_seconds, seconds),
                exposure.head_seq.to_string(),
                exposure.durable_seq.to_string(),
            ]
        };
        std::iter::once(head).chain(self.0.iter().map(row)).collect()
    }
}

fn read_by(reads: Reads) -> String {
    let how = match reads {
        Reads::Lease => "by lease: answered at once while the nodes that keep the journal grant it",
        Reads::Strict => "strict: answered when the nodes that keep the journal were asked",
    };
    how.to_owned()
}

fn held(holdings: Holdings) -> String {
    format!("{}, of which {} live", bytes(holdings.stored_bytes), bytes(holdings.live_bytes))
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Shown(VolumeStatus);

impl Table for Shown {
    fn rows(&self) -> Vec<Vec<String>> {
        let Self(volume) = self;
        let exposure = &volume.exposure;
        let mut rows = vec![
            vec!["name".to_owned(), volume.name.clone()],
            vec!["id".to_owned(), volume.id.clone()],
            vec!["size".to_owned(), bytes(volume.size_bytes)],
            vec!["sessions".to_owned(), volume.sessions.to_string()],
            vec!["not yet cloud-durable".to_owned(), bytes(exposure.dirty_bytes)],
            vec!["oldest of it".to_owned(), optional(exposure.oldest_dirty_seconds, seconds)],
            vec!["sequence".to_owned(), format!("{} ({} cloud-durable)", exposure.head_seq, exposure.durable_seq)],
            vec!["held per cloud".to_owned(), optional(volume.holdings, held)],
            vec!["checkpoint".to_owned(), optional(volume.checkpoint_seq, |seq| seq.to_string())],
            vec!["reads".to_owned(), optional(volume.reads, read_by)],
            vec!["epoch, lineage".to_owned(), format!("{}, {}", volume.epoch, volume.lineage)],
        ];
        for cloud in &volume.clouds {
            let lag = match (cloud.lag_records, cloud.lag_bytes) {
                (0, 0) => "complete".to_owned(),
                (records, lag) => format!("{records} records and {} behind", bytes(lag)),
            };
            rows.push(vec![format!("cloud {}", cloud.cloud), format!("at {}, {lag}", cloud.cursor_seq)]);
        }
        rows
    }
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Acl(Vec<AclLine>);

impl Table for Acl {
    fn rows(&self) -> Vec<Vec<String>> {
        let head = ["PRINCIPAL", "ACCESS", "RANGE"].map(str::to_owned).to_vec();
        let row = |line: &AclLine| {
            let range = line.range.map_or_else(|| "whole volume".to_owned(), between);
            vec![line.principal.clone(), line.access.to_string(), range]
        };
        std::iter::once(head).chain(self.0.iter().map(row)).collect()
    }
}

fn between(range: ByteRange) -> String {
    format!("{}..{}", Size::from_bytes(range.start), Size::from_bytes(range.end))
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Attached(AttachmentStatus);

impl Table for Attached {
    fn rows(&self) -> Vec<Vec<String>> {
        let Self(made) = self;
        vec![
            vec!["export".to_owned(), made.export.clone()],
            vec!["handle".to_owned(), made.handle.clone()],
            vec!["connections".to_owned(), format!("{} at a time", made.connections_max)],
            vec!["shared".to_owned(), (if made.shared { "yes: writes take permits" } else { "no" }).to_owned()],
        ]
    }
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Attachments(Vec<AttachmentStatus>);

impl Table for Attachments {
    fn rows(&self) -> Vec<Vec<String>> {
        let head = ["EXPORT", "HOST", "SHARED", "CONNECTIONS", "MAY WRITE"].map(str::to_owned).to_vec();
        let row = |attachment: &AttachmentStatus| {
            let permits: Vec<String> = attachment.permits.iter().copied().map(between).collect();
            let may_write = match (attachment.shared, permits.as_slice()) {
                (false, _) => "everywhere".to_owned(),
                (true, []) => "nowhere".to_owned(),
                (true, permits) => permits.join(" "),
            };
            vec![
                attachment.export.clone(),
                attachment.host.clone(),
                (if attachment.shared { "yes" } else { "no" }).to_owned(),
                format!("{} of {}", attachment.connections.len(), attachment.connections_max),
                may_write,
            ]
        };
        std::iter::once(head).chain(self.0.iter().map(row)).collect()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Gone(Deleted);

impl Table for Gone {
    fn rows(&self) -> Vec<Vec<String>> {
        vec![vec!["deleted".to_owned(), self.0.name.clone()]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_with_units() {
        assert_eq!(byte_range("0..64MiB"), Ok(ByteRange { start: 0, end: 64 << 20 }));
        assert_eq!(byte_range("64MiB..1GiB"), Ok(ByteRange { start: 64 << 20, end: 1 << 30 }));
        for text in ["", "0", "0-64MiB", "a..b", "..", "64MiB..0", "64MiB..64MiB", "0..1MiB", "4KiB..64MiB"] {
            assert!(byte_range(text).is_err(), "{text}");
        }
    }
}
