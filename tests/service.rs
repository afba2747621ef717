//! Queues that other programs find by name, and arrays that they share by name.

#![expect(clippy::unwrap_used, reason = "tests")]

/// Functions as cases by their names.
macro_rules! cases {
    ($($name:ident)*) => { &[$((stringify!($name), $name)),*] };
}

mod support;

use ndarray::{Array1, Array2, Ix1, Ix2, arr1};
use phalanx::{
    Controller, Error, Launch, NamedArray, Op, Queue, Reason, Result, Service, Submit, Tasks, WhenFull,
};
use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::Case;

const CASES: &[Case] = cases![
    programs_submit_calls
    several_programs_are_served_at_once
    long_values_go_both_ways
    a_full_queue_lets_programs_wait
    a_program_that_is_killed_costs_nothing
    a_service_that_is_killed_is_told
    strangers_are_kept_out
    one_name_is_one_service
    wrong_calls_are_refused
    a_service_ends_when_nobody_comes
    programs_share_arrays_by_name
    python_opens_an_array
    a_fork_takes_no_name_away
    wrong_arrays_are_refused
];

/// Says that this program is to be a service of that name, or a client that is killed.
const ROLE: &str = "PHALANX_TEST_ROLE";

fn main() -> std::process::ExitCode {
    match std::env::var(ROLE).ok().as_deref().and_then(|role| role.split_once(' ')) {
        Some(("serve", name)) => serve(name, &Queue { workers: Some(3), ..Queue::default() }),
        Some(("limited", name)) => {
            let queue = Queue { workers: Some(1), max_calls: Some(2), ..Queue::default() };
            serve(name, &queue);
        }
        Some(("refusing", name)) => {
            let (max_calls, when_full) = (Some(2), WhenFull::Refuse);
            serve(name, &Queue { workers: Some(1), max_calls, when_full, ..Queue::default() });
        }
        Some(("client", name)) => sleepy_client(name),
        _ => return support::main(CASES),
    }
    std::process::ExitCode::SUCCESS
}

fn serve(name: &str, queue: &Queue) {
    let mut tasks = Tasks::with_state(|| Ok(7u64));
    tasks.register("add", |state: &mut u64, x: u64| Ok(*state + x)).unwrap();
    tasks.register("fail", |_, text: String| Err::<(), _>(Reason::from(text))).unwrap();
    tasks.register("die", |_, ()| -> Result<(), Reason> { std::process::abort() }).unwrap();
    tasks
        .register("sleep", |_, ms: u64| {
            std::thread::sleep(Duration::from_millis(ms));
            Ok(ms)
        })
        .unwrap();
    tasks
        .register("reverse", |_, x: Array1<f64>| Ok(x.iter().rev().copied().collect::<Array1<f64>>()))
        .unwrap();
    tasks
        .register("double", |_, mut x: NamedArray<f64, Ix2>| {
            let doubled = x.to_array()? * 2.0;
            x.assign(&doubled)?;
            Ok(x)
        })
        .unwrap();
    tasks.register("lease", |_, n: usize| Ok(phalanx::Lease::<f64, Ix1>::zeros(n)?)).unwrap();
    tasks
        .register_collective("ranks", |_, comm, x: &u64| {
            Ok(comm.all_reduce_value(*x + comm.rank() as u64, &Op::sum())?)
        })
        .unwrap();
    let own = tasks.register("own", |_, x: u64| Ok(x)).unwrap();
    queue
        .run(&tasks, |controller: &mut Controller<'_>| {
            controller.publish(name)?;
            // Its own calls go on as ever.
            let call = controller.submit(&own, 3)?;
            assert_eq!(controller.get_result(&call)?, 3);
            controller.serve(None)?;
            assert!(controller.get_next_result()?.is_none(), "no result of others is among its own");
            Ok(())
        })
        .unwrap();
}

/// A service in another program, which is killed with this value.
struct Program(Child);

impl Program {
    fn new(role: &str, name: &str) -> Program {
        let this = std::env::current_exe().unwrap();
        let role = format!("{role} {name}");
        Program(Command::new(this).env(ROLE, role).stdin(Stdio::null()).spawn().unwrap())
    }

