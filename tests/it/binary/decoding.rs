//! `ses-ledger decode` in a shell: a file or standard input, and whoever reads its output may leave early.

use std::{env, process::Stdio};

use tokio::io::AsyncWriteExt as _;

use super::{end_of, ses_ledger};

#[tokio::test]
async fn a_file_and_standard_input_give_the_same() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/bodies/Bounce--permanent-general.json");
    let from_file = end_of(ses_ledger(["decode", "--json", file])).await;
    assert_eq!((from_file.code, from_file.err.as_str()), (Some(0), ""));
    let mut command = ses_ledger(["decode", "--json"]);
    command.stdin(std::fs::File::open(file).expect("the fixture is there"));
    let from_stdin = end_of(command).await;
    assert_eq!((from_stdin.code, &from_stdin.out), (Some(0), &from_file.out));
    assert!(from_file.out.contains(r#""event_type":"bounce""#), "{}", from_file.out);
}

#[tokio::test]
async fn a_broken_pipe_is_no_error() {
    let mut command = ses_ledger(["decode"]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("the binary was built for this test");
    // Like `ses-ledger decode | head -0`: nobody reads, and there is more to say than a pipe holds.
    drop(child.stdout.take());
    let event = r#"{"eventType":"Send","mail":{"messageId":"x"}}"#;
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(format!("{event}\n").repeat(5_000).as_bytes()).await.expect("it reads all of its input");
    drop(stdin);
    let output = child.wait_with_output().await.expect("it is our child");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}
