//! The worker process: trains its trials in turns on one thread, a step of each trial per turn. The
//! GPU work of each trial goes to a CUDA stream of its own, so that the device works on all trials
//! at once while this thread queues the next steps.

use crate::config::Document;
use crate::device;
use crate::native::CudaStream;
use crate::op::compact::per_sample::{self, Choices};
use crate::panics::{self, Failure};
use crate::signals;
use crate::sweep::local::worker::channel::{Channel, Command, Exited, Received};
use crate::sweep::store::Store;
use crate::text;
use crate::train::trial::{self, Trial};
use anyhow::{Context, Result, bail};
use signal_hook::consts::SIGTERM;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tch::Device;

/// Time that a worker without a trial waits before it checks for a signal, in milliseconds.
const PATIENCE: u32 = 200;

/// Trains the trials of a sweep that arrive through the channel, until the other end closes the
/// channel or SIGTERM arrives; then the trials write their checkpoints.
///
/// # Errors
/// I/O errors from the channel or a trial's log; a command without lock and log; a CUDA error that
/// makes the device useless to this process.
pub fn serve(store: &Store, mail: &Channel, device: Device) -> Result<()> {
    let term = signals::stop_flag(&[SIGTERM], &[])?;
    let (mut seats, mut is_open) = (Vec::new(), true);
    loop {
        while is_open {
            let wait = if seats.is_empty() { PATIENCE } else { 0 };
            match mail.receive(wait).context("the launcher's mail")? {
                Received::Nothing => break,
                Received::Closed => is_open = false,
                Received::Message(order, files) => carry_out(order, files, &mut seats, store, mail)?,
            }
        }
        is_open &= !term.load(Ordering::Relaxed);
        if !is_open {
            seats.iter().for_each(|seat| seat.stop.store(true, Ordering::Relaxed));
            if seats.is_empty() {
                return Ok(());
            }
        }
        take_turns(&mut seats, mail, device)?;
    }
}

fn carry_out(
    order: Command,
    files: Vec<OwnedFd>,
    seats: &mut Vec<HostedTrial>,
    store: &Store,
    mail: &Channel,
) -> Result<()> {
    match order {
        Command::Train(hash, threads) => {
            let Ok([lock, log]) = <[OwnedFd; 2]>::try_from(files) else { bail!("{hash}: came without lock and log") };
            let (folder, stop) = (store.trial(&hash), Arc::new(AtomicBool::new(false)));
            let (choices, log) = (Choices::new(), log.into());
            seats.push(HostedTrial {
                hash,
                folder,
                threads,
                stop,
                choices,
                trial: None,
                stream: None,
                log,
                _lock: lock,
            });
        }
        Command::Stop(hash) => {
            let told = seats.iter().filter(|seat| seat.hash == hash);
            told.for_each(|seat| seat.stop.store(true, Ordering::Relaxed));
        }
        Command::Drop(hash) => {
            seats.retain(|seat| seat.hash != hash);
            tell(mail, hash, 0);
        }
    }
    Ok(())
}

/// Reports the end of a trial. A launcher that has ended can't be told, and closed its channel.
fn tell(mail: &Channel, hash: String, status: u8) {
    let _ = mail.send(&Exited(hash, status), &[]);
}

/// Gives each trial a turn.
fn take_turns(seats: &mut Vec<HostedTrial>, mail: &Channel, device: Device) -> Result<()> {
    let mut place = 0;
    while let Some(seat) = seats.get_mut(place) {
        let status = match seat.turn(device)? {
            Turn::GoesOn => {
                place += 1;
                continue;
            }
            Turn::Done => 0,
            // Everything that this process had on the device is lost, and the trial that caused the
            // error is unknown: each trial is tried again alone.
            Turn::Failed(Failure { message, .. }) if message.contains("CUDA error") => bail!("{message}"),
            Turn::Failed(Failure { status, .. }) => status,
        };
        let seat = seats.remove(place);
        let hash = seat.hash.clone();
        // The trial's files are closed before its end is reported.
        drop(seat);
        tell(mail, hash, status);
    }
    Ok(())
}

/// Outcome of a trial's turn.
enum Turn {
    GoesOn,
    Done,
    Failed(Failure),
}

/// A trial of a worker.
struct HostedTrial {
    hash: String,
    folder: PathBuf,
    threads: usize,
    stop: Arc<AtomicBool>,
    /// Algorithms chosen for the trial's per-sample convolutions.
    choices: Choices,
    /// None until the first turn.
    trial: Option<Trial>,
    /// CUDA stream of the trial; none on the CPU, and if this program has no streams.
    stream: Option<CudaStream>,
    log: File,
    _lock: OwnedFd,
}

impl HostedTrial {
    /// Opens the trial in its first turn, and advances it by a step in each later turn.
    fn turn(&mut self, device: Device) -> Result<Turn> {
        device::set_threads(Some(self.threads));
        if self.trial.is_none()
            && let Device::Cuda(index) = device
        {
            self.stream = CudaStream::new(index).ok();
        }
        let HostedTrial { folder, stop, choices, trial, stream, log, .. } = self;
        let step = || {
            let Some(trial) = trial else {
                let config = Document::read(&folder.join("config.yaml"), &[])?.config()?;
                let finished = trial::finished(&config, folder)?;
                if finished.is_none() {
                    *trial = Some(Trial::open(&config, folder, device, Arc::clone(stop))?);
                }
                return Ok(finished.is_some());
            };
            trial.advance().map(|result| result.is_some())
        };
        let step = || {
            let done = panics::caught(step);
            if let Err(Failure { message, told: false, .. }) = &done {
                panics::say(message);
            }
            done
        };
        let step = || match stream {
            Some(stream) => stream.scope(step),
            None => step(),
        };
        let done = text::logged(log, || per_sample::with_choices(choices, step)).context("a trial's log")?;
        Ok(match done {
            Ok(false) => Turn::GoesOn,
            Ok(true) => Turn::Done,
            Err(failure) => Turn::Failed(failure),
        })
    }
}
