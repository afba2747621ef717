//! Half a round trip of a message over iceoryx2, whatever its size: published, received by polling, answered.
//!
//! usage: peers-iceoryx --bytes N[,N...] --budget-ms MS
//!
//! Prints side,op,class,variant,ranks,bytes,median_us,p10_us,p90_us,iterations,0,0. What is sent is written before the clock
//! starts; the other process reads one element and writes one of its answer, which is compared in every iteration.

use core::error::Error;
use iceoryx2::port::{publisher::Publisher, subscriber::Subscriber};
use iceoryx2::prelude::*;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;
type Service = ipc::Service;

const WARM_UP: usize = 50;
const FEWEST: usize = 5;
const MOST: usize = 10_000;

/// Both directions of one of the two processes.
struct Line {
    send: Publisher<Service, [f64], ()>,
    receive: Subscriber<Service, [f64], ()>,
    len: usize,
}

impl Line {
    fn new(node: &Node<Service>, name: &str, len: usize, is_echo: bool) -> Outcome<Line> {
        let service = |way: &str| -> Outcome<_> {
            let name = ServiceName::new(&format!("{name}/{len}/{way}"))?;
            Ok(node.service_builder(&name).publish_subscribe::<[f64]>().open_or_create()?)
        };
        let (out, back) = if is_echo { ("back", "out") } else { ("out", "back") };
        let send = service(out)?.publisher_builder().initial_max_slice_len(len).create()?;
        Ok(Line { send, receive: service(back)?.subscriber_builder().create()?, len })
    }

    /// Waits for a message; its first element.
    fn take(&self) -> Outcome<f64> {
        loop {
            if let Some(sample) = self.receive.receive()? {
                return Ok(sample.payload()[0]);
            }
            std::hint::spin_loop();
        }
    }

    /// Answers every message with one that starts with its first element plus one, until that is no number.
    fn echo(&self) -> Outcome<()> {
        loop {
            let first = self.take()?;
            if first.is_nan() {
                return Ok(());
            }
            let mut sample = self.send.loan_slice_uninit(self.len)?;
            sample.payload_mut()[0].write(first + 1.0);
            // SAFETY: the rest is shared memory that was zeroed or written before, and every bit pattern is a number.
            unsafe { sample.assume_init() }.send()?;
        }
    }

    /// Microseconds of half a round trip.
    fn once(&self, number: usize) -> Outcome<f64> {
        let sample = self.send.loan_slice_uninit(self.len)?.write_from_fn(|index| (number + index) as f64);
        let start = Instant::now();
        sample.send()?;
        let answer = self.take()?;
        let elapsed = start.elapsed();
        if answer != number as f64 + 1.0 {
            return Err(format!("wrong: {answer} answers {number}").into());
        }
        Ok(elapsed.as_secs_f64() * 1e6 / 2.0)
    }

    fn measure(&self, budget: Duration) -> Outcome<Vec<f64>> {
        for number in 0..WARM_UP {
            self.once(number)?;
        }
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.len() < FEWEST || (times.len() < MOST && start.elapsed() < budget) {
            times.push(self.once(times.len())?);
        }
        self.send.loan_slice_uninit(self.len)?.write_from_fn(|_| f64::NAN).send()?;
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}

fn pin(which: usize) -> Outcome<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut own = CpuSet::new();
    let mut processors = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    own.set(processors.nth(which).ok_or("needs two processors")?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &own)?)
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| args.iter().skip_while(|arg| *arg != name).nth(1);
    let bytes = value("--bytes").ok_or("usage: peers-iceoryx --bytes N[,N...] --budget-ms MS")?;
    let budget = Duration::from_millis(value("--budget-ms").map_or(Ok(300), |ms| ms.parse())?);
    let lens = bytes.split(',').map(|size| Ok((size.parse::<usize>()? / 8).max(1))).collect::<Outcome<Vec<usize>>>()?;
    set_log_level(LogLevel::Error);

    if let Some(name) = value("--echo") {
        pin(1)?;
        let node = NodeBuilder::new().create::<Service>()?;
        for len in lens {
            let line = Line::new(&node, name, len, true)?;
            println!("ready");
            line.echo()?;
        }
        return Ok(());
    }
    let name = format!("peers/{}", std::process::id());
    let mut other = Command::new(std::env::current_exe()?);
    let mut other = other.args(["--echo", &name, "--bytes", bytes]).stdout(Stdio::piped()).spawn()?;
    let mut ready = BufReader::new(other.stdout.take().ok_or("no pipe")?).lines();
    pin(0)?;
    let node = NodeBuilder::new().create::<Service>()?;
    for len in lens {
        let line = Line::new(&node, &name, len, false)?;
        ready.next().ok_or("the other process has ended")??;
        let times = line.measure(budget)?;
        let at = |tenth: usize| times[(times.len() - 1) * tenth / 10];
        println!("iceoryx2,pingpong,zero_copy,half,2,{},{:.3},{:.3},{:.3},{},0,0", len * 8, at(5), at(1), at(9), times.len());
    }
    other.wait()?;
    Ok(())
}
