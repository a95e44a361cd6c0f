//! `corrupt IMAGE KIND [--seed N]`: plants one fault in an image and prints the codes that must be reported.

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: corrupt IMAGE KIND [--seed N]    plant one fault, print the codes that must come
       corrupt --list                   print every kind and its codes";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["--list"] => {
            list();
            Ok(())
        }
        [image, kind] => plant(image, kind, "1"),
        [image, kind, "--seed", seed] => plant(image, kind, seed),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn list() {
    for kind in corrupt::all() {
        let expected = if kind.expected.is_empty() { "nothing".to_owned() } else { kind.expected.join(" ") };
        println!("{}\t{expected}", kind.name);
    }
}

fn plant(image: &str, kind: &str, seed: &str) -> Result<(), String> {
    let kind = corrupt::find(kind).ok_or_else(|| format!("no kind {kind}; --list names them"))?;
    let seed = seed.parse().map_err(|_| format!("no number: {seed}"))?;
    let planted = corrupt::corrupt_image(Path::new(image), &kind, seed)?;
    println!("kind\t{}", planted.kind);
    println!("block\t{}", planted.block);
    println!("change\t{}", planted.change);
    println!("expect\t{}", planted.expected.join(" "));
    Ok(())
}
