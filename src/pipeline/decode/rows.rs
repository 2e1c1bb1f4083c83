//! Spreads an event over its recipients: one row for each whom SES names.

use std::collections::HashMap;
use std::mem;

use super::PayloadPolicy;
use super::json::{Object, Value};
use super::ses::{Recipient, SesEvent, address_of, as_list, list_key, own_object};
use crate::event::{Address, Detail, Event, EventKind};

/// The most that the payloads, or the shared details, of one event's rows may weigh together, in
/// bytes. An event names at most 50 recipients; one that names thousands must not make gigabytes.
const MAX_FAN_OUT: usize = 4 << 20;

impl SesEvent {
    /// The rows of this event, never none.
    ///
    /// Bounces, complaints, deliveries and delays have one row for each recipient of their own
    /// list. Where it names nobody, and for all other kinds, there is one row: of the mail's
    /// recipient if it went to exactly one, else of the message (empty recipient). Opens and
    /// clicks never say who.
    pub fn into_events(mut self) -> Vec<Event> {
        let payloads = mem::take(&mut self.payloads);
        let rows = if self.has_own_rows() {
            mem::take(&mut self.recipients)
        } else {
            vec![Recipient { address: self.whole_mail(), smtp_status: None, diagnostic: None }]
        };
        let candidates = self.kind == EventKind::Complaint && rows.len() > 1;
        let detail = shared_detail(&mut self.detail, rows.len());
        let row = |(recipient, payload): (Recipient, Option<String>)| Event {
            message_id: self.message_id.clone(),
            log_uuid: self.log_uuid,
            kind: self.kind.clone(),
            occurred_at: self.occurred_at,
            time_source: self.time_source,
            mailed_at: self.mailed_at,
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

    /// How many rows it has.
    pub(super) fn row_count(&self) -> usize {
        if self.has_own_rows() { self.recipients.len() } else { 1 }
    }

    /// It has a row for each of its recipients, not one for the whole mail.
    fn has_own_rows(&self) -> bool {
        self.named_by_kind && !self.recipients.is_empty()
    }

    /// Whom the one row of the whole mail is of: its only recipient, or nobody.
    fn whole_mail(&self) -> Address {
        match self.destination.as_slice() {
            [only] => only.clone(),
            _ => Address::default(),
        }
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
pub(super) fn payloads(event: &SesEvent, mut body: Object<'_>, policy: PayloadPolicy) -> Vec<Option<String>> {
    let whole_mail = [event.whole_mail()];
    let rows: Vec<&Address> = match event.has_own_rows() {
        true => event.recipients.iter().map(|recipient| &recipient.address).collect(),
        false => whole_mail.iter().collect(),
    };
    let mut payloads = vec![None; rows.len()];
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
    if !names_others || rows[0].is_empty() {
        payloads[0] = Some(body.to_text());
        return payloads;
    }
    let mut lists = take_lists(event, &mut body);
    let carried = if body.to_text().len().saturating_mul(rows.len()) > MAX_FAN_OUT { 1 } else { rows.len() };
    for (payload, address) in payloads.iter_mut().zip(rows).take(carried) {
        for list in &mut lists {
            list.keep_only(address, &mut body);
        }
        *payload = Some(body.to_text());
    }
    payloads
}

/// A list of addresses in a payload, taken out of it.
struct AddressList<'a> {
    path: Vec<String>,
    entries: HashMap<Address, Vec<Value<'a>>>,
}

/// Takes out of the payload all that names recipients, so that each row gets back only its own.
fn take_lists<'a>(event: &SesEvent, body: &mut Object<'a>) -> Vec<AddressList<'a>> {
    let own = own_object(&event.kind, body).map(|(key, _)| key.to_owned()).zip(list_key(&event.kind));
    let own = own.map(|(object, list)| vec![object, list.to_owned()]);
    let common = ["to", "cc", "bcc"].map(|header| ["mail", "commonHeaders", header].map(str::to_owned).to_vec());
    if let Some(Value::Array(headers)) = slot(body, &["mail", "headers"]) {
        headers.retain(|header| !names_recipients(header));
    }
    let paths = own.into_iter().chain([DESTINATION.map(str::to_owned).to_vec()]).chain(common);
    paths.filter_map(|path| AddressList::take(path, body)).collect()
}

const DESTINATION: [&str; 2] = ["mail", "destination"];

impl<'a> AddressList<'a> {
    fn take(path: Vec<String>, body: &mut Object<'a>) -> Option<Self> {
        let list = mem::take(slot(body, &path)?);
        let mut entries = HashMap::<_, Vec<_>>::new();
        for entry in as_list(&list).unwrap_or_default() {
            if let Some(address) = address_of(entry) {
                entries.entry(address).or_default().push(entry.clone());
            }
        }
        Some(Self { path, entries })
    }

    fn keep_only(&mut self, address: &Address, body: &mut Object<'a>) {
        let mut own = self.entries.remove(address).unwrap_or_default();
        if own.is_empty() && self.path == DESTINATION {
            // The recipient's server spelled the address in its own way.
            own.push(Value::String(address.as_str().to_owned().into()));
        }
        if let Some(slot) = slot(body, &self.path) {
            *slot = Value::Array(own);
        }
    }
}

fn slot<'v, 'a>(body: &'v mut Object<'a>, path: &[impl AsRef<str>]) -> Option<&'v mut Value<'a>> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(body.get_mut(first.as_ref())?, |value, key| value.as_object_mut()?.get_mut(key.as_ref()))
}

fn names_recipients(header: &Value<'_>) -> bool {
    let name = header.get("name").and_then(Value::as_str).unwrap_or_default();
    ["to", "cc", "bcc"].iter().any(|recipients| name.eq_ignore_ascii_case(recipients))
}
