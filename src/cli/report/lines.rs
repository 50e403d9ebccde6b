//! Cuts a stream of bytes into lines.

/// A line longer than this is cut: memory is bounded whatever a command prints.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Collects what one stream of one step printed until a line is complete.
///
/// A carriage return goes back to the beginning of the line, as on a terminal: of a progress bar that redraws itself
/// the last state is the line.
#[derive(Debug, Default)]
pub(super) struct LineBuffer {
    line: Vec<u8>,
    /// A carriage return was the last byte: what follows replaces the line, unless it is the line's end.
    returned: bool,
}

impl LineBuffer {
    /// Takes `data` and calls `emit` for each line that is complete, without its end.
    pub(super) fn push(&mut self, data: &[u8], mut emit: impl FnMut(&[u8])) {
        for &byte in data {
            match byte {
                b'\n' => {
                    self.returned = false;
                    emit(&self.line);
                    self.line.clear();
                }
                b'\r' => self.returned = true,
                _ => {
                    if self.returned {
                        self.returned = false;
                        self.line.clear();
                    }
                    if self.line.len() >= LINE_BYTES_MAX {
                        emit(&self.line);
                        self.line.clear();
                    }
                    self.line.push(byte);
                }
            }
        }
    }

    /// The end of the stream: what is left is a line, if it is anything.
    pub(super) fn finish(&mut self, mut emit: impl FnMut(&[u8])) {
        self.returned = false;
        if !self.line.is_empty() {
            emit(&self.line);
            self.line.clear();
        }
    }

    /// What there is of the next line.
    pub(super) fn partial(&self) -> &[u8] {
        &self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&str]) -> Vec<String> {
        let mut buffer = LineBuffer::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            buffer.push(chunk.as_bytes(), |line| lines.push(String::from_utf8_lossy(line).into_owned()));
        }
        buffer.finish(|line| lines.push(String::from_utf8_lossy(line).into_owned()));
        lines
    }

    #[test]
    fn lines_are_joined_across_pieces() {
        assert_eq!(lines(&["a", "b\nc", "\n", "\nd"]), ["ab", "c", "", "d"]);
    }

    #[test]
    fn a_progress_bar_is_its_last_state() {
        assert_eq!(lines(&["10%\r50%\r", "100%\nnext\r\n", "a\r", "\n"]), ["100%", "next", "a"]);
        assert_eq!(lines(&["10%\r"]), ["10%"]);
    }

    #[test]
    fn endless_lines_are_cut() {
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        assert_eq!(lines(&[&long]).iter().map(String::len).collect::<Vec<_>>(), [LINE_BYTES_MAX, 1]);
    }
}
