//! The time for which a process has been stopped, by a signal or a debugger. The kernel tells no one, so that
//! a supervisor looks now and then. A stopped process holds up all that wait for it, as if it were dead, but
//! no robust word says so.

use crate::os::launcher::host;
use crate::os::process::Process;
use std::io::Write;
use std::time::Duration;

/// The shortest time between two looks of a supervisor.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// The number of looks per second, each of which costs some 50 us: more slots are looked at less often.
const LOOKS: usize = 16;
/// The time after which, in a world without a deadline, a process that is stopped is named on standard error.
pub(super) const STOPPED: Duration = Duration::from_secs(10);

/// Returns the time between two looks of a supervisor of `watched` processes.
pub(super) fn period(watched: usize) -> Duration {
    LOOK * watched.div_ceil(LOOKS).max(1) as u32
}

/// The time for which a process has been seen stopped; `None` if it is not stopped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stopped(Option<Duration>);

impl Stopped {
    /// Looks at the process, once per `period`; the last look was `passed` ago. Returns true once per stop:
    /// at the first look that finds the process stopped for `patience`.
    pub(super) fn exceeds(
        &mut self,
        patience: Duration,
        process: &Process,
        (passed, period): (Duration, Duration),
    ) -> bool {
        let before = self.0;
        // The supervisor may have been stopped as well: little of a long time without a look counts.
        let stopped = || before.map_or(Duration::ZERO, |before| before + passed.min(2 * period));
        self.0 = process.is_held().then(stopped);
        self.0.is_some_and(|stopped| stopped >= patience) && before.is_none_or(|before| before < patience)
    }
}

/// Prints on standard error which process is stopped, and how to continue it: its peers only seem to hang.
pub(super) fn tell_stopped(name: &str, process: &Process, patience: Duration) {
    let (pid, host) = (process.pid(), host());
    let _ = writeln!(
        std::io::stderr(),
        "phalanx: {name} (process {pid} on {host}) has been stopped for {patience:?}, by a signal or a debugger; `kill -CONT {pid}` \
         continues it"
    );
}
