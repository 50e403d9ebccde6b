//! Long reads and writes that end when the build does: a file of a terabyte must not keep Ctrl-C waiting.

use std::io::{self, Read, Write};

use crate::exec::CancelToken;

/// What is read from, or written to, until the build is cancelled: then it fails. Nobody sees that error, as the build
/// has ended with [`Cancelled`](super::BuildError::Cancelled) by then and only waits for its threads.
#[derive(Debug)]
pub(crate) struct UntilCancelled<T> {
    inner: T,
    cancel: CancelToken,
}

impl<T> UntilCancelled<T> {
    pub(crate) fn new(inner: T, cancel: &CancelToken) -> Self {
        Self { inner, cancel: cancel.clone() }
    }

    fn check(&self) -> io::Result<()> {
        // Not `Interrupted`, after which everybody tries again.
        if self.cancel.is_cancelled() { Err(io::Error::other("the build was cancelled")) } else { Ok(()) }
    }
}

impl<R: Read> Read for UntilCancelled<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.inner.read(buffer)
    }
}

impl<W: Write> Write for UntilCancelled<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.inner.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_and_writing_end_with_the_build() {
        let cancel = CancelToken::new().unwrap();
        let mut reader = UntilCancelled::new(io::repeat(b'x'), &cancel);
        let mut writer = UntilCancelled::new(Vec::new(), &cancel);
        let mut buffer = [0; 10];
        reader.read_exact(&mut buffer).unwrap();
        writer.write_all(&buffer).unwrap();
        cancel.cancel();
        assert!(io::copy(&mut reader, &mut writer).is_err());
        assert!(writer.write_all(&buffer).is_err());
        assert_eq!(writer.inner, b"xxxxxxxxxx");
    }
}
