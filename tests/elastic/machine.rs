//! The budget that processes of a machine share, with real processes, some of which are killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use kavern::error::Status;
use kavern::memory::{MachineBudget, Payer};
use kavern::sys::tally::{Tally, unlink};

use super::support::{refused, seed, steps};

const LIMIT: u64 = 64;

/// The name of one test's budget; removed on drop.
struct Name(String);

impl Name {
    fn new(test: &str) -> Self {
        Self(format!("test-{test}-{}", std::process::id()))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        unlink(&self.0).unwrap();
    }
}

fn start(name: &Name, role: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "elastic::machine::child", "--ignored", "--test-threads=1", "--nocapture"])
        .env("KAVERN_TEST_BUDGET", &name.0)
        .env("KAVERN_TEST_ROLE", role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for a line that the child says when it has got there.
fn wait_for(child: &mut Child, word: &str) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with(word)), "the child ended before it said {word}");
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{text}").unwrap();
    out.flush().unwrap();
}

/// The same clock in every process.
fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is writable.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) }, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Charges and discharges at random. Of each charge, says when it was there for certain and when it began to go.
fn step_at_random(tally: &Tally, number: u64) {
    let mut random = fastrand::Rng::with_seed(seed() + number);
    let (mut held, mut log) = (Vec::new(), Vec::new());
    let mut refusals = 0_u64;
    for _ in 0..steps(100_000, 2_000_000) {
        let bytes = random.u64(1..=16);
        if random.bool() || held.is_empty() {
            match tally.add(bytes).unwrap() {
                Ok(()) => held.push((bytes, now_ns())),
                Err(left) => {
                    assert!(left < bytes);
                    refusals += 1;
                }
            }
        } else {
            let (bytes, since_ns) = held.swap_remove(random.usize(0..held.len()));
            log.push((bytes, since_ns, now_ns()));
            tally.remove(bytes);
        }
        assert!(tally.sum_bytes() <= LIMIT);
    }
    log.extend(held.iter().map(|&(bytes, since_ns)| (bytes, since_ns, now_ns())));
    for (bytes, since_ns, until_ns) in log {
        say(&format!("held {bytes} {since_ns} {until_ns}"));
    }
    say(&format!("refusals {refusals}"));
}

#[test]
#[ignore = "started by the other tests of this file"]
fn child() {
    let (Ok(name), Ok(role)) = (std::env::var("KAVERN_TEST_BUDGET"), std::env::var("KAVERN_TEST_ROLE"))
    else {
        return;
    };
    let tally = Tally::open(&name, LIMIT).unwrap();
    match role.as_str() {
        "hold" => {
            assert_eq!(tally.add(40).unwrap(), Ok(()));
            say("ready");
            let _ = std::io::stdin().read(&mut [0]);
        }
        "lock" => {
            assert_eq!(tally.add(10).unwrap(), Ok(()));
            let _locked = tally.lock().unwrap();
            say("ready");
            let _ = std::io::stdin().read(&mut [0]);
        }
        number => step_at_random(&tally, number.parse().unwrap()),
    }
}

#[test]
fn two_processes_never_have_more_than_the_limit_together() {
    let name = Name::new("random");
    let children = ["1", "2"].map(|role| start(&name, role));
    let mut changes = Vec::new();
    let mut refusals = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["held", bytes, since_ns, until_ns] => {
                    let bytes: i64 = bytes.parse().unwrap();
                    changes.push((since_ns.parse::<u64>().unwrap(), bytes));
                    changes.push((until_ns.parse::<u64>().unwrap(), -bytes));
                }
                ["refusals", count] => refusals += count.parse::<u64>().unwrap(),
                _ => {}
            }
        }
    }
    // At one time, what goes is taken off first.
    changes.sort_unstable();
    let (mut sum, mut most) = (0, 0);
    for (_, bytes) in &changes {
        sum += bytes;
        most = most.max(sum);
    }
    assert!(most <= LIMIT as i64, "{most} bytes of {LIMIT} at one time");
    // The test means something only if the limit was reached, again and again.
    assert!(most > LIMIT as i64 * 9 / 10 && refusals > 1000, "{most} {refusals}");
    let tally = Tally::open(&name.0, LIMIT).unwrap();
    assert_eq!(tally.lock().unwrap().sum_bytes().unwrap(), 0);
}

#[test]
fn a_killed_process_gives_its_bytes_back() {
    let name = Name::new("killed");
    let mut child = start(&name, "hold");
    wait_for(&mut child, "ready");
    let tally = Tally::open(&name.0, 0).unwrap();
    assert_eq!(tally.limit_bytes(), LIMIT);
    assert_eq!(tally.add(30).unwrap(), Err(24));
    assert_eq!(tally.add(24).unwrap(), Ok(()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(tally.add(LIMIT - 24).unwrap(), Ok(()));
    assert_eq!(tally.add(1).unwrap(), Err(0));
}

#[test]
fn a_process_that_is_killed_with_the_lock_stops_nobody() {
    let name = Name::new("lock");
    let mut child = start(&name, "lock");
    wait_for(&mut child, "ready");
    let (tell, told) = channel();
    let budget = name.0.clone();
    let waiting = std::thread::spawn(move || {
        // Opening takes the lock too.
        let tally = Tally::open(&budget, LIMIT).unwrap();
        tell.send(tally.add(LIMIT).unwrap()).unwrap();
    });
    assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "the lock of another process was taken");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(told.recv().unwrap(), Ok(()));
    waiting.join().unwrap();
}

#[test]
fn another_limit_is_refused_while_the_first_is_in_use() {
    let name = Name::new("limits");
    let mut child = start(&name, "hold");
    wait_for(&mut child, "ready");
    let error = Tally::open(&name.0, LIMIT + 1).err().unwrap();
    assert!(error.status == Status::InvalidArgument && error.text.contains("64"), "{}", error.text);
    child.kill().unwrap();
    child.wait().unwrap();
    let budget = MachineBudget::open(&name.0, LIMIT + 1).unwrap();
    budget.charge(LIMIT + 1).unwrap();
    let error = budget.charge(1).err().unwrap();
    assert!(error.status == Status::OutOfMemory && error.text.contains("0 available"), "{}", error.text);
    budget.discharge(LIMIT + 1);
    assert_eq!(refused(MachineBudget::open("../etc", 1)), Status::InvalidArgument);
}
