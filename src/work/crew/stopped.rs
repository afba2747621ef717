//! Processes that a signal or a debugger has stopped.

use crate::os::launcher::host;
use crate::os::process::Process;
use std::io::Write;
use std::time::Duration;

/// How often a supervisor looks whether those that it watches are stopped.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// A look costs some 50 us: so many are taken per second, and more slots are looked at less often.
const LOOKS: usize = 16;
/// A slot that is stopped for longer is named, in a world without a deadline.
pub(super) const STOPPED: Duration = Duration::from_secs(10);

/// How often a supervisor of so many looks whether they are stopped.
pub(super) fn period(watched: usize) -> Duration {
    LOOK * watched.div_ceil(LOOKS).max(1) as u32
}

/// How long a process has been seen stopped; none if it is not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stopped(Option<Duration>);

impl Stopped {
    /// Looks, as happens once per `period`, and so long after the last time; returns whether it is now that it has been stopped for longer than `patience`.
    pub(super) fn exceeds(
        &mut self,
        patience: Duration,
        process: &Process,
        (passed, period): (Duration, Duration),
    ) -> bool {
        let before = self.0;
        // While nobody looked nothing is known.
        let stopped = || before.map_or(Duration::ZERO, |before| before + passed.min(2 * period));
        self.0 = process.is_held().then(stopped);
        self.0.is_some_and(|stopped| stopped >= patience) && before.is_none_or(|before| before < patience)
    }
}

pub(super) fn tell_stopped(name: &str, process: &Process, patience: Duration) {
    let (pid, host) = (process.pid(), host());
    let _ = writeln!(
        std::io::stderr(),
        "phalanx: {name} (process {pid} on {host}) has been stopped for {patience:?}, by a signal or a debugger; `kill -CONT {pid}` \
         continues it"
    );
}
