//! The wire over TCP: what it promises, and strangers at its doors.

use super::Watchdog;
use crate::comm::hybrid::doors::{Door, Token, listen};
use crate::comm::hybrid::net::{Net, Tag, always};
use crate::comm::hybrid::tcp::{ALONE, Tcp};
use crate::comm::hybrid::wire::Wire;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const TOKEN: Token = *b"half of a secret, and the other.";

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Runs `body` in so many processes that have connected, each of them a thread; `outside` goes on meanwhile.
fn with(size: usize, body: impl Fn(&'static Tcp) + Sync, outside: impl FnOnce(&[Door])) {
    let _watchdog = Watchdog::new(format!("{size} processes"));
    let opened: Vec<(TcpListener, u16)> = (0..size).map(|_| listen().unwrap()).collect();
    let doors: Vec<Door> = opened.iter().map(|&(_, port)| Door::near(port)).collect();
    let (doors, body) = (&doors, &body);
    thread::scope(|scope| {
        outside(doors);
        let process = |(rank, (listener, _)): (usize, (TcpListener, u16))| {
            scope.spawn(move || body(Tcp::connect(rank, doors, &listener, (&TOKEN, soon())).unwrap()))
        };
        // ThreadSanitizer sees that a thread was joined, not that a scope has ended.
        let threads: Vec<_> = opened.into_iter().enumerate().map(process).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

fn net(wire: &'static Tcp) -> Net {
    Net::new(wire, (0..wire.size()).collect(), wire.rank(), 1, true).unwrap()
}

#[test]
fn long_messages_go_both_ways_at_once() {
    // More than the kernel keeps: each process reads while it writes.
    const LEN: usize = 30 << 20;
    let body = |wire: &'static Tcp| {
        let net = net(wire);
        let other = 1 - wire.rank();
        let mine = vec![wire.rank() as u8 + 1; LEN];
        let mut theirs = vec![0; LEN];
        let mut flights =
            [net.send(&mine, other, Tag::Piece).unwrap(), net.recv(&mut theirs, other, Tag::Piece).unwrap()];
        net.wait(&mut flights, &always).unwrap();
        drop(flights);
        assert!(theirs.iter().all(|&byte| byte == other as u8 + 1));
        wire.finish();
    };
    with(2, body, |_| {});
}

#[test]
fn nobody_waits_for_one_who_waits_for_another() {
    // 0 sends to 1, which reads nothing from 0 before 2 has spoken, which waits for 0.
    let body = |wire: &'static Tcp| {
        let net = net(wire);
        let (long, mut room) = (vec![5u8; 20 << 20], vec![0u8; 20 << 20]);
        match wire.rank() {
            0 => {
                net.send_all(&long, 1, Tag::Piece, &always).unwrap();
                net.send_all(&[1], 2, Tag::Piece, &always).unwrap();
            }
            1 => {
                net.recv_all(&mut room[..1], 2, Tag::Piece, &always).unwrap();
                net.recv_all(&mut room, 0, Tag::Piece, &always).unwrap();
                assert_eq!(room, long);
            }
            _ => {
                net.recv_all(&mut room[..1], 0, Tag::Piece, &always).unwrap();
                net.send_all(&room[..1], 1, Tag::Piece, &always).unwrap();
            }
        }
        wire.finish();
    };
    with(3, body, |_| {});
}

#[test]
fn messages_of_a_tag_arrive_in_order() {
    let body = |wire: &'static Tcp| {
        let other = 1 - wire.rank();
        for byte in 0..3u8 {
            let byte = [byte];
            let mut sent = wire.send(&byte, other, 5).unwrap();
            while !sent.test().unwrap() {}
        }
        while wire.probe(5).unwrap() != Some(other) {}
        assert_eq!(wire.probe(6).unwrap(), None);
        let (mut first, mut second, mut third) = ([0], [0], [0]);
        {
            let mut earlier = wire.recv(&mut first, other, 5).unwrap();
            let mut later = wire.recv(&mut second, other, 5).unwrap();
            // They complete in another order than they begin.
            while !later.test().unwrap() {}
            while !earlier.test().unwrap() {}
        }
        let mut last = wire.recv(&mut third, other, 5).unwrap();
        while !last.test().unwrap() {}
        drop(last);
        assert_eq!((first, second, third), ([0], [1], [2]));
        wire.finish();
    };
    with(2, body, |_| {});
}

#[test]
fn who_waits_for_one_that_has_gone_is_told() {
    let body = |wire: &'static Tcp| {
        let net = net(wire);
        let mut room = [0; 8];
        match wire.rank() {
            // Bytes that were sent before still arrive.
            0 => {
                net.send_all(&[3], 1, Tag::Piece, &always).unwrap();
                wire.abort("enough");
                assert!(wire.probe(0).is_err());
            }
            _ => {
                net.recv_all(&mut room[..1], 0, Tag::Piece, &always).unwrap();
                assert_eq!(room[0], 3);
                let error = net.recv_all(&mut room, 0, Tag::Piece, &always).unwrap_err().to_string();
                assert!(error.contains(ALONE) && error.contains("process 0"), "{error}");
            }
        }
    };
    with(2, body, |_| {});
}

