//! Messages between a launcher and a worker: one JSON message per packet, with open files attached.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Error, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Commands to a worker. A trial is given by the name of its folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Train a trial with the given number of threads. The trial's lock and log are attached.
    Train(String, usize),
    /// Let the trial write its checkpoint and end.
    Stop(String),
    /// End the trial at once.
    Drop(String),
}

/// Report of a worker that a trial has ended: the trial and the exit status that a process of its
/// own would have had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited(pub String, pub u8);

/// Largest number of open files attached to a message.
const FILES: usize = 2;
/// Largest length of a message, in bytes.
const LONGEST: usize = 1024;

/// One end of the connection between a launcher and a worker.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// Result of a receive.
#[derive(Debug)]
pub enum Received<T> {
    /// No message yet.
    Nothing,
    /// A message and the files attached to it.
    Message(T, Vec<OwnedFd>),
    /// The other end is closed: no further message will come.
    Closed,
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Channel {
        Channel(socket)
    }
}

impl Channel {
    /// Creates both ends of a new connection, which keeps the boundaries of messages.
    ///
    /// # Errors
    /// I/O errors from creating the sockets.
    pub fn pair() -> Result<(Channel, OwnedFd)> {
        let (own, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel(own), other))
    }

    /// Returns whether a file can be the end of a channel, that is, whether it is a SEQPACKET
    /// socket.
    pub fn is(file: &OwnedFd) -> bool {
        rustix::net::sockopt::socket_type(file) == Ok(SocketType::SEQPACKET)
    }

    /// Sends a message. The other end receives duplicates of the open `files`.
    ///
    /// # Errors
    /// I/O errors from sending, among them that the other end is closed; more files than a message
    /// can carry.
    pub fn send(&self, message: &impl Serialize, files: &[BorrowedFd]) -> Result<()> {
        let text = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut more = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !more.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(Error::other("more open files than a message has room for"));
        }
        sendmsg(&self.0, &[IoSlice::new(&text)], &mut more, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Receives a waiting message, or one that arrives within `milliseconds` milliseconds.
    ///
    /// # Errors
    /// I/O errors from receiving; a packet that is not a valid message.
    pub fn receive<T: DeserializeOwned>(&self, milliseconds: u32) -> Result<Received<T>> {
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(milliseconds) * 1_000_000 };
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&wait)) {
            Ok(0) | Err(Errno::INTR) => return Ok(Received::Nothing),
            ready => ready?,
        };
        let mut text = [0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut more = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut text)], &mut more, RecvFlags::CMSG_CLOEXEC);
        let length = match received {
            Ok(received) => received.bytes,
            // The other end closed with messages from this end unread.
            Err(Errno::CONNRESET) => 0,
            Err(error) => return Err(error.into()),
        };
        if length == 0 {
            return Ok(Received::Closed);
        }
        let rights = more.drain().filter_map(|more| match more {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let files = rights.flatten().collect();
        Ok(Received::Message(serde_json::from_slice(&text[..length])?, files))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn messages_keep_their_order_bounds_and_files() {
        let (near, far) = Channel::pair().unwrap();
        let far = Channel::from(far);
        assert!(matches!(far.receive::<Command>(0).unwrap(), Received::Nothing));
        let mut file = tempfile::tempfile().unwrap();
        let orders = [Command::Train("ab12".into(), 3), Command::Stop("ab12".into())];
        near.send(&orders[0], &[file.as_fd(), file.as_fd()]).unwrap();
        near.send(&orders[1], &[]).unwrap();
        let Received::Message(order, files) = far.receive::<Command>(0).unwrap() else { panic!("nothing") };
        assert_eq!((&order, files.len()), (&orders[0], 2));
        // The received file is the same open file, not a copy of its content.
        File::from(files.into_iter().next().unwrap()).write_all(b"x").unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        let Received::Message(order, files) = far.receive::<Command>(0).unwrap() else { panic!("nothing") };
        assert_eq!((&order, files.len()), (&orders[1], 0));
        far.send(&Exited("ab12".into(), 75), &[]).unwrap();
        drop(far);
        let Received::Message(ended, _) = near.receive::<Exited>(0).unwrap() else { panic!("nothing") };
        assert_eq!(ended, Exited("ab12".into(), 75), "what was sent is there, though the other end is closed");
        assert!(matches!(near.receive::<Exited>(0).unwrap(), Received::Closed));
        assert!(near.send(&orders[1], &[]).is_err());
    }
}
