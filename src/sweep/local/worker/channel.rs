//! Messages between a launcher and a worker: one a packet, as JSON, with open files.

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

/// What a worker is told; trials by the names of their folders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Train a trial, with so many threads; its lock and its log come with it.
    Train(String, usize),
    /// Let it write its checkpoint and end.
    Stop(String),
    /// Let it end at once.
    Drop(String),
}

/// What a worker tells: a trial has ended, with the exit status that a process of its own would have had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited(pub String, pub u8);

/// Most open files that come with a message.
const FILES: usize = 2;
/// Longest message, in bytes.
const LONGEST: usize = 1024;

/// One end of the line between the two.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What lies there.
#[derive(Debug)]
pub enum Received<T> {
    /// Nothing yet.
    Nothing,
    /// A message, and the files that came with it.
    Message(T, Vec<OwnedFd>),
    /// The other end is closed: nothing more will come.
    Closed,
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Channel {
        Channel(socket)
    }
}

impl Channel {
    /// Both ends of a new line. What is sent keeps its bounds.
    ///
    /// # Errors
    /// The system's.
    pub fn pair() -> Result<(Channel, OwnedFd)> {
        let (own, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel(own), other))
    }

    /// Whether a file can be an end of one.
    pub fn is(file: &OwnedFd) -> bool {
        rustix::net::sockopt::socket_type(file) == Ok(SocketType::SEQPACKET)
    }

    /// Sends a message; the other end has the files too then.
    ///
    /// # Errors
    /// The system's; that the other end is closed.
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

    /// What lies there, or comes within so many milliseconds.
    ///
    /// # Errors
    /// The system's; what is no message.
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
            // It ended with messages of ours unread.
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
        // The same open file, not a copy of what is in it.
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
