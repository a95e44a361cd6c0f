//! Writes the seeds of all targets: `fuzz-seeds DIRECTORY` makes DIRECTORY/TARGET/NUMBER. Needs root, for a loop mount.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("usage: fuzz-seeds DIRECTORY");
        std::process::exit(2);
    };
    for (target, seeds) in fuzz::seeds::all() {
        let directory = Path::new(&directory).join(target);
        std::fs::create_dir_all(&directory)?;
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number:03}")), seed)?;
        }
        println!("{target}: {} seeds", seeds.len());
    }
    Ok(())
}
