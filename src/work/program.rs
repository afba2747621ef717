//! Other programs that workers run, each of which ends with its worker.

use crate::error::{Error, Result};
use crate::os::descriptor::poll;
use crate::os::process::{self, end_with_caller};
use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The time that a program has to end after its input has.
const TO_END: Duration = Duration::from_secs(2);
/// The length of a line that a pipe takes as a whole.
const PIPE: usize = 4096;
/// The most bytes of a program's complaints in an error.
const COMPLAINT: usize = 2000;

/// Another program, which a worker runs: a solver, an interpreter of another language. It ends with the thread that has
/// started it (a forked worker has one), however that ends: when a call is cancelled, too, or has passed its deadline.
/// Programs that it starts itself are its own to end: let a script `exec` the solver. Dropping it ends its input, and the
/// program two seconds later.
///
/// One that serves many calls is [started](Program::start) once for each worker, and answers a line with a line:
///
/// ```
/// use phalanx::{Program, Queue, Tasks};
/// use std::process::Command;
/// let mut tasks = Tasks::with_state(|| Ok(None));
/// tasks.set_up(|program, _| Ok(*program = Some(Program::start(&mut Command::new("cat"))?)));
/// let ask = tasks.register("ask", |program: &mut Option<Program>, line: String| {
///     Ok(program.as_mut().ok_or("not set up")?.ask(&line)?)
/// })?;
/// let answer = Queue { workers: Some(1), ..Queue::default() }.run(&tasks, |controller| {
///     let call = controller.submit(&ask, "7 apples".to_owned())?;
///     controller.get_result(&call)
/// })?;
/// assert_eq!(answer, Some("7 apples".to_owned()));
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Program {
    name: String,
    child: Child,
    /// `None` when the input has ended.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// The process that has started it.
    process: u32,
}

impl Program {
    /// Starts a program, with what else `command` says: arguments, environment, directory. Its standard input and output are
    /// for [`Program::ask`]; what it says on standard error is seen there.
    ///
    /// # Errors
    /// If the program cannot be started.
    ///
    /// ```
    /// use phalanx::Program;
    /// use std::process::Command;
    /// let mut upper = Program::start(Command::new("sed").args(["-u", "s/.*/\\U&/"]))?;
    /// assert_eq!(upper.ask("loud")?, "LOUD");
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn start(command: &mut Command) -> Result<Program> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()), &name)?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => {
                let (input, output) = (Some(input), BufReader::new(output));
                Ok(Program { name, child, input, output, process: process::incarnation() })
            }
            _ => Err(Error::Corrupt { what: "a program's pipes" }),
        }
    }

    /// Gives the program a line, and returns the line that it answers with, both without their ends. The program must say one
    /// line for each, of UTF-8, and not keep it in a buffer.
    ///
    /// # Errors
    /// If `line` has several; if the program has ended, also in the middle of its answer, or has said something that nobody
    /// has asked for; in a rank of a group, which has inherited the program of its worker.
    ///
    /// ```
    /// # use phalanx::Program;
    /// let mut program = Program::start(&mut std::process::Command::new("true"))?;
    /// let error = program.ask("are you there?").unwrap_err();
    /// assert!(error.to_string().contains("true has ended"));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn ask(&mut self, line: &str) -> Result<String> {
        if line.contains('\n') {
            return Err(Error::option("ask", "several lines; a program answers one line at a time"));
        }
        if self.process != process::incarnation() {
            let whose = "belongs to the process that has started it; a rank of a group starts one of its own";
            return Err(Error::other(format!("{} {whose}", self.name)));
        }
        let mut answer = String::new();
        if !self.output.buffer().is_empty() || poll(&[self.output.get_ref()], Duration::ZERO)[0] {
            if self.output.read_line(&mut answer).is_ok_and(|len| len > 0) {
                let said = format!("{} has said what nobody has asked for: {}", self.name, answer.trim_end());
                return Err(Error::other(said));
            }
            self.input = None;
        }
        let Program { input, output, .. } = self;
        let line = format!("{line}\n");
        let asked = match input {
            None => Err(ErrorKind::BrokenPipe.into()),
            Some(input) if line.len() <= PIPE => {
                input.write_all(line.as_bytes()).and_then(|()| output.read_line(&mut answer))
            }
            // A program may answer before it has read all.
            Some(input) => thread::scope(|scope| {
                scope.spawn(|| input.write_all(line.as_bytes()));
                output.read_line(&mut answer)
            }),
        };
        match asked {
            Ok(_) if answer.ends_with('\n') => {
                answer.truncate(answer.trim_end_matches(['\n', '\r']).len());
                Ok(answer)
            }
            Ok(1..) => {
                let how = self.end();
                Err(Error::other(format!("{} has ended ({how}) in the middle of its answer", self.name)))
            }
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(Error::other(format!("{}: {error}", self.name)))
            }
            _ => {
                let how = self.end();
                Err(Error::other(format!("{} has ended ({how})", self.name)))
            }
        }
    }

    /// Runs a program once: gives it all of `input`, and returns all of its output.
    ///
    /// # Errors
    /// If the program cannot be started, or ends with another status than 0; with what it has said on standard error.
    ///
    /// ```
    /// use phalanx::Program;
    /// use std::process::Command;
    /// assert_eq!(Program::run(Command::new("sort").arg("-n"), b"10\n9\n")?, b"9\n10\n");
    /// let error = Program::run(Command::new("ls").arg("/nowhere"), &[]).unwrap_err();
    /// assert!(error.to_string().contains("/nowhere"));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn run(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
        let name = command.get_program().to_string_lossy().into_owned();
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(piped, &name)?;
        let stdin = child.stdin.take();
        // A program may write before it has read everything, and may end before that.
        let output = thread::scope(|scope| {
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            child.wait_with_output()
        });
        let Output { status, stdout, stderr } =
            output.map_err(|error| Error::other(format!("{name}: {error}")))?;
        if status.success() {
            return Ok(stdout);
        }
        let said = String::from_utf8_lossy(&stderr[stderr.len().saturating_sub(COMPLAINT)..]);
        Err(Error::other(format!("{name} has ended ({status}): {}", said.trim())))
    }

    /// Ends the program's input, and then the program, if it does not end itself; returns how it has ended.
    fn end(&mut self) -> String {
        self.input = None;
        let begun = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.to_string(),
                Ok(None) if begun.elapsed() < TO_END => thread::sleep(Duration::from_millis(1)),
                _ => break,
            }
        }
        let _ = self.child.kill();
        self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

fn spawn(command: &mut Command, name: &str) -> Result<Child> {
    end_with_caller(command);
    command.spawn().map_err(|error| Error::other(format!("{name} cannot be started: {error}")))
}

impl Drop for Program {
    fn drop(&mut self) {
        // A copy that came with a fork is not this process's to end.
        if self.process == process::incarnation() {
            self.end();
        }
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({}, process {})", self.name, self.child.id())
    }
}