#[test]
fn strangers_stay_outside() {
    let mut strangers = Vec::new();
    let outside = |doors: &[Door]| {
        let port = doors[0].port;
        let mut hello = |bytes: &[u8]| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            stream.write_all(bytes).unwrap();
            strangers.push(stream);
        };
        let with =
            |token: &[u8], from: u32, to: u32| [token, &from.to_le_bytes(), &to.to_le_bytes()].concat();
        // Nothing, a part, a wrong token, and numbers that do not exist or are not this process's.
        hello(&[]);
        hello(&TOKEN[..9]);
        hello(&with(&[0; 16], 1, 0));
        hello(&with(&TOKEN[16..], 1, 0));
        hello(&with(&TOKEN[..16], 0, 0));
        hello(&with(&TOKEN[..16], 9, 0));
        hello(&with(&TOKEN[..16], 1, 1));
        hello(&[0xFF; 10_000]);
    };
    let body = |wire: &'static Tcp| {
        let net = net(wire);
        let told = net.tell([wire.rank() as u8], &always).unwrap();
        assert_eq!(told, [[0], [1], [2]]);
        wire.finish();
    };
    with(3, body, outside);
    for (at, mut stream) in strangers.into_iter().enumerate() {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "stranger {at} was answered");
    }
}

#[test]
fn a_message_of_a_hostile_length_ends_the_stream() {
    let _watchdog = Watchdog::new("a hostile length".to_owned());
    let (listener, port) = listen().unwrap();
    let doors = [Door::near(port), Door::near(port)];
    let hostile = thread::spawn(move || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.write_all(&[&TOKEN[..16], &1u32.to_le_bytes(), &0u32.to_le_bytes()].concat()).unwrap();
        let mut answer = [0; 16];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, TOKEN[16..]);
        stream.write_all(&[[0xFF; 8], u64::MAX.to_le_bytes()].concat()).unwrap();
        let _ = stream.read(&mut answer);
    });
    let wire = Tcp::connect(0, &doors, &listener, (&TOKEN, soon())).unwrap();
    let mut room = [0; 8];
    let error = net(wire).recv_all(&mut room, 1, Tag::Piece, &always).unwrap_err().to_string();
    assert!(error.contains(ALONE), "{error}");
    wire.abort("enough");
    hostile.join().unwrap();
}

#[test]
fn nobody_waits_for_ever_for_one_that_does_not_come() {
    let _watchdog = Watchdog::new("one that does not come".to_owned());
    let (listener, port) = listen().unwrap();
    let closed = listen().unwrap().1;
    let until = Instant::now() + Duration::from_millis(300);
    let doors = [Door::near(port), Door::near(closed)];
    let late = Tcp::connect(0, &doors, &listener, (&TOKEN, until)).err().unwrap().to_string();
    assert!(late.contains("not connected in time"), "{late}");
    let doors = [Door::near(closed), Door::near(port)];
    let refused = Tcp::connect(1, &doors, &listener, (&TOKEN, until)).err().unwrap().to_string();
    assert!(refused.contains("PHALANX_INTERFACES=NAME") && refused.contains("127.0.0.1"), "{refused}");
}

#[test]
fn doors_are_read_as_they_were_written() {
    // A host may have no network.
    let opened = Door::open().ok().map(|(_, door)| door);
    for door in [Some(Door::near(80)), opened].into_iter().flatten() {
        assert_eq!(door.to_string().parse::<Door>().unwrap(), door);
    }
    for wrong in ["", "x", "70000 127.0.0.1", "80 127.0.0", "80  ::1"] {
        assert!(wrong.parse::<Door>().is_err(), "{wrong:?}");
    }
}
