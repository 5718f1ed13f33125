//! `sim --seeds N`: runs seeds until one fails. `sim replay SEED`: prints a run's event log.
//! `sim twice SEED`: demands that two runs of a seed are equal, byte for byte.
//! `sim scale`: what the number of sheep costs.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sim::{Options, Outcome, StoreKind, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str =
    "usage: sim [--seeds N] [--first-seed S] [--jobs J] [--minutes M] [--store model|engine] [--verbose]
       sim replay SEED [model|engine]
       sim twice SEED [model|engine]
       sim scale [SHEEP...]        10, 100 and 1000 sheep unless told otherwise";

struct Arguments {
    seeds: u64,
    first_seed: u64,
    jobs: u64,
    minutes: Option<u64>,
    /// Instead of what each seed would choose.
    store: Option<StoreKind>,
    verbose: bool,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    // A panic of the code under test is a verdict, printed with its seed.
    std::panic::set_hook(Box::new(|info| {
        PANIC_PLACE.with(|place| {
            *place.borrow_mut() = info.location().map(|l| l.to_string()).unwrap_or_default();
        })
    }));
    match words[..] {
        ["replay", seed, ..] if words.len() <= 3 => with_seed(seed, words.get(2), replay),
        ["twice", seed, ..] if words.len() <= 3 => with_seed(seed, words.get(2), twice),
        ["scale", ..] => scale(&words[1..]),
        _ => match parse(&words) {
            Some(arguments) => run_many(&arguments),
            None => {
                eprintln!("{USAGE}");
                ExitCode::from(2)
            }
        },
    }
}

thread_local! {
    static PANIC_PLACE: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

fn with_seed(text: &str, store: Option<&&str>, f: impl FnOnce(u64, Options) -> ExitCode) -> ExitCode {
    match (text.parse(), store.map(|name| store_kind(name))) {
        (Ok(seed), None) => f(seed, Options { trace: true, ..Options::default() }),
        (Ok(seed), Some(Some(kind))) => {
            f(seed, Options { trace: true, store: Some(kind), ..Options::default() })
        }
        _ => {
            eprintln!("{text:?} is not a seed, or its store is unknown\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn scale(numbers: &[&str]) -> ExitCode {
    let numbers: Result<Vec<usize>, _> = numbers.iter().map(|text| text.parse()).collect();
    let Ok(mut numbers) = numbers else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if numbers.is_empty() {
        numbers = vec![10, 100, 1000];
    }
    match sim::scale::measure(&numbers) {
        Ok(all) => {
            print!("{}", sim::scale::render(&all));
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn store_kind(name: &str) -> Option<StoreKind> {
    match name {
        "model" => Some(StoreKind::Model),
        "engine" => Some(StoreKind::Engine),
        _ => None,
    }
}

fn parse(words: &[&str]) -> Option<Arguments> {
    let mut arguments =
        Arguments { seeds: 200, first_seed: 1, jobs: 2, minutes: None, store: None, verbose: false };
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        if word == "--verbose" {
            arguments.verbose = true;
            continue;
        }
        if word == "--store" {
            arguments.store = Some(store_kind(words.next()?)?);
            continue;
        }
        let value: u64 = words.next()?.parse().ok()?;
        match word {
            "--seeds" => arguments.seeds = value,
            "--first-seed" => arguments.first_seed = value,
            "--jobs" if value > 0 => arguments.jobs = value,
            "--minutes" => {
                arguments.minutes = Some(value);
                arguments.seeds = u64::MAX - arguments.first_seed;
            }
            _ => return None,
        }
    }
    Some(arguments)
}

fn replay(seed: u64, options: Options) -> ExitCode {
    let outcome = run(seed, options);
    print!("{}", outcome.trace.as_deref().unwrap_or_default());
    report(&outcome)
}

fn twice(seed: u64, options: Options) -> ExitCode {
    let [first, second] = [run(seed, options), run(seed, options)];
    if first.trace == second.trace {
        println!("seed {seed}: both runs are equal, {} events", first.events);
        return ExitCode::SUCCESS;
    }
    let (a, b) = (first.trace.unwrap_or_default(), second.trace.unwrap_or_default());
    if let Some((line, (a, b))) = a.lines().zip(b.lines()).enumerate().find(|(_, (a, b))| a != b) {
        println!("seed {seed}: line {} differs\n  {a}\n  {b}", line + 1);
    } else {
        println!("seed {seed}: one log is longer than the other");
    }
    ExitCode::FAILURE
}

fn report(outcome: &Outcome) -> ExitCode {
    let Some(failure) = &outcome.failure else { return ExitCode::SUCCESS };
    let place = PANIC_PLACE.with(|place| place.borrow().clone());
    println!("seed {} FAILED after {} ms: {failure}", outcome.seed, outcome.virtual_time);
    if failure.starts_with("panic") {
        println!("at {place}");
    }
    println!("replay with: cargo run -p sim -- replay {}", outcome.seed);
    ExitCode::FAILURE
}

fn run_many(arguments: &Arguments) -> ExitCode {
    let start = Instant::now();
    let next = AtomicU64::new(arguments.first_seed);
    let failed = AtomicBool::new(false);
    let runs = AtomicU64::new(0);
    let last = arguments.first_seed.saturating_add(arguments.seeds);
    let over = || arguments.minutes.is_some_and(|m| start.elapsed() > Duration::from_secs(60 * m));
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= last || over() {
                        return;
                    }
                    let outcome = run(seed, Options { store: arguments.store, ..Options::default() });
                    runs.fetch_add(1, Ordering::Relaxed);
                    if arguments.verbose {
                        println!(
                            "seed {seed}: {:?}, {} requests, {} faults, {} events, {} syncs, {} refused, {:?}, {} ms",
                            outcome.store,
                            outcome.requests,
                            outcome.faults,
                            outcome.events,
                            outcome.syncs,
                            outcome.refused,
                            outcome.deeds,
                            outcome.virtual_time
                        );
                    }
                    if report(&outcome) == ExitCode::FAILURE {
                        failed.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let runs = runs.into_inner();
    println!("{runs} seeds in {:.1} s", start.elapsed().as_secs_f64());
    if failed.into_inner() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
