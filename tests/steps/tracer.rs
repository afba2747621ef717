//! A process stepped instruction by instruction, by ptrace(2).

use nix::errno::Errno;
use nix::sys::ptrace::{self, AddressType, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::read_to_string;
use std::process::Command;

/// A stopped process, traced by this one. It does not outlive its tracer.
pub struct Tracee(Pid);

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The process has stopped behind an instruction.
    Taken,
    /// It sleeps on a futex, in the middle of an instruction.
    Asleep,
    /// It has ended.
    Ended,
}

/// The instruction that stops a traced process, and how far it moves the program counter.
#[cfg(target_arch = "x86_64")]
const BREAK: (&[u8], u64) = (&[0xCC], 1);
#[cfg(target_arch = "aarch64")]
const BREAK: (&[u8], u64) = (&0xD420_0000u32.to_le_bytes(), 0);

impl Tracee {
    /// Takes hold of a running process and stops it.
    pub fn seize(pid: u32) -> nix::Result<Tracee> {
        let tracee = Tracee(Pid::from_raw(pid as i32));
        ptrace::seize(tracee.0, Options::PTRACE_O_EXITKILL)?;
        ptrace::interrupt(tracee.0)?;
        match tracee.stopped(|| true) {
            Step::Ended => Err(Errno::ESRCH),
            _ => Ok(tracee),
        }
    }

    /// Its number.
    pub fn pid(&self) -> Pid {
        self.0
    }

    /// Where the instruction lies that comes next.
    pub fn address(&self) -> u64 {
        let registers = ptrace::getregs(self.0).expect("registers of a stopped process");
        #[cfg(target_arch = "x86_64")]
        return registers.rip;
        #[cfg(target_arch = "aarch64")]
        return registers.pc;
    }

    fn go_back_to(&self, address: u64) {
        let mut registers = ptrace::getregs(self.0).expect("registers of a stopped process");
        #[cfg(target_arch = "x86_64")]
        let counter = &mut registers.rip;
        #[cfg(target_arch = "aarch64")]
        let counter = &mut registers.pc;
        *counter = address;
        ptrace::setregs(self.0, registers).expect("registers of a stopped process");
    }

    /// Executes one instruction. While it sleeps, `wait` is asked now and then whether it may go on sleeping.
    pub fn step(&self, wait: impl Fn() -> bool) -> Step {
        match ptrace::step(self.0, None) {
            Ok(()) => self.stopped(wait),
            Err(_) => Step::Ended,
        }
    }

    /// Lets it run until it comes to the instruction at `address`; `wait` as for [`Tracee::step`].
    pub fn run_to(&self, address: u64, wait: impl Fn() -> bool) -> Step {
        let (stop, moved) = BREAK;
        let place = address as AddressType;
        let code = ptrace::read(self.0, place).expect("the victim's code");
        let mut broken = code.to_ne_bytes();
        broken[..stop.len()].copy_from_slice(stop);
        ptrace::write(self.0, place, i64::from_ne_bytes(broken)).expect("the victim's code");
        ptrace::cont(self.0, None).expect("a stopped process");
        let step = self.stopped(wait);
        if step == Step::Taken {
            assert_eq!(self.address(), address + moved, "the breakpoint");
            ptrace::write(self.0, place, code).expect("the victim's code");
            self.go_back_to(address);
        }
        step
    }

    fn stopped(&self, wait: impl Fn() -> bool) -> Step {
        for look in 1u64.. {
            match waitpid(self.0, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive)
                    if look % 64 == 0 && is_asleep(self.0.as_raw() as u32) && !wait() =>
                {
                    return Step::Asleep;
                }
                Ok(WaitStatus::StillAlive) => std::thread::yield_now(),
                Ok(WaitStatus::Stopped(_, Signal::SIGTRAP) | WaitStatus::PtraceEvent(..)) => break,
                Ok(WaitStatus::Stopped(_, signal)) => panic!("{signal} while stepping"),
                Err(Errno::EINTR) => {}
                _ => return Step::Ended,
            }
        }
        Step::Taken
    }

    /// Kills it; it executes nothing more. Returns when its parent may collect it.
    pub fn kill(self) {
        let _ = kill(self.0, Signal::SIGKILL);
        while let Ok(status) = waitpid(self.0, Some(WaitPidFlag::__WALL)) {
            if matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {
                return;
            }
        }
    }
}

/// Does the process sleep on a futex?
pub fn is_asleep(pid: u32) -> bool {
    let call = read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().and_then(|number| number.parse().ok());
    number.is_some_and(|number: i64| [nix::libc::SYS_futex, nix::libc::SYS_futex_waitv].contains(&number))
}

/// Has the process ended, and been collected?
pub fn is_gone(pid: u32) -> bool {
    kill(Pid::from_raw(pid as i32), None) == Err(Errno::ESRCH)
}

/// Why processes cannot be traced here, if they cannot.
pub fn refused() -> Option<String> {
    let mut sleeper = Command::new("sleep").arg("10").spawn().expect("sleep runs");
    let seized = Tracee::seize(sleeper.id()).map_err(|errno| format!("ptrace is refused here: {errno}"));
    let seen = read_to_string(format!("/proc/{}/syscall", sleeper.id()));
    let told = seized.and_then(|_| seen.map_err(|error| format!("/proc/PID/syscall: {error}"))).err();
    let _ = sleeper.kill();
    let _ = sleeper.wait();
    told
}
