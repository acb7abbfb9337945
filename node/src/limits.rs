//! Bounds of every queue and buffer, in one place. Settings may be changed by an operator; these may not.

/// Messages an actor's mailbox holds; a sender past that is told so and tries again or drops (each says which).
pub const MAILBOX_MESSAGES_MAX: usize = 1024;

/// Newest gate decisions kept in memory; older ones live on in the log and in the counters.
pub const AUDIT_RECORDS_MAX: usize = 4096;

/// Log lines of one kind written at most per [`LOG_LINES_INTERVAL`]; the rest is counted.
pub const LOG_LINES_BURST_MAX: u32 = 10;

/// The interval of [`LOG_LINES_BURST_MAX`].
pub const LOG_LINES_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// Guest sessions of one node, over all its doors; a connection past that is closed at once. Half of the 1,024 files a process
/// may usually have open, so that a crowd of guests never costs the journal or a cloud its file.
pub const SESSIONS_MAX: usize = 512;

/// Time a connection has from accept to the end of its handshake.
pub const HANDSHAKE_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// Options a client may send before it must have chosen an export.
pub const HANDSHAKE_OPTIONS_MAX: usize = 64;

/// Bytes of option replies that wait for a slow reader before the next option is looked at.
pub const HANDSHAKE_REPLY_BYTES_MAX: usize = 64 << 10;

/// Bytes of requests in flight and of replies not yet taken by the guest, per session; past that its socket is not read.
pub const SESSION_BYTES_MAX: u64 = 64 << 20;

/// Requests in flight per session; past that its socket is not read.
pub const SESSION_REQUESTS_MAX: usize = 1024;

/// A guest that takes no byte of its replies for this long is cut off.
pub const SESSION_STALL_MAX: std::time::Duration = std::time::Duration::from_secs(30);

/// Time the sessions have to finish what is in flight when the node stops.
pub const SESSION_STOP_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// Bytes read from a guest's socket at once. 256 KiB holds more than 32 writes of 4 KiB with their headers, so a guest
/// at queue depth 32 is served with one read, one journal write and one send.
pub const SESSION_READ_BYTES: usize = 256 << 10;

/// Extents in one answer to a block status request (8 bytes each on the wire); a guest asks on from where it ends.
pub const STATUS_EXTENTS_MAX: usize = 16 << 10;

/// Requests of operators that may wait for the node or be under way; further ones are answered "busy".
pub const ADMIN_REQUESTS_MAX: usize = 64;

/// Of those, how many may wait for clouds (flushes and checks).
pub const ADMIN_FLUSHES_MAX: usize = 16;

/// HTTP connections of operators and scrapers; further ones wait to be accepted.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;

/// Longest body of an admin request.
pub const ADMIN_BODY_BYTES_MAX: usize = 1 << 20;

/// Repeatable admin requests whose first outcome is remembered.
pub const ADMIN_REPLAYS_MAX: usize = 256;

/// Peers' connections whose handshake is under way; further ones wait to be accepted.
pub const PEER_HANDSHAKES_MAX: usize = 32;

/// Bytes of frames for one peer that wait to be sent. Past that a frame is dropped and counted: raft says again what matters.
pub const PEER_QUEUE_BYTES_MAX: usize = 64 << 20;

/// Bytes of frames that a peer has not said to have taken; past that nothing more is sent to it.
pub const PEER_CREDIT_BYTES: u64 = 16 << 20;

/// The longest state of a raft snapshot that is taken from a peer.
pub const PEER_SNAPSHOT_BYTES_MAX: u64 = 128 << 20;

/// Bytes of forwarded requests on their way to an owner, and of replies on their way back, that the other side has not said to have
/// taken. A quarter of what a link's queue takes, so that it has room for all else; and no more is before a message of raft.
pub const FORWARD_CREDIT_BYTES: u64 = 4 << 20;

/// Bytes of requests of one peer's guests that the owner has in hand, with the data of their replies; further ones wait, and then
/// the peer does. One is always taken.
pub const FORWARD_BYTES_MAX: u64 = 64 << 20;

/// Bytes of requests held for a volume that nobody serves at the moment; a session that brings more ends.
pub const SWITCH_HELD_BYTES_MAX: u64 = 64 << 20;

/// How long they are held; then the session ends.
pub const SWITCH_HELD_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(30);

/// Nodes that a node has links to.
pub const PEERS_MAX: usize = 64;