    fn ends_well(mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn name() -> String {
    format!("test-{}", support::mark())
}

fn directory() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
    let user = nix::unistd::geteuid();
    runtime.map_or(std::env::temp_dir().join(format!("phalanx-{user}")), |path| path.join("phalanx"))
}

fn programs_submit_calls() {
    let name = name();
    let program = Program::new("serve", &name);
    let mut service = Service::connect(&name, 50).unwrap();
    assert!(service.functions().contains(&"add".to_owned()));
    let calls: Vec<_> =
        (0..300u64).map(|x| service.submit::<_, u64>("add", &x, Submit::default()).unwrap()).collect();
    for (x, call) in calls.iter().enumerate().rev() {
        assert_eq!(service.get_result(call).unwrap(), 7 + x as u64);
    }
    assert!(service.get_result(&calls[0]).unwrap_err().to_string().contains("taken already"));
    let failed = service.submit::<_, ()>("fail", &"no salt".to_owned(), Submit::default()).unwrap();
    match service.get_result(&failed) {
        Err(Error::Call { function, text, .. }) => assert_eq!((&*function, &*text), ("fail", "no salt")),
        other => panic!("{other:?}"),
    }
    let died = service.submit::<_, ()>("die", &(), Submit::default()).unwrap();
    assert!(service.get_result(&died).unwrap_err().to_string().contains("SIGABRT"));
    let deadline = Submit { deadline: Some(Duration::from_millis(50)), ..Submit::default() };
    let late = service.submit::<_, u64>("sleep", &60_000u64, deadline).unwrap();
    assert!(service.get_result(&late).unwrap_err().to_string().contains("deadline"));
    let group =
        service.submit::<_, Vec<u64>>("ranks", &5u64, Submit { ranks: 3, ..Submit::default() }).unwrap();
    assert_eq!(service.get_result(&group).unwrap(), [18; 3]);
    service.stop().unwrap();
    program.ends_well();
    let left = std::fs::read_dir(directory()).unwrap().flatten();
    let left: Vec<_> = left.filter(|entry| entry.file_name().to_string_lossy().contains(&name)).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(Service::connect(&name, 1).unwrap_err().to_string().contains("no service"));
}

fn several_programs_are_served_at_once() {
    let name = name();
    let program = Program::new("serve", &name);
    std::thread::scope(|scope| {
        for client in 0..4u64 {
            let name = &name;
            scope.spawn(move || {
                let mut service = Service::connect(name, 50).unwrap();
                for turn in 0..50 {
                    let x = 1000 * client + turn;
                    let call = service.submit::<_, u64>("add", &x, Submit::default()).unwrap();
                    assert_eq!(service.get_result(&call).unwrap(), x + 7);
                }
            });
        }
    });
    Service::connect(&name, 1).unwrap().stop().unwrap();
    program.ends_well();
}

fn long_values_go_both_ways() {
    let name = name();
    let _program = Program::new("serve", &name);
    let mut service = Service::connect(&name, 50).unwrap();
    for len in [0, 1, 1000, 100_000, 3_000_000] {
        let x = Array1::from_iter((0..len).map(f64::from));
        let calls =
            [(); 2].map(|()| service.submit::<_, Array1<f64>>("reverse", &x, Submit::default()).unwrap());
        for call in calls {
            assert!(service.get_result(&call).unwrap().iter().rev().eq(x.iter()), "{len}");
        }
    }
}

fn a_full_queue_lets_programs_wait() {
    let name = name();
    let program = Program::new("limited", &name);
    let mut service = Service::connect(&name, 50).unwrap();
    let calls: Vec<_> =
        (0..500u64).map(|x| service.submit::<_, u64>("add", &x, Submit::default()).unwrap()).collect();
    for (x, call) in calls.iter().enumerate() {
        assert_eq!(service.get_result(call).unwrap(), 7 + x as u64);
    }
    service.stop().unwrap();
    program.ends_well();
    let name = self::name();
    let program = Program::new("refusing", &name);
    let mut service = Service::connect(&name, 50).unwrap();
    let calls: Vec<_> =
        (0..50).map(|_| service.submit::<_, u64>("sleep", &5u64, Submit::default()).unwrap()).collect();
    let results: Vec<_> = calls.iter().map(|call| service.get_result(call)).collect();
    assert!(results.iter().any(Result::is_ok));
    let refused = results.into_iter().find_map(Result::err).unwrap().to_string();
    assert!(refused.contains("max_calls"), "{refused}");
    service.stop().unwrap();
    program.ends_well();
}

/// Asks for much, and waits to be killed.
fn sleepy_client(name: &str) {
    let mut service = Service::connect(name, 50).unwrap();
    for _ in 0..50 {
        service.submit::<_, u64>("sleep", &100u64, Submit::default()).unwrap();
    }
    println!("asked");
    std::thread::sleep(Duration::from_secs(100));
}

fn a_program_that_is_killed_costs_nothing() {
    let name = name();
    let program = Program::new("serve", &name);
    let mut service = Service::connect(&name, 50).unwrap();
    let this = std::env::current_exe().unwrap();
    let mut client =
        Command::new(this).env(ROLE, format!("client {name}")).stdout(Stdio::piped()).spawn().unwrap();
    let mut asked = [0; 6];
    client.stdout.take().unwrap().read_exact(&mut asked).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    client.kill().unwrap();
    client.wait().unwrap();
    // Of its 50 calls only those that workers have are made.
    let start = Instant::now();
    for x in 0..20u64 {
        let call = service.submit::<_, u64>("add", &x, Submit::default()).unwrap();
        assert_eq!(service.get_result(&call).unwrap(), 7 + x);
    }
    assert!(start.elapsed() < Duration::from_secs(20));
    service.stop().unwrap();
    program.ends_well();
}

fn a_service_that_is_killed_is_told() {
    let name = name();
    let mut program = Program::new("serve", &name);
    let mut service = Service::connect(&name, 50).unwrap();
    let call = service.submit::<_, u64>("sleep", &60_000u64, Submit::default()).unwrap();
    program.0.kill().unwrap();
    program.0.wait().unwrap();
    let error = service.get_result(&call).unwrap_err().to_string();
    assert!(error.contains("has ended"), "{error}");
    assert!(service.submit::<_, u64>("add", &1u64, Submit::default()).is_err() || service.stop().is_err());
    let error = Service::connect(&name, 2).unwrap_err().to_string();
    assert!(error.contains("ended without taking it back"), "{error}");
    // Another program takes the name over.
    let again = Program::new("serve", &name);
    let mut service = Service::connect(&name, 50).unwrap();
    let call = service.submit::<_, u64>("add", &1u64, Submit::default()).unwrap();
    assert_eq!(service.get_result(&call).unwrap(), 8);
    service.stop().unwrap();
    again.ends_well();
}

fn strangers_are_kept_out() {
    let name = name();
    let program = Program::new("serve", &name);
    let mut service = Service::connect(&name, 50).unwrap();
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(directory()), 0o700);
    assert_eq!(mode(directory().join(format!("{name}.token"))), 0o600);
    // Garbage, half a frame, a frame that never ends, and calls without a token.
    let socket = directory().join(format!("{name}.sock"));
    for garbage in [
        vec![0xFF; 100_000],
        vec![1, 0, 0],
        [&u64::MAX.to_le_bytes()[..], &[1; 50]].concat(),
        [&(1u64 << 40).to_le_bytes()[..], &[1; 5000]].concat(),
        [&41u64.to_le_bytes()[..], &[2; 41]].concat(),
        [&41u64.to_le_bytes()[..], &[1; 41]].concat(),
        [&9u64.to_le_bytes()[..], &[3; 9]].concat(),
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let _ = stream.write_all(&garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(
            answer.is_empty() || String::from_utf8_lossy(&answer).contains("token is wrong"),
            "{answer:?}"
        );
        let call = service.submit::<_, u64>("add", &1u64, Submit::default()).unwrap();
        assert_eq!(service.get_result(&call).unwrap(), 8);
    }
    // Another token.
    let token = directory().join(format!("{name}.token"));
    let right = std::fs::read(&token).unwrap();
    std::fs::write(&token, vec![7; right.len()]).unwrap();
    let error = Service::connect(&name, 1).unwrap_err().to_string();
    assert!(error.contains("the token is wrong"), "{error}");
    std::fs::write(&token, right).unwrap();
    service.stop().unwrap();
    program.ends_well();
    // A directory that others may enter.
    let home = std::env::temp_dir().join(format!("runtime-{}", support::mark()));
    std::fs::create_dir_all(home.join("phalanx")).unwrap();
    std::fs::set_permissions(home.join("phalanx"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this)
        .env(ROLE, format!("serve {name}"))
        .env("XDG_RUNTIME_DIR", &home)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("nobody else may enter"), "{told}");
    std::fs::remove_dir_all(home).unwrap();
}

fn one_name_is_one_service() {
    let name = name();
    let _program = Program::new("serve", &name);
    let mut service = Service::connect(&name, 50).unwrap();
    let this = std::env::current_exe().unwrap();
    let output =
        Command::new(this).env(ROLE, format!("serve {name}")).stderr(Stdio::piped()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("is running"), "{told}");
    let call = service.submit::<_, u64>("add", &1u64, Submit::default()).unwrap();
    assert_eq!(service.get_result(&call).unwrap(), 8, "the first one goes on");
    Queue { workers: Some(1), ..Queue::default() }
        .run(&Tasks::new(), |controller| {
            for wrong in ["", ".x", "a/b", "a b", &"x".repeat(61)] {
                assert!(controller.publish(wrong).unwrap_err().to_string().contains("no name"), "{wrong}");
            }
            assert!(controller.serve(None).unwrap_err().to_string().contains("was not published"));
            let name = self::name();
            controller.publish(&name)?;
            assert!(controller.publish(&name).unwrap_err().to_string().contains("published already"));
            controller.exit()?;
            assert!(controller.publish(&name).unwrap_err().to_string().contains("ended by `exit`"));
            Ok(())
        })
        .unwrap();
}

fn wrong_calls_are_refused() {
    let name = name();
    let _program = Program::new("serve", &name);
    assert!(Service::connect(&name, 0).unwrap_err().to_string().contains("0 attempts"));
    let mut service = Service::connect(&name, 50).unwrap();
    let unknown = service.submit::<_, u64>("subtract", &1u64, Submit::default()).unwrap_err().to_string();
    assert!(unknown.contains("no function \"subtract\"") && unknown.contains("add, fail"), "{unknown}");
    for wrong in [
        Submit { worker: Some(1), ..Submit::default() },
        Submit { id: Some(1), ..Submit::default() },
        Submit { deadline: Some(Duration::ZERO), ..Submit::default() },
    ] {
        assert!(service.submit::<_, u64>("add", &1u64, wrong).is_err());
    }
    // What only the queue can see is an error of the call.
    for (options, text) in [
        (Submit { estimate: -1.0, ..Submit::default() }, "a number above 0"),
        (Submit { ranks: 2, ..Submit::default() }, "register_collective"),
        (Submit { ranks: 0, ..Submit::default() }, "groups have 1 to 3"),
    ] {
        let call = service.submit::<_, u64>("add", &1u64, options).unwrap();
        let error = service.get_result(&call).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    let text = service.submit::<_, u64>("add", &"one".to_owned(), Submit::default()).unwrap();
    let error = service.get_result(&text).unwrap_err().to_string();
    assert!(error.contains("add takes u64, not alloc::string::String"), "{error}");
    let number = service.submit::<_, f64>("add", &1u64, Submit::default()).unwrap();
    let error = service.get_result(&number).unwrap_err().to_string();
    assert!(error.contains("add returns u64, not f64"), "{error}");
    let lease = service.submit::<_, u64>("lease", &10usize, Submit::default()).unwrap();
    assert!(service.get_result(&lease).unwrap_err().to_string().contains("return a NamedArray"));
    let call = service.submit::<_, u64>("add", &1u64, Submit::default()).unwrap();
    assert_eq!(service.get_result(&call).unwrap(), 8);
}

fn a_service_ends_when_nobody_comes() {
    let start = Instant::now();
    for workers in [0, 1] {
        Queue { workers: Some(workers), ..Queue::default() }
            .run(&Tasks::new(), |controller| {
                controller.publish(&name())?;
                controller.serve(Some(Duration::from_millis(300)))
            })
            .unwrap();
    }
    assert!(start.elapsed() >= Duration::from_millis(600) && start.elapsed() < Duration::from_secs(20));
}

fn programs_share_arrays_by_name() {
    let name = name();
    let program = Program::new("serve", &name);
    let mut service = Service::connect(&name, 50).unwrap();
    for shape in [(0, 3), (1, 1), (1000, 2000)] {
        let mut array = NamedArray::<f64, Ix2>::create(&name, shape).unwrap();
        let values = Array2::from_shape_fn(shape, |(row, column)| (row * column) as f64);
        array.assign(&values).unwrap();
        let call = service.submit::<_, NamedArray<f64, Ix2>>("double", &array, Submit::default()).unwrap();
        let doubled = service.get_result(&call).unwrap();
        assert_eq!(doubled.name(), array.name());
        assert_eq!(array.to_array().unwrap(), 2.0 * &values);
        assert_eq!(doubled.to_array().unwrap(), 2.0 * &values);
    }
    service.stop().unwrap();
    program.ends_well();
    assert!(!std::path::Path::new("/dev/shm").join(&name).exists());
}

fn python_opens_an_array() {
    let name = name();
    let mut array = NamedArray::<f64, Ix1>::create(&name, 4).unwrap();
    array.assign(&arr1(&[1.0, 2.0, 3.0, 4.0])).unwrap();
    let program = format!(
        "from multiprocessing import shared_memory, resource_tracker
m = shared_memory.SharedMemory(name='{name}')
resource_tracker.unregister('/{name}', 'shared_memory')
a = m.buf.cast('d')
print(sum(a[:4]))
a[1] = -5.0
a.release()
m.close()"
    );
    let Ok(output) = Command::new("python3").args(["-c", &program]).output() else {
        support::skip("python3 is not installed");
    };
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(told.trim(), "10.0", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(array.to_array().unwrap(), arr1(&[1.0, -5.0, 3.0, 4.0]));
}

fn a_fork_takes_no_name_away() {
    let name = name();
    let array = RefCell::new(Some(NamedArray::<u8, Ix1>::create(&name, 10).unwrap()));
    let there = || std::path::Path::new("/dev/shm").join(&name).exists();
    Launch { ranks: Some(2), ..support::world() }
        .fork(|comm| {
            drop(array.borrow_mut().take());
            comm.barrier()?;
            Ok(())
        })
        .unwrap();
    assert!(there(), "the ranks have dropped what they had inherited");
    drop(array);
    assert!(!there());
    // Another array has the name by now.
    let first = NamedArray::<u8, Ix1>::create(&name, 10).unwrap();
    assert_eq!(NamedArray::<u8, Ix1>::remove(&name), Ok(true));
    let second = NamedArray::<u8, Ix1>::create(&name, 10).unwrap();
    drop(first);
    assert!(there());
    drop(second);
    // A program that was killed leaves its array, which is removed by name.
    let kept = NamedArray::<u8, Ix1>::create(&name, 10).unwrap();
    std::mem::forget(kept);
    assert!(NamedArray::<u8, Ix1>::create(&name, 10).unwrap_err().to_string().contains("is taken"));
    assert_eq!(NamedArray::<u8, Ix1>::remove(&name), Ok(true));
    assert_eq!(NamedArray::<u8, Ix1>::remove(&name), Ok(false));
}

fn wrong_arrays_are_refused() {
    let name = name();
    let mut array = NamedArray::<bool, Ix1>::create(&name, 4).unwrap();
    assert!(array.assign(&arr1(&[true])).unwrap_err().to_string().contains("does not fit"));
    assert!(NamedArray::<f64, Ix1>::open(&name, 1).unwrap_err().to_string().contains("it has 4 bytes"));
    let mut bytes = NamedArray::<u8, Ix1>::open(&name, 4).unwrap();
    bytes.assign(&arr1(&[1, 0, 2, 0])).unwrap();
    assert!(array.to_array().is_err(), "2 is no bool");
    for wrong in ["", "a/b", ".x", "x y"] {
        assert!(NamedArray::<u8, Ix1>::create(wrong, 4).unwrap_err().to_string().contains("a name has"));
    }
    let huge = NamedArray::<f64, Ix2>::create(&format!("{name}-huge"), (1 << 24, 1 << 24));
    assert!(huge.is_err(), "2 PiB");
    assert!(!std::path::Path::new("/dev/shm").join(format!("{name}-huge")).exists());
}
