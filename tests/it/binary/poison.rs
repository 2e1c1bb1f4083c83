//! Every fixture that cannot be understood, through the real binary: in quarantine with its reason, out of the queue, and
//! no trouble for its neighbours.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;
use ses_ledger::pipeline::decode::{DecodeSettings, Outcome, decode};
use time::OffsetDateTime;

use super::Running;
use crate::{database, worker::Queue};

#[tokio::test(flavor = "multi_thread")]
async fn every_rejected_fixture_ends_in_quarantine_with_its_reason() {
    let (database, queue) = (database::fresh().await, Queue::start().await);
    let poison: Vec<String> = rejected_fixtures();
    assert!(poison.len() > 40, "only {} fixtures are rejected", poison.len());
    let neighbour = |number: usize| {
        format!(
            r#"{{"eventType":"Delivery","mail":{{"messageId":"neighbour-{number}","destination":["a@example.net"]}},
                "delivery":{{"timestamp":"2026-10-04T10:00:00.000Z","recipients":["a@example.net"]}}}}"#
        )
    };
    for (number, body) in poison.iter().enumerate() {
        queue.handle.send(body);
        queue.handle.send(&neighbour(number));
    }
    let running = Running::start(&database.url, &queue.url, &["--visibility-timeout=30s"]).await;
    queue.drained().await;
    let farewell = running.stop().await;

    assert_eq!(farewell.count("rejected"), poison.len());
    assert_eq!(farewell.count("stored"), poison.len());
    assert_eq!(farewell.count("received"), 2 * poison.len(), "nothing came back");
    assert_eq!(database.number("SELECT count(*) FROM orphaned_events").await as usize, poison.len());
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for body in &poison {
        for leaf in decode(body.as_bytes(), OffsetDateTime::UNIX_EPOCH, &DecodeSettings::default()) {
            let Outcome::Rejected(reject) = leaf.outcome else { continue };
            expected.entry(hex(&reject.raw)).or_default().push(reject.reason.as_str().to_owned());
        }
    }
    let quarantined = database
        .texts("SELECT encode(body, 'hex') || ' ' || reason || ' ' || stage FROM quarantined_messages ORDER BY 1")
        .await;
    let one_each = expected.iter().map(|(body, reasons)| format!("{body} {} decode", reasons[0]));
    assert_eq!(quarantined, Vec::from_iter(one_each));
}

/// Those that a queue can hold: text, and not empty.
fn rejected_fixtures() -> Vec<String> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let expectations = ["expected.jsonl", "expected-more.jsonl"]
        .map(|file| fs::read_to_string(fixtures.join(file)).expect("the expectations are there"));
    let lines = expectations.iter().flat_map(|text| text.lines());
    let rejected = lines.filter_map(|line| {
        let expected: Value = serde_json::from_str(line).expect("expectations are JSON");
        let file = expected["file"].as_str().expect("every expectation names its body");
        let body = fs::read(fixtures.join("bodies").join(file)).expect("every expected body is there");
        String::from_utf8(body).ok().filter(|body| expected["kind"] == "rejected" && !body.is_empty())
    });
    rejected.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
