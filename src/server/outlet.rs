//! Files that go out by `sendfile`: from the kernel's cache of the file into the connection, without a copy here.
//!
//! hyper takes the pieces of a body as bytes in memory. For a piece of a file it gets a *stand-in*: a part of one zeroed
//! buffer that belongs to this module and that nobody reads. hyper passes buffers on to the connection as they are,
//! and the connection ([`Plain`]) knows the stand-in by its address: it sends the next piece of the queue of files
//! ([`Outlet`]) instead. Answers of HTTP/1 follow one another, so the order of the queue is that of the buffers. Over TLS
//! and with HTTP/2 bytes have to be touched anyway, and bodies are read as usual.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// How much hyper is told of at a time. Memory of this size is reserved once, and never touched.
const PIECE: usize = 1 << 20;

static STAND_IN: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; PIECE]));

/// Whether hyper was given this by [`Outlet::body`].
fn is_stand_in(buffer: &[u8]) -> bool {
    STAND_IN.as_ptr_range().contains(&buffer.as_ptr())
}

/// What a connection has to send of files. Requests carry it, so that an answer can use it.
#[derive(Debug, Clone, Default)]
pub(super) struct Outlet(Arc<Mutex<VecDeque<Part>>>);

#[derive(Debug, Clone)]
struct Part {
    file: Arc<File>,
    range: Range<u64>,
}

impl Outlet {
    /// The bytes of a range of a file, as the body of an answer with HTTP/1 on this connection. A file that turns out to
    /// be shorter ends the connection.
    pub(super) fn body(&self, file: File, range: Range<u64>) -> Body {
        let (outlet, file) = (self.clone(), Arc::new(file));
        let pieces = std::iter::successors(piece(&range, range.start), move |last| piece(&range, last.end));
        let pieces = pieces.map(move |range| {
            let length = usize::try_from(range.end - range.start).unwrap_or(PIECE);
            outlet.lock().push_back(Part { file: Arc::clone(&file), range });
            Ok::<_, io::Error>(STAND_IN.slice(..length))
        });
        Body::from_stream(futures_util::stream::iter(pieces))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Part>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The piece of `range` that begins at `start`.
fn piece(range: &Range<u64>, start: u64) -> Option<Range<u64>> {
    let end = range.end.min(start + PIECE as u64);
    (start < end).then_some(start..end)
}

/// A connection without TLS.
#[derive(Debug)]
pub(super) struct Plain {
    stream: TcpStream,
    outlet: Outlet,
}

impl Plain {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, outlet: Outlet::default() }
    }

    /// What the answers of this connection can use.
    pub(super) fn outlet(&self) -> Outlet {
        self.outlet.clone()
    }

    /// Sends bytes that others follow at once.
    fn poll_head(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_try(cx, || Ok(rustix::net::send(&self.stream, bytes, rustix::net::SendFlags::MORE)?))
    }

    /// Sends of the next file what `length` bytes of the stand-in stand for, or a part of it.
    fn poll_file(&self, cx: &mut Context<'_>, length: usize) -> Poll<io::Result<usize>> {
        let Some(Part { file, range }) = self.outlet.lock().front().cloned() else {
            return Poll::Ready(Err(io::Error::other("no file is to be sent")));
        };
        let left = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        if length > left {
            return Poll::Ready(Err(io::Error::other("another file is to be sent")));
        }
        let sent = ready!(self.poll_try(cx, || {
            let mut offset = range.start;
            Ok(rustix::fs::sendfile(&self.stream, &file, Some(&mut offset), length)?)
        }))?;
        if sent == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is cut off")));
        }
        let mut parts = self.outlet.lock();
        if let Some(part) = parts.front_mut() {
            part.range.start += sent as u64;
            if part.range.is_empty() {
                parts.pop_front();
            }
        }
        Poll::Ready(Ok(sent))
    }

    fn poll_try(
        &self,
        cx: &mut Context<'_>,
        send: impl Fn() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, &send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Plain {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        if is_stand_in(buffer) {
            return self.poll_file(cx, buffer.len());
        }
        Pin::new(&mut self.stream).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(at) = buffers.iter().position(|buffer| is_stand_in(buffer)) else {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        };
        match buffers[..at].iter().find(|buffer| !buffer.is_empty()) {
            Some(head) => self.poll_head(cx, head),
            None => self.poll_file(cx, buffers[at].len()),
        }
    }

    fn is_write_vectored(&self) -> bool {
        // Otherwise hyper would copy the stand-in.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use futures_util::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// What the other end gets when the pieces of `body` are written behind a head.
    async fn sent(plain: Plain, other: TcpStream, body: Body) -> (io::Result<()>, Vec<u8>) {
        let reader = tokio::spawn(async move {
            let (mut other, mut bytes) = (other, Vec::new());
            other.read_to_end(&mut bytes).await.map(|_| bytes)
        });
        let write = async move {
            let (mut plain, mut pieces, mut is_first) = (plain, body.into_data_stream(), true);
            while let Some(piece) = pieces.next().await {
                let (mut head, mut piece) = (if is_first { &b"head"[..] } else { b"" }, piece.unwrap());
                is_first = false;
                while !head.is_empty() || !piece.is_empty() {
                    let sent = plain.write_vectored(&[IoSlice::new(head), IoSlice::new(&piece)]).await?;
                    let of_head = sent.min(head.len());
                    head = &head[of_head..];
                    piece = piece.slice(sent - of_head..);
                }
            }
            plain.shutdown().await
        };
        let written = write.await;
        (written, reader.await.unwrap().unwrap())
    }

    async fn pair() -> (Plain, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Plain::new(listener.accept().await.unwrap().0), other)
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[tokio::test]
    async fn the_files_bytes_take_the_place_of_the_stand_in() {
        let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        for range in [0..content.len(), 0..1, 5..PIECE + 5, 1_000_001..7_654_321, PIECE..2 * PIECE] {
            let (plain, other) = pair().await;
            let body = plain.outlet().body(file(&content), range.start as u64..range.end as u64);
            let (written, bytes) = sent(plain, other, body).await;
            written.unwrap();
            assert!(bytes == [b"head", &content[range]].concat());
        }
    }

    #[tokio::test]
    async fn a_file_that_was_cut_off_ends_the_connection() {
        let (plain, other) = pair().await;
        let body = plain.outlet().body(file(&[1; 1000]), 0..2000);
        let (written, bytes) = sent(plain, other, body).await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(bytes.len(), 1004);
    }

    /// Whatever goes wrong here, the stand-in's own bytes are not sent.
    #[tokio::test]
    async fn a_stand_in_without_a_file_is_an_error() {
        let (mut plain, _other) = pair().await;
        plain.write_all(&STAND_IN.slice(..10)).await.unwrap_err();
        let body = plain.outlet().body(file(b"short"), 0..5);
        assert_eq!(body.into_data_stream().next().await.unwrap().unwrap().len(), 5);
        plain.write_all(&STAND_IN.slice(..10)).await.unwrap_err();
    }
}
