//! What the executor and its helper processes say to each other.
//!
//! One socket pair for each run: the executor sends the step, the helpers answer with reports. A message is
//! its length (4 bytes, little-endian) and JSON. Both ends are the same program, so nothing is versioned.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::exec::{ExecStep, Exit, Ids};

/// Secrets and heredocs are the large parts; nobody writes hundreds of megabytes of them.
const MAX_MESSAGE: u32 = 256 << 20;

/// First argument of the process that holds the step's namespaces and waits for it.
pub(super) const SUPERVISOR: &str = "__exec-supervisor";
/// First argument of the process that becomes the step's command.
pub(super) const INIT: &str = "__exec-init";
/// First argument of the process that writes the id maps of a user namespace.
pub(super) const MAP_IDS: &str = "__map-ids";

/// First argument of a process that runs one step from its standard input, as root or in a user namespace.
pub(super) const ONCE: &str = "__exec-once";

/// From the executor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) step: ExecStep,
    pub(super) ids: Ids,
    /// An OCI runtime that takes over once the root is there.
    pub(super) runtime: Option<PathBuf>,
    /// The content of `/etc/resolv.conf` and `/etc/hosts` in the step.
    pub(super) resolv_conf: String,
    pub(super) hosts: String,
}

/// From the helpers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// Something works in a lesser way.
    Note(String),
    /// The served tree of this place is mounted; the message brings the device that its questions come from.
    Mounted(usize),
    /// A mount point was created.
    Created(Stub),
    /// The sandbox cannot be set up.
    Failed { what: String, reason: String, advice: Option<String> },
    /// The command ended.
    Ended(Exit),
}

/// A mount point that the executor made in the step's root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Stub {
    /// Components from the root.
    pub(super) path: Vec<Vec<u8>>,
    pub(super) is_dir: bool,
    /// Modification time of the parent (seconds, nanoseconds) before and after it was made.
    pub(super) parent_before: (i64, i64),
    pub(super) parent_after: (i64, i64),
}

pub(super) fn send<T: Serialize>(mut to: impl Write, message: &T) -> io::Result<()> {
    to.write_all(&frame(message)?)
}

/// Sends a message and a descriptor with it.
pub(super) fn send_with(to: &UnixStream, message: &Report, device: impl AsFd) -> io::Result<()> {
    let framed = frame(message)?;
    let devices = [device.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&devices));
    let sent = rustix::net::sendmsg(to, &[IoSlice::new(&framed)], &mut ancillary, SendFlags::NOSIGNAL)?;
    // The descriptor has gone with the first byte.
    let mut rest = to;
    rest.write_all(framed.get(sent..).unwrap_or_default())
}

fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|&length| length <= MAX_MESSAGE);
    let length = length.ok_or_else(|| io::Error::other("the step's description is larger than 256 MiB"))?;
    let mut framed = Vec::with_capacity(body.len() + 4);
    framed.extend_from_slice(&length.to_le_bytes());
    framed.extend_from_slice(&body);
    Ok(framed)
}

/// The next message, and the descriptor that comes with it.
pub(super) fn receive_with(from: &UnixStream, device: &mut Option<OwnedFd>) -> io::Result<Option<Report>> {
    // The kernel gives a descriptor to whoever reads the first byte that it was sent with, and no more bytes with it.
    let mut first = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut buffers = [IoSliceMut::new(&mut first)];
        match rustix::net::recvmsg(from, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    // The kernel drops what it has no number for.
    if received.flags.contains(rustix::net::ReturnFlags::CTRUNC) {
        return Err(rustix::io::Errno::MFILE.into());
    }
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut devices) = message {
            *device = devices.next();
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    receive(first.as_slice().chain(from))
}

/// The next message; `None` at the end of the stream.
pub(super) fn receive<T: DeserializeOwned>(mut from: impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_le_bytes(length);
    if length > MAX_MESSAGE {
        return Err(io::Error::other("a message that is longer than 256 MiB"));
    }
    let mut body = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_in_order_and_the_end_is_none() {
        let mut wire = Vec::new();
        send(&mut wire, &Report::Note("a".to_owned())).unwrap();
        send(&mut wire, &Report::Ended(Exit::Signal(9))).unwrap();
        let mut wire = wire.as_slice();
        assert!(matches!(receive(&mut wire).unwrap(), Some(Report::Note(text)) if text == "a"));
        assert!(matches!(receive(&mut wire).unwrap(), Some(Report::Ended(Exit::Signal(9)))));
        assert!(receive::<Report>(&mut wire).unwrap().is_none());
    }

    #[test]
    fn a_descriptor_comes_with_its_message() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        fs_err::File::from_parts(file.try_clone().unwrap(), "file").write_all(b"content").unwrap();
        send(&theirs, &Report::Note("before".to_owned())).unwrap();
        send_with(&theirs, &Report::Mounted(3), &file).unwrap();
        send(&theirs, &Report::Note("after".to_owned())).unwrap();
        drop(theirs);
        let next = || {
            let mut device = None;
            let report = receive_with(&ours, &mut device).unwrap();
            (report, device)
        };
        assert!(matches!(next(), (Some(Report::Note(text)), None) if text == "before"));
        let (report, device) = next();
        assert!(matches!(report, Some(Report::Mounted(3))));
        let device = std::fs::File::from(device.unwrap());
        assert_eq!(device.metadata().unwrap().len(), 7);
        assert!(matches!(next(), (Some(Report::Note(text)), None) if text == "after"));
        assert!(matches!(next(), (None, None)));
    }

    #[test]
    fn damaged_messages_are_errors() {
        assert!(receive::<Report>([255, 255, 255, 255, 0].as_slice()).is_err());
        assert!(receive::<Report>([9, 0, 0, 0, b'{'].as_slice()).is_err());
    }
}
