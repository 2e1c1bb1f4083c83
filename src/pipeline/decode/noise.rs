//! What arrives on the same topics and queues and is not about a sent mail.
//!
//! Everything here is recognised by a mark of its own. What is not recognised is rejected.

use super::IgnoreReason;
use super::json::{Object, Value};
use super::ses::{is_event, kinds, looks_like_ses};
use crate::event::EventKind;

/// SES publishes this, as plain text, whenever an event destination is created.
pub(super) fn is_validation(text: &str) -> bool {
    text.trim_start().starts_with("Successfully validated SNS topic for Amazon SES")
}

/// Another service's message, or one of SES that is not about a sent mail.
/// `published`: it was published to an SNS topic, so that it may be anybody's.
pub(super) fn object(map: &Object<'_>, published: bool) -> Option<IgnoreReason> {
    let mail = map.get("mail");
    if mail.and_then(|mail| mail.get("messageId")).and_then(Value::as_str) == Some("AMAZON_SES_SETUP_NOTIFICATION") {
        return Some(IgnoreReason::SetupNotification);
    }
    for kind in kinds(map) {
        let EventKind::Other(name) = kind else {
            continue;
        };
        match name.as_str() {
            "amazon_sns_subscription_succeeded" => {
                return Some(IgnoreReason::SubscriptionSucceeded);
            }
            "received" => return Some(IgnoreReason::ReceivedMail),
            _ if mail.is_some() => {}
            name if is_cloudtrail(name, map) => return Some(IgnoreReason::CloudTrail),
            name if is_text_message(name, map) => return Some(IgnoreReason::Sms),
            _ => {}
        }
    }
    if looks_like_ses(map) {
        return None;
    }
    other_service(map).or((published && !map.is_empty()).then_some(IgnoreReason::Foreign))
}

/// An EventBridge event that is not about a sent mail. `unwraps`: its detail is a further wrapper.
pub(super) fn eventbridge(map: &Object<'_>, unwraps: bool) -> Option<IgnoreReason> {
    let text = |key| map.get(key).and_then(Value::as_str).unwrap_or_default();
    let detail = map.get("detail").and_then(Value::as_object);
    let detail_type = text("detail-type");
    if detail_type.ends_with("via CloudTrail") {
        return Some(IgnoreReason::CloudTrail);
    }
    match text("source") {
        _ if unwraps || detail.is_some_and(is_event) => None,
        // All that is about mails is called "Email …": it must be understood.
        "aws.ses" if detail_type.is_empty() || detail_type.starts_with("Email ") => None,
        "aws.ses" if detail.is_some_and(looks_like_ses) => None,
        "aws.ses" => Some(IgnoreReason::SesAccount),
        "" => None,
        _ => Some(IgnoreReason::Foreign),
    }
}

/// `AwsApiCall`, `AwsServiceEvent`, … under the very key that holds the kind of an SES event.
fn is_cloudtrail(name: &str, map: &Object<'_>) -> bool {
    name.starts_with("aws_") && ["eventSource", "eventName", "eventVersion"].iter().any(|key| map.has(key))
}

/// `TEXT_DELIVERED`, `VOICE_COMPLETED`, … under the very key that holds the kind of an SES event.
fn is_text_message(name: &str, map: &Object<'_>) -> bool {
    ["text_", "voice_", "media_"].iter().any(|prefix| name.starts_with(prefix))
        || ["originationPhoneNumber", "destinationPhoneNumber", "isoCountryCode"].iter().any(|key| map.has(key))
}

fn other_service(map: &Object<'_>) -> Option<IgnoreReason> {
    let text = |key| map.get(key).and_then(Value::as_str);
    if text("Event") == Some("s3:TestEvent") {
        return Some(IgnoreReason::S3Test);
    }
    if text("event_type").is_some() {
        return Some(IgnoreReason::Pinpoint);
    }
    match text("eventSource").or(text("EventSource")) {
        // The Lambda event of an inbound rule.
        Some("aws:ses") => return Some(IgnoreReason::ReceivedMail),
        Some(source) if source.starts_with("aws:") => return Some(IgnoreReason::Foreign),
        _ => {}
    }
    map.has("AlarmName").then_some(IgnoreReason::Foreign)
}
