//! The table of faults: what was planted, and what was reported.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::backend::Reported;
use crate::trial::Finding;

/// Violations of one fault that are still one report.
pub const ONE_REPORT: usize = 3;

/// What happened to the faults of one kind.
#[derive(Debug, Default)]
struct Row {
    expected: String,
    planted: usize,
    online: usize,
    offline: usize,
    online_codes: BTreeSet<String>,
    offline_codes: BTreeSet<String>,
    most: usize,
    later: bool,
    harmless: bool,
}

fn names(reported: &[Reported], into: &mut BTreeSet<String>) {
    into.extend(reported.iter().map(|violation| violation.code.clone()));
}

/// The table, as markdown.
#[must_use]
pub fn markdown(findings: &[Finding]) -> String {
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    for finding in findings {
        let row = rows.entry(&finding.planted.kind).or_default();
        row.expected = finding.planted.expected.join(" ");
        row.planted += 1;
        row.online += usize::from(finding.found_online());
        row.offline += usize::from(finding.found_offline());
        row.most = row.most.max(finding.online.len());
        row.later = finding.is_for_later();
        row.harmless = finding.is_harmless();
        names(&finding.online, &mut row.online_codes);
        names(&finding.offline, &mut row.offline_codes);
    }
    let mut text = String::from(
        "| kind | expected | planted | found online | found offline | most reports | codes online | codes offline |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for (kind, row) in &rows {
        let codes = |codes: &BTreeSet<String>| codes.iter().cloned().collect::<Vec<_>>().join(" ");
        let expected = match (row.harmless, row.later) {
            (true, _) => "nothing".to_owned(),
            (_, true) => format!("{} (later issue)", row.expected),
            _ => row.expected.clone(),
        };
        let _ = writeln!(
            text,
            "| {kind} | {expected} | {} | {} | {} | {} | {} | {} |",
            row.planted,
            row.online,
            row.offline,
            row.most,
            codes(&row.online_codes),
            codes(&row.offline_codes),
        );
    }
    text
}

/// How many faults, of how many kinds, count: not the harmless ones, nor those for later.
#[must_use]
pub fn counted(findings: &[Finding]) -> (usize, usize) {
    let faults = findings.iter().filter(|finding| !finding.is_for_later() && !finding.is_harmless());
    let kinds: BTreeSet<&str> = faults.clone().map(|finding| finding.planted.kind.as_str()).collect();
    (faults.count(), kinds.len())
}

/// The sums under the table.
#[must_use]
pub fn summary(findings: &[Finding]) -> String {
    let current: Vec<&Finding> = findings.iter().filter(|finding| !finding.is_for_later()).collect();
    let faults: Vec<&&Finding> = current.iter().filter(|finding| !finding.is_harmless()).collect();
    let (number, kinds) = counted(findings);
    let count = |test: &dyn Fn(&Finding) -> bool| faults.iter().filter(|finding| test(finding)).count();
    let harmless: Vec<&&Finding> = current.iter().filter(|finding| finding.is_harmless()).collect();
    let silent = harmless.iter().filter(|finding| finding.found_online() && finding.found_offline()).count();
    format!(
        "{} faults of {} kinds: {} found at the commit that carries them, {} found by `check`. Of the commits that \
         followed, {} brought further reports. {} of {} harmless changes were passed over in silence. {} faults had \
         more than {ONE_REPORT} reports; {} faults can be seen only by rules that are not built yet.\n",
        number,
        kinds,
        count(&Finding::found_online),
        count(&Finding::found_offline),
        count(&|finding| !finding.next.is_empty() && !finding.in_parts),
        silent,
        harmless.len(),
        count(&|finding| finding.online.len() > ONE_REPORT),
        findings.len() - current.len(),
    )
}

/// What is not as it should be, in words.
#[derive(Debug, Default)]
pub struct Complaints {
    /// Misses, codes of another family, false alarms.
    pub misses: Vec<String>,
    /// Faults found by another code of the right family than was foreseen (what is wrong now may happen to be like
    /// something else), and further reports at the commit after.
    pub oddities: Vec<String>,
}

/// What is not as it should be.
#[must_use]
pub fn complaints(findings: &[Finding]) -> Complaints {
    let mut complaints = Complaints::default();
    for finding in findings.iter().filter(|finding| !finding.is_for_later()) {
        let offline = format!("exit {:?}", finding.offline_code);
        let sides = [
            (finding.found_online(), "online", &finding.online, &finding.verdict),
            (finding.found_offline(), "offline", &finding.offline, &offline),
        ];
        for (_, what, reported, detail) in sides.into_iter().filter(|(is_found, ..)| !is_found) {
            let is_near = !finding.is_harmless() && reported.iter().any(|one| is_of_family(finding, one));
            let list = if is_near { &mut complaints.oddities } else { &mut complaints.misses };
            list.push(complaint(finding, what, reported, detail));
        }
        if !finding.next.is_empty() && !finding.in_parts {
            let echo = complaint(finding, "next commit", &finding.next, &finding.next_verdict);
            complaints.oddities.push(echo);
        }
    }
    complaints
}

/// Kinds of which at least one fault was an oddity: how many of them were, of how many planted.
#[must_use]
pub fn odd_kinds<'a>(findings: impl IntoIterator<Item = &'a Finding>) -> BTreeMap<String, (usize, usize)> {
    let mut kinds: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for finding in findings {
        let (odd, planted) = kinds.entry(finding.planted.kind.clone()).or_default();
        *odd += usize::from(!complaints(std::slice::from_ref(finding)).oddities.is_empty());
        *planted += 1;
    }
    kinds.retain(|_, (odd, _)| *odd > 0);
    kinds
}

fn is_of_family(finding: &Finding, reported: &Reported) -> bool {
    let family = |code: &str| code.split('/').next().map(str::to_owned);
    finding.planted.expected.iter().any(|code| family(code) == family(&reported.code))
}

fn complaint(finding: &Finding, what: &str, reported: &[Reported], detail: &str) -> String {
    let planted = &finding.planted;
    let (kind, change) = (&planted.kind, &planted.change);
    let reported: Vec<String> =
        reported.iter().map(|violation| format!("{}: {}", violation.code, violation.message)).collect();
    format!(
        "{kind}, {what} ({detail}) in {}: {change}\n  expected {:?}\n  reported {reported:#?}",
        finding.place, planted.expected
    )
}
