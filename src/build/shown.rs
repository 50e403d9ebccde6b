//! Whether what a command makes shows the value of a build argument that it is not to be keyed on.

use std::io::{self, Read};

use memchr::memmem::Finder;

use super::engine::Engine;
use super::error::BuildError;
use super::plan::{Op, PlannedStep};
use super::solve::{Made, Solver};
use crate::event::Event;
use crate::layer::{FinishedLayer, Item, LayerError, LayerVisitor, Metadata, TocReader, display_path};
use crate::record::Shape;

/// Contents are looked through in pieces of this size.
const PIECE: usize = 64 << 10;

/// Looks for values in a stream of bytes, wherever it is cut into pieces.
#[derive(Debug)]
pub(crate) struct Shown {
    values: Vec<Value>,
    /// The end of the last piece, in which a value may begin.
    held: Vec<u8>,
}

#[derive(Debug)]
struct Value {
    name: String,
    finder: Finder<'static>,
    is_shown: bool,
}

impl Shown {
    /// Looks for the `values`, which have names.
    pub(crate) fn new(values: &[(String, String)]) -> Self {
        let value = |(name, value): &(String, String)| Value {
            name: name.clone(),
            finder: Finder::new(value.as_bytes()).into_owned(),
            is_shown: false,
        };
        Self { values: values.iter().map(value).collect(), held: Vec::new() }
    }

    /// Takes the next piece.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        let longest =
            self.values.iter().filter(|value| !value.is_shown).map(|value| value.finder.needle().len());
        let Some(longest) = longest.max() else { return };
        self.held.extend_from_slice(piece);
        for value in self.values.iter_mut().filter(|value| !value.is_shown) {
            value.is_shown = value.finder.find(&self.held).is_some();
        }
        let gone = self.held.len().saturating_sub(longest.saturating_sub(1));
        self.held.drain(..gone);
    }

    /// Takes something that stands by itself.
    fn whole(&mut self, bytes: &[u8]) {
        self.held.clear();
        self.push(bytes);
        self.held.clear();
    }

    /// Takes what `content` gives, as something that stands by itself.
    fn content(&mut self, content: &mut dyn Read) -> io::Result<()> {
        self.held.clear();
        let mut buffer = vec![0; PIECE];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => self.push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.held.clear();
        Ok(())
    }

    /// The names of the values that were found.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.values.iter().filter(|value| value.is_shown).map(|value| value.name.as_str())
    }

    fn is_over(&self) -> bool {
        self.values.iter().all(|value| value.is_shown)
    }
}

impl LayerVisitor for Shown {
    fn visit(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        item: Item<'_>,
        content: &mut dyn Read,
    ) -> Result<(), LayerError> {
        if self.is_over() {
            return Ok(());
        }
        self.whole(path);
        for (name, value) in &metadata.xattrs {
            self.whole(name);
            self.whole(value);
        }
        match item {
            Item::Symlink { target } => self.whole(target),
            Item::File { .. } => {}
            _ => return Ok(()),
        }
        let failed =
            |error| LayerError::io(format!("reading `{}` of a new layer", display_path(path)))(error);
        self.content(content).map_err(failed)
    }
}

/// Which of `values` are in a layer that was just made, and is in the local store: in names, contents, links or attributes.
pub(crate) fn in_layer(
    engine: &Engine,
    layer: &FinishedLayer,
    values: &[(String, String)],
) -> Result<Vec<String>, BuildError> {
    let mut shown = Shown::new(values);
    if values.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |error: LayerError| BuildError::cache("looking through a new layer", error);
    let blob = fs_err::File::open(engine.cache.local().blob_path(&layer.digest))
        .map_err(|error| BuildError::cache("looking through a new layer", error))?;
    if let Some(mut reader) = TocReader::new(&layer.toc, layer.media_type, blob) {
        reader.visit(&mut shown).map_err(failed)?;
    }
    Ok(shown.names().map(str::to_owned).collect())
}

/// Which of `values` are in the paths that a step looked at.
fn in_paths(shape: &Shape, values: &[(String, String)]) -> Vec<String> {
    let mut shown = Shown::new(values);
    for (path, _) in shape.trees.iter().flatten() {
        shown.whole(path);
    }
    shown.names().map(str::to_owned).collect()
}

impl Solver<'_> {
    /// Which build arguments the step may be keyed without, what is likeliest first: as it was the last time, without all of
    /// them, without none. One at least.
    pub(super) fn unkeyed(&self, step: &PlannedStep) -> Vec<Vec<String>> {
        let Op::Run(op) = &step.op else { return vec![Vec::new()] };
        let all: Vec<String> = op.unkeyed.iter().map(|(name, _)| name.clone()).collect();
        let before = self.before.steps.iter().filter(|before| before.slot == step.slot);
        let before = before.map(|before| super::keys::names_unkeyed(&before.record.preimage));
        let before = before.filter(|names| names.iter().all(|name| all.contains(name)));
        let mut choices: Vec<Vec<String>> = Vec::new();
        for names in before.chain([all.clone(), Vec::new()]) {
            if !choices.contains(&names) {
                choices.push(names);
            }
        }
        choices
    }

    /// Those of them that nothing shows the value of; says why of the others. Where it is not known what the step looked at,
    /// it may have looked for anything.
    pub(super) fn unseen(&self, step: &PlannedStep, made: &Made) -> Vec<String> {
        let Op::Run(op) = &step.op else { return Vec::new() };
        let in_paths = made.reads.as_ref().map(|reads| in_paths(&reads.shape, &op.unkeyed));
        let mut unseen = Vec::new();
        for (name, _) in &op.unkeyed {
            let reason = match &in_paths {
                _ if made.shown.contains(name) => {
                    format!("what it made or printed shows the value of `{name}`")
                }
                None => "what it looked at was not traced".to_owned(),
                Some(names) if names.contains(name) => {
                    format!("the value of `{name}` is in a path that it looked at")
                }
                Some(_) => {
                    unseen.push(name.clone());
                    continue;
                }
            };
            let place = format!("{}:{}", self.dockerfile.name, step.lines);
            let message = format!("{place}: this step is keyed on `{name}` all the same: {reason}");
            self.emit(Event::Warning { message });
        }
        unseen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(values: &[(&str, &str)], pieces: &[&str]) -> Vec<String> {
        let values: Vec<_> =
            values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut shown = Shown::new(&values);
        for piece in pieces {
            shown.push(piece.as_bytes());
        }
        shown.names().map(str::to_owned).collect()
    }

    #[test]
    fn values_are_found_wherever_they_are_cut() {
        let text = "built from 0123abcd, at last";
        for cut in 0..text.len() {
            for second in cut..text.len() {
                let pieces = [&text[..cut], &text[cut..second], &text[second..]];
                assert_eq!(shown(&[("A", "0123abcd"), ("B", "last!"), ("C", "t")], &pieces), ["A", "C"]);
            }
        }
    }

    #[test]
    fn what_stands_by_itself_is_not_read_on() {
        let mut shown = Shown::new(&[("A".to_owned(), "ab".to_owned())]);
        shown.whole(b"a");
        shown.whole(b"b");
        shown.content(&mut &b"xa"[..]).unwrap();
        shown.content(&mut &b"bx"[..]).unwrap();
        assert_eq!(shown.names().count(), 0);
        shown.content(&mut &b"xab"[..]).unwrap();
        assert_eq!(shown.names().count(), 1);
    }
}
