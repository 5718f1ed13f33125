//! The parts that every request passes, one operation each.
//!
//! `cargo bench -p node` measures times, which are the machine's of that moment. `script/instructions` counts instructions
//! instead: it runs this program under callgrind with `HOT_CASE=NAME`, which counts what happens inside of [`counted`].

mod cases;
#[path = "../../tests/native/cluster.rs"]
#[allow(dead_code)]
mod cluster;

use criterion::Criterion;

use cases::CASES;

/// As in the programs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Operations that are counted: enough for what happens now and then.
const COUNTED: u32 = 500;

/// Its name is what callgrind is told to look for.
#[inline(never)]
fn counted(operation: &mut dyn FnMut()) {
    for _ in 0..COUNTED {
        operation();
    }
}

fn main() {
    if let Ok(name) = std::env::var("HOT_CASE") {
        let Some(case) = CASES.iter().find(|case| case.name == name) else {
            eprintln!("no case '{name}', only: {}", CASES.map(|case| case.name).join(" "));
            std::process::exit(1);
        };
        let mut operation = (case.prepare)();
        // What is allocated and looked up the first time only.
        (0..50).for_each(|_| operation());
        counted(&mut *operation);
        println!("{COUNTED} times {name}");
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    for case in CASES {
        let mut operation = (case.prepare)();
        criterion.bench_function(case.name, |bencher| bencher.iter(&mut operation));
    }
    criterion.final_summary();
}
