//! A Prometheus of our own, with the alerts of infra/.

use std::{env, fs, os::unix::fs::chown};

use serde_json::Value;
use ses_ledger::local::{
    guard::{Guard, GuardSettings, free_port},
    postgres::unprivileged_user,
};

use super::infra;
use crate::binary::until;

pub(super) struct Prometheus {
    address: String,
    _guard: Guard,
}

impl Prometheus {
    /// Scrapes the worker at this address twice a second.
    pub(super) async fn start(worker: &str) -> Self {
        let user = unprivileged_user().expect("there is a user for servers");
        let mut guard = Guard::start(GuardSettings {
            parent: env::temp_dir(),
            name: "ses-ledger-prometheus",
            signals: &["TERM"],
            patience: 50,
            user: user.clone(),
            environment: vec![("PATH".into(), env::var_os("PATH").unwrap_or_default())],
        })
        .await
        .expect("there is a shell");
        let folder = guard.folder().to_owned();
        let configuration = format!(
            "global: {{ scrape_interval: 500ms, evaluation_interval: 500ms }}\n\
             rule_files: [alerts.yaml]\n\
             scrape_configs:\n  - job_name: ses-ledger\n    static_configs: [{{ targets: [\"{worker}\"] }}]\n"
        );
        fs::write(folder.join("prometheus.yaml"), configuration).expect("the folder is there");
        fs::copy(infra("prometheus/alerts.yaml"), folder.join("alerts.yaml")).expect("the folder is there");
        for file in ["prometheus.yaml", "alerts.yaml"] {
            if let Some(user) = &user {
                chown(folder.join(file), Some(user.uid), Some(user.gid)).expect("we are root");
            }
        }
        let address = format!("127.0.0.1:{}", free_port().expect("a port is free"));
        let folder = folder.display();
        let command = [
            "prometheus".to_owned(),
            format!("--config.file={folder}/prometheus.yaml"),
            format!("--storage.tsdb.path={folder}/data"),
            format!("--web.listen-address={address}"),
            "--log.level=warn".to_owned(),
        ];
        guard.run(&command).await.expect("it can be run (Debian: apt-get install prometheus)");
        let ready = format!("http://{address}/-/ready");
        until("Prometheus is ready", async || ureq::get(&ready).call().is_ok()).await;
        Self { address, _guard: guard }
    }

    /// The values that an expression has now.
    pub(super) fn ask(&self, expression: &str) -> Result<Vec<f64>, String> {
        let answer = self.get(&format!("/api/v1/query?query={}", encoded(expression)));
        if answer["status"] != "success" {
            return Err(format!("{expression}: {}", answer["error"]));
        }
        let series = answer["data"]["result"].as_array().into_iter().flatten();
        Ok(series.filter_map(|it| it["value"][1].as_str()?.parse().ok()).collect())
    }

    /// All alerts were evaluated, and none that has to wake somebody is on its way.
    pub(super) fn has_loaded_all_alerts(&self) {
        let groups = self.get("/api/v1/rules");
        let groups = groups["data"]["groups"].as_array().expect("it answers with groups").clone();
        let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array()).flatten().collect();
        assert_eq!(rules.len(), super::alerts::expressions().len(), "{groups:?}");
        for rule in rules {
            assert_eq!((&rule["health"], &rule["type"]), (&"ok".into(), &"alerting".into()), "{rule}");
            let critical = rule["labels"]["severity"] == "critical";
            assert!(!critical || rule["state"] == "inactive", "all is well, and yet: {rule}");
        }
    }

    fn get(&self, path: &str) -> Value {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut answer = agent.get(format!("http://{}{path}", self.address)).call().expect("Prometheus answers");
        let text = answer.body_mut().read_to_string().expect("it answers with text");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"))
    }
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
