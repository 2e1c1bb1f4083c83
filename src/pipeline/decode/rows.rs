//! Spreads an event over its recipients: one row for each whom SES names.

use std::collections::HashMap;
use std::mem;

use serde_json::{Map, Value};

use super::ses::{Recipient, SesEvent, address_of, as_list, list_key};
use super::{DecodeSettings, PayloadPolicy};
use crate::event::{Address, Detail, Event, EventKind};

/// The most that the payloads, or the shared details, of one event's rows may weigh together, in
/// bytes. An event names at most 50 recipients; one that names thousands must not make gigabytes.
const MAX_FAN_OUT: usize = 4 << 20;

type Object = Map<String, Value>;

impl SesEvent {
    /// The rows of this event, never none.
    ///
    /// Bounces, complaints, deliveries and delays have one row for each recipient of their own
    /// list. Where it names nobody, and for all other kinds, there is one row: of the mail's
    /// recipient if it went to exactly one, else of the message (empty recipient). Opens and
    /// clicks never say who.
    pub fn into_events(mut self, settings: &DecodeSettings) -> Vec<Event> {
        let rows = self.rows();
        let candidates = self.kind == EventKind::Complaint && rows.len() > 1;
        let detail = shared_detail(&mut self.detail, rows.len());
        let payloads = payloads(&mut self, &rows, settings.payload);
        let row = |(recipient, payload): (Recipient, Option<String>)| Event {
            message_id: self.message_id.clone(),
            log_uuid: self.log_uuid,
            kind: self.kind.clone(),
            occurred_at: self.occurred_at,
            time_source: self.time_source,
            candidate: candidates,
            detail: Detail {
                smtp_status: recipient.smtp_status.or_else(|| detail.smtp_status.clone()),
                diagnostic: recipient.diagnostic.or_else(|| detail.diagnostic.clone()),
                ..detail.clone()
            },
            recipient: recipient.address,
            payload,
            source: self.source.clone(),
        };
        rows.into_iter().zip(payloads).map(row).collect()
    }

    fn rows(&mut self) -> Vec<Recipient> {
        if self.named_by_kind && !self.recipients.is_empty() {
            return mem::take(&mut self.recipients);
        }
        let address = match self.destination.as_slice() {
            [only] => only.clone(),
            _ => Address::default(),
        };
        vec![Recipient { address, smtp_status: None, diagnostic: None }]
    }
}

/// What every row repeats, cut where the repetition would weigh too much.
fn shared_detail(detail: &mut Detail, rows: usize) -> Detail {
    let mut detail = mem::take(detail);
    let mut texts: Vec<&mut String> = detail.texts_mut().into_iter().flatten().collect();
    let weight: usize = texts.iter().map(|text| text.len()).sum();
    if weight.saturating_mul(rows) > MAX_FAN_OUT {
        let room = MAX_FAN_OUT / rows / texts.len();
        for text in &mut texts {
            text.truncate(text.floor_char_boundary(room));
        }
    }
    detail
}

/// One payload for each row, or for the first alone if all together would weigh too much.
fn payloads(event: &mut SesEvent, rows: &[Recipient], policy: PayloadPolicy) -> Vec<Option<String>> {
    let mut payloads = vec![None; rows.len()];
    let mut body = mem::take(&mut event.body);
    match policy {
        PayloadPolicy::None => return payloads,
        PayloadPolicy::Full => {}
        PayloadPolicy::Event => {
            if let Some(mail) = body.get_mut("mail").and_then(Value::as_object_mut) {
                mail.remove("headers");
                mail.remove("headersTruncated");
            }
        }
    }
    let names_others = rows.len() > 1 || event.destination.len() > 1;
    if !names_others || rows[0].address.is_empty() {
        payloads[0] = serde_json::to_string(&body).ok();
        return payloads;
    }
    let mut lists = take_lists(event, &mut body);
    let weight = serde_json::to_string(&body).map_or(usize::MAX, |text| text.len());
    let carried = if weight.saturating_mul(rows.len()) > MAX_FAN_OUT { 1 } else { rows.len() };
    for (payload, row) in payloads.iter_mut().zip(rows).take(carried) {
        for list in &mut lists {
            list.keep_only(&row.address, &mut body);
        }
        *payload = serde_json::to_string(&body).ok();
    }
    payloads
}

/// A list of addresses in a payload, taken out of it.
struct AddressList<'a> {
    path: Vec<&'a str>,
    entries: HashMap<Address, Vec<Value>>,
}

/// Takes out of the payload all that names recipients, so that each row gets back only its own.
fn take_lists<'a>(event: &'a SesEvent, body: &mut Object) -> Vec<AddressList<'a>> {
    let own = event.object_key.as_deref().zip(list_key(&event.kind));
    let own = own.map(|(object, list)| vec![object, list]);
    let common = ["to", "cc", "bcc"].map(|header| vec!["mail", "commonHeaders", header]);
    if let Some(Value::Array(headers)) = slot(body, &["mail", "headers"]) {
        headers.retain(|header| !names_recipients(header));
    }
    let paths = own.into_iter().chain([DESTINATION.to_vec()]).chain(common);
    paths.filter_map(|path| AddressList::take(path, body)).collect()
}

const DESTINATION: &[&str] = &["mail", "destination"];

impl<'a> AddressList<'a> {
    fn take(path: Vec<&'a str>, body: &mut Object) -> Option<Self> {
        let list = mem::take(slot(body, &path)?);
        let mut entries = HashMap::<_, Vec<_>>::new();
        for entry in as_list(&list).unwrap_or_default() {
            if let Some(address) = address_of(entry) {
                entries.entry(address).or_default().push(entry.clone());
            }
        }
        Some(Self { path, entries })
    }

    fn keep_only(&mut self, address: &Address, body: &mut Object) {
        let mut own = self.entries.remove(address).unwrap_or_default();
        if own.is_empty() && self.path == DESTINATION {
            // The recipient's server spelled the address in its own way.
            own.push(address.as_str().into());
        }
        if let Some(slot) = slot(body, &self.path) {
            *slot = Value::Array(own);
        }
    }
}

fn slot<'a>(body: &'a mut Object, path: &[&str]) -> Option<&'a mut Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(body.get_mut(*first)?, |value, key| value.get_mut(*key))
}

fn names_recipients(header: &Value) -> bool {
    let name = header.get("name").and_then(Value::as_str).unwrap_or_default();
    ["to", "cc", "bcc"].iter().any(|recipients| name.eq_ignore_ascii_case(recipients))
}
