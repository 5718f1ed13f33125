//! Fills buffers from sockets.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use buffer::AlignedBuf;
use tokio::io::{AsyncRead, ReadBuf};

/// Reads once from `io`, at most what still fits, and says how much came: 0 at the end of the stream.
pub fn poll_fill<R: AsyncRead + Unpin>(
    buffer: &mut AlignedBuf,
    io: &mut R,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let spare = buffer.spare_mut();
    let expected_start = spare.as_ptr().cast::<u8>();
    let mut target = ReadBuf::uninit(spare);
    ready!(Pin::new(io).poll_read(cx, &mut target))?;
    assert_eq!(target.filled().as_ptr(), expected_start, "the reader exchanged the buffer");
    let count = target.filled().len();
    // SAFETY: `ReadBuf` keeps its filled part initialised, and it is the start of our spare part (asserted above).
    unsafe { buffer.assume_filled(count) };
    Poll::Ready(Ok(count))
}
