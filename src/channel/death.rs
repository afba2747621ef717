//! Deaths of processes as words of shared memory.
//!
//! | bits 8 to 10 | death | bits 0 to 7 |
//! | --- | --- | --- |
//! | 0 | unknown, or none | |
//! | 1 | exit | the code |
//! | 2 | signal | its number |
//! | 3 | killed by the kernel for want of memory | |
//! | 4 | SIGSEGV at memory that the process was kept from | 1 if it could be read |
//! | 5 | became another program | |

use crate::error::Death;
use crate::os::inherit;
use crate::os::signal;
use crate::sync::atomic::{AtomicU32, Ordering};

/// Returns `Death::Inherited` for a death by SIGSEGV at memory that the process was kept from, which its
/// handler noted in `fault`; `death` itself for all others.
pub(crate) fn explained(death: Death, fault: &AtomicU32) -> Death {
    match inherit::noted(fault.load(Ordering::Relaxed)) {
        Some(readable) if death == Death::Signal(signal::SEGV) => Death::Inherited { readable },
        _ => death,
    }
}

/// Returns the word for a death.
pub(crate) fn encode(death: Death) -> u32 {
    match death {
        Death::Exit(code) => 0x100 | (code as u32 & 0xFF),
        Death::Signal(number) => 0x200 | (number as u32 & 0xFF),
        Death::Oom => 0x300,
        Death::Exec => 0x500,
        Death::Inherited { readable } => 0x400 | u32::from(readable),
        Death::Unknown => 0,
    }
}

/// Returns the death that a word stands for; `Unknown` for words that [`encode`] does not make.
pub(crate) fn decode(word: u32) -> Death {
    match word >> 8 {
        1 => Death::Exit((word & 0xFF) as i32),
        2 => Death::Signal((word & 0xFF) as i32),
        3 => Death::Oom,
        5 => Death::Exec,
        4 => Death::Inherited { readable: word & 1 != 0 },
        _ => Death::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_survive_encoding() {
        let inherited = [true, false].map(|readable| Death::Inherited { readable });
        let others =
            [Death::Exit(0), Death::Exit(255), Death::Signal(9), Death::Oom, Death::Exec, Death::Unknown];
        for death in others.into_iter().chain(inherited) {
            assert_eq!(decode(encode(death)), death);
        }
    }
}
