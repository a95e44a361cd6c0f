//! The model agrees with the corpus' manifest wherever the manifest speaks of references.

use oracle::examine_file;
use testkit::corpus::{self, Verdict};

#[test]
fn corpus() {
    let (mut clean, mut damaged) = (0, 0);
    let mut wrong = Vec::new();
    for row in corpus::rows() {
        let image = row.unpack();
        let result = examine_file(image.path());
        let file = &row.file;
        match row.verdict {
            Verdict::Clean => {
                clean += 1;
                match result {
                    Ok(report) if report.differences.is_empty() => {}
                    other => {
                        wrong.push(format!("{file}: clean, but {:?}", other.map(|report| report.differences)))
                    }
                }
            }
            // The model needs no better words than `Err` for a file system whose trees it cannot read.
            Verdict::Violation if row.families.iter().any(|family| family == "ref") => {
                damaged += 1;
                if result.is_ok_and(|report| report.differences.is_empty()) {
                    wrong.push(format!("{file}: no difference found"));
                }
            }
            Verdict::Unreadable if result.is_ok() => wrong.push(format!("{file}: could be read")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(clean >= 10 && damaged >= 5, "{clean} clean, {damaged} damaged");
}
