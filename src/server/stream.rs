//! Bytes of a log to a socket, for clients that do not read the log themselves.
//!
//! A log is read where the page cache has it; what would have to wait for the disk is read on
//! the blocking pool, so that a slow disk holds up its viewer and nobody else.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::{ReadWriteFlags, preadv2};
use tokio::sync::Semaphore;

/// How many reads may wait for the disk at once.
static SLOW_READS: Semaphore = Semaphore::const_new(32);

/// Reads up to `length` bytes of `file` at `offset`; fewer at its end.
///
/// # Errors
/// What the disk said.
pub async fn read_at(file: &Arc<File>, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    let cached = preadv2(
        &**file,
        &mut [io::IoSliceMut::new(&mut buffer)],
        offset,
        ReadWriteFlags::NOWAIT,
    );
    if let Ok(n) = cached
        && n > 0
    {
        buffer.truncate(n);
        return Ok(buffer);
    }
    let file = Arc::clone(file);
    let permit = SLOW_READS.acquire().await;
    let result = tokio::task::spawn_blocking(move || {
        let n = file.read_at(&mut buffer, offset)?;
        buffer.truncate(n);
        Ok(buffer)
    })
    .await
    .map_err(io::Error::other)?;
    drop(permit);
    result
}
