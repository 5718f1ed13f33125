//! Writes the first inputs of each target: `seeds DIRECTORY` makes `DIRECTORY/TARGET/NUMBER`.

fn main() {
    let directory = std::path::PathBuf::from(std::env::args_os().nth(1).expect("usage: seeds DIRECTORY"));
    for target in fuzz::TARGETS {
        let folder = directory.join(target.name);
        std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("cannot make {}: {e}", folder.display()));
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            let file = folder.join(format!("seed-{number}"));
            std::fs::write(&file, seed).unwrap_or_else(|e| panic!("cannot write {}: {e}", file.display()));
        }
    }
}
