//! A made-up application and a made-up SES: a seed tells a story, and the story knows the truth.
//!
//! The story is what the world does, in its order: the application writes log rows, SES publishes
//! notifications, and both are as untidy as in real life. The truth is what the database must hold
//! once all of it has been taken in, whatever the order, the repeats and the faults on the way.
//! It follows from what the story knows it tells; nothing here reads a body back.
//!
//! Everybody in it is made up, so unlike real mail it may be printed.

mod bodies;
mod cast;
pub(crate) mod dice;
mod junk;
mod life;
mod relays;
#[cfg(test)]
mod tests;
mod truth;

use std::{fmt, time::Duration};

use time::OffsetDateTime;
use uuid::Uuid;

use bodies::{Envelope, Path};
use dice::Dice;
use junk::{Noise, Poison};
pub use life::MARK;
use life::{Happening, Mail, What};
use relays::Gatherer;
pub use truth::{BounceClass, Facts, RowKey, Truth};

/// Everything that a story follows from. The same settings tell the same story, byte for byte.
#[derive(Clone, Debug)]
pub struct StorySettings {
    /// Another seed is another story.
    pub seed: u64,
    /// How many mails the application sends. Each is good for four messages or so.
    pub mails: usize,
    /// When the first mail is sent, to the millisecond. The last of its complaints comes five weeks later at most.
    pub start: OffsetDateTime,
    /// How long after one mail the next is sent, on average.
    pub gap: Duration,
    /// How untidy the world is.
    pub mess: Mess,
    /// How big the bodies are.
    pub profile: Profile,
}

/// How untidy the world is: shares from 0.0 to 1.0.
#[derive(Clone, Debug)]
pub struct Mess {
    /// Of the notifications: those that come again, as the same bytes or from a second destination.
    pub duplicates: f64,
    /// Of the notifications: those that come seconds to hours late.
    pub reordered: f64,
    /// Of the mails: those whose log row is written after their events.
    pub late_logs: f64,
    /// Of the mails: those that nobody ever writes a log row for.
    pub unknown_mails: f64,
    /// Of the mails: those whose log row has no SES id, but whose uuid SES has as a tag.
    pub linked_by_tag: f64,
    /// Of the mails: those with 2 to 50 recipients.
    pub several_recipients: f64,
    /// Of the delays: those that are reported again later, for the same recipients.
    pub second_delays: f64,
    /// Of the bounces, complaints and deliveries: those that come by the older identity feedback, too.
    pub identity_feedback: f64,
    /// Of the mails and bounces: those of a kind and of a type that SES does not document.
    pub novelties: f64,
    /// One more message that must be quarantined for this share of the notifications.
    pub poison: f64,
    /// One more message that must be ignored for this share of the notifications.
    pub noise: f64,
}

/// How big the bodies of the notifications are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// About 800 B: raw delivery, without the headers of the mail.
    Small,
    /// About 2.7 KB: every envelope, with the headers of the mail.
    Usual,
    /// So many bytes: raw delivery, without the headers of the mail, filled up with a tag. Below 600 it is cut down to
    /// what an event needs, which is 260 at the median.
    Sized(usize),
}

/// What happens in which order, and what must come of it.
///
/// It is kept as a plan of some 100 bytes per message; the bodies are written as they are asked for.
#[derive(Clone)]
pub struct Story {
    /// What the database must hold at the end.
    pub truth: Truth,
    profile: Profile,
    mails: Vec<Mail>,
    happenings: Vec<Happening>,
    beats: Vec<Beat>,
}

/// One thing that the world does.
#[derive(Clone, PartialEq)]
pub enum Step {
    /// The application writes its row.
    WriteLog(LogRow),
    /// A message with this body arrives in the queue.
    Publish(String),
}

/// A row of `email_logs`, as far as the application writes it.
#[derive(Clone, PartialEq)]
pub struct LogRow {
    /// Version 7, with the time of the mail.
    pub uuid: Uuid,
    /// The id that SES gave the mail, bare or in another spelling that senders store.
    pub aws_message_id: Option<String>,
    /// Who sent it, with or without a display name.
    pub sender: String,
    /// Everybody it is for, as the application wrote them.
    pub recipients: Vec<String>,
    /// The subject line.
    pub subject: String,
    /// The SES template, if it was made from one.
    pub template_name: Option<String>,
    /// The campaign, if it belongs to one.
    pub campaign_id: Option<String>,
    /// The SES configuration set.
    pub configuration_set: Option<String>,
    /// What else the application keeps with the mail: an object.
    pub tags: serde_json::Value,
}

/// A step before it is told. Mails and happenings are indices.
#[derive(Clone)]
enum Beat {
    WriteLog(u32),
    Notice(Notice),
    Batch { by: Gatherer, notices: Vec<Notice>, poison: Option<&'static Poison> },
    Poison { poison: &'static Poison, about: Notice },
    Noise { noise: &'static Noise, salt: u64 },
}

/// One happening on its way through one destination. The same notice makes the same bytes.
#[derive(Clone, Copy)]
struct Notice {
    happening: u32,
    envelope: Envelope,
    path: Path,
    /// Everything about the envelope that is random.
    salt: u64,
}

impl StorySettings {
    /// The usual mess and the usual size, a mail every second.
    pub fn new(seed: u64, mails: usize, start: OffsetDateTime) -> Self {
        Self { seed, mails, start, gap: Duration::from_secs(1), mess: Mess::default(), profile: Profile::Usual }
    }
}

impl Default for Mess {
    /// An ordinary week of a busy product, with the rare things often enough to be seen.
    fn default() -> Self {
        Self {
            duplicates: 0.05,
            reordered: 0.05,
            late_logs: 0.03,
            unknown_mails: 0.01,
            linked_by_tag: 0.15,
            several_recipients: 0.05,
            second_delays: 0.2,
            identity_feedback: 0.02,
            novelties: 0.01,
            poison: 0.006,
            noise: 0.004,
        }
    }
}

impl Mess {
    /// A tidy world: every mail has its row first, and every notification comes once and in time.
    pub fn none() -> Self {
        Self {
            duplicates: 0.0,
            reordered: 0.0,
            late_logs: 0.0,
            unknown_mails: 0.0,
            linked_by_tag: 0.0,
            several_recipients: 0.0,
            second_delays: 0.0,
            identity_feedback: 0.0,
            novelties: 0.0,
            poison: 0.0,
            noise: 0.0,
        }
    }
}

impl Story {
    /// Makes the story up.
    pub fn tell(settings: &StorySettings) -> Self {
        let mut dice = Dice::new(settings.seed);
        let (mails, happenings) = lives(&mut dice, settings);
        let beats = beats(&mut dice, settings, &mails, &happenings);
        Self { truth: Truth::of(&mails, &happenings, &beats), profile: settings.profile, mails, happenings, beats }
    }

    /// What the world does, in its order. Every call tells the same.
    pub fn steps(&self) -> impl ExactSizeIterator<Item = Step> {
        self.beats.iter().map(|beat| self.step(beat))
    }

    /// The same steps in another order, log rows anywhere between them. The truth stays the truth.
    pub fn shuffled(&self, seed: u64) -> Self {
        let mut story = self.clone();
        Dice::new(seed).shuffle(&mut story.beats);
        story
    }

    fn step(&self, beat: &Beat) -> Step {
        Step::Publish(match beat {
            Beat::WriteLog(mail) => return Step::WriteLog(self.mails[*mail as usize].log_row()),
            Beat::Notice(notice) => self.scene(notice).body(),
            Beat::Batch { by, notices, poison } => {
                let scenes: Vec<_> = notices.iter().map(|notice| self.scene(notice)).collect();
                by.body(&scenes, *poison)
            }
            Beat::Poison { poison, about } => poison.body(&self.scene(about)),
            Beat::Noise { noise, salt } => noise.body(*salt),
        })
    }

    fn scene(&self, notice: &Notice) -> bodies::Scene<'_> {
        let happening = &self.happenings[notice.happening as usize];
        bodies::Scene {
            mail: &self.mails[happening.mail as usize],
            happening,
            notice: *notice,
            with_headers: self.profile == Profile::Usual,
            size: match self.profile {
                Profile::Sized(bytes) => Some(bytes),
                Profile::Small | Profile::Usual => None,
            },
        }
    }
}

/// All mails, and everything that happens to them.
fn lives(dice: &mut Dice, settings: &StorySettings) -> (Vec<Mail>, Vec<Happening>) {
    let mut mails = Vec::with_capacity(settings.mails);
    let mut happenings = Vec::new();
    let mut now = truth::unix_ms(settings.start);
    let gap_ms = i64::try_from(settings.gap.as_millis()).unwrap_or(i64::MAX / 2).max(1);
    for mail in 0..u32::try_from(settings.mails).unwrap_or(u32::MAX) {
        let sent = Mail::new(dice, &settings.mess, settings.mails, now);
        let life = sent.life(dice, &settings.mess).into_iter();
        happenings.extend(life.map(|(at_ms, what)| Happening { mail, at_ms, what }));
        mails.push(sent);
        now += dice.between(1, 2 * gap_ms - 1);
    }
    (mails, happenings)
}

/// Puts everything into the order in which it reaches the queue and the database.
fn beats(dice: &mut Dice, settings: &StorySettings, mails: &[Mail], happenings: &[Happening]) -> Vec<Beat> {
    let mut beats = Vec::new();
    for (index, happening) in (0u32..).zip(happenings) {
        arrivals(dice, settings, index, happening, &mut beats);
    }
    beats.sort_by_key(|(at_ms, _)| *at_ms);
    if settings.profile == Profile::Usual {
        beats = gathered(dice, settings.mess.poison, beats);
    }

    let mut last_arrivals: Vec<i64> = mails.iter().map(|mail| mail.at_ms).collect();
    for (at_ms, beat) in &beats {
        for notice in beat.notices() {
            let mail = happenings[notice.happening as usize].mail;
            last_arrivals[mail as usize] = *at_ms;
        }
    }
    for (index, mail) in (0u32..).zip(mails).filter(|(_, mail)| mail.known) {
        // A row with the uuid alone can be written before the mail is sent, the id only after.
        let at_ms = if dice.chance(settings.mess.late_logs) {
            last_arrivals[index as usize] + dice.skewed(1_000, 10)
        } else if mail.tagged {
            mail.at_ms - dice.between(1, 30)
        } else {
            mail.at_ms + dice.between(1, 15)
        };
        beats.push((at_ms, Beat::WriteLog(index)));
    }
    beats.sort_by_key(|(at_ms, _)| *at_ms);
    beats.into_iter().map(|(_, beat)| beat).collect()
}

/// One happening: the notice of it, its repeats, and what else comes along.
fn arrivals(
    dice: &mut Dice,
    settings: &StorySettings,
    index: u32,
    happening: &Happening,
    beats: &mut Vec<(i64, Beat)>,
) {
    let mess = &settings.mess;
    let notice = |dice: &mut Dice, path| Notice {
        happening: index,
        envelope: Envelope::pick(dice, settings.profile, path),
        path,
        salt: dice.roll(),
    };
    let published = happening.at_ms + dice.between(20, 100);
    let first = notice(dice, Path::EventPublishing);
    let late = if dice.chance(mess.reordered) { dice.skewed(2_000, 12) } else { 0 };
    beats.push((published + late, Beat::Notice(first)));

    if dice.chance(mess.duplicates) {
        let times = if dice.chance(0.1) { dice.between(2, 7) } else { 1 };
        for _ in 0..times {
            if dice.chance(0.6) {
                let again = published + late + dice.between(500, 600_000);
                beats.push((again, Beat::Notice(first)));
            } else {
                let second = notice(dice, Path::EventPublishing);
                beats.push((published + dice.between(0, 2_000), Beat::Notice(second)));
            }
        }
    }
    let feeds_back = matches!(happening.what, What::Bounce { .. } | What::Complaint { .. } | What::Delivery { .. });
    if feeds_back && dice.chance(mess.identity_feedback) {
        let feedback = notice(dice, Path::IdentityFeedback);
        beats.push((published + dice.between(0, 1_500), Beat::Notice(feedback)));
    }
    if dice.chance(mess.poison) {
        let about = notice(dice, Path::EventPublishing);
        beats.push((published, Beat::Poison { poison: Poison::pick(dice), about }));
    }
    if dice.chance(mess.noise) {
        beats.push((published, Beat::Noise { noise: Noise::pick(dice), salt: dice.roll() }));
    }
}

/// Some destinations gather what comes in and pass on several notices in one body.
fn gathered(dice: &mut Dice, poison: f64, beats: Vec<(i64, Beat)>) -> Vec<(i64, Beat)> {
    let mut gathered = Vec::with_capacity(beats.len());
    let mut coming = beats.into_iter().peekable();
    while let Some((mut at_ms, beat)) = coming.next() {
        if !beat.can_be_batched() || !dice.chance(BATCHED) {
            gathered.push((at_ms, beat));
            continue;
        }
        let mut notices = beat.notices().to_vec();
        let latest = at_ms + BATCH_AGE_MS;
        for _ in 1..dice.between(2, 5) {
            let joins = |(at, beat): &(i64, Beat)| *at <= latest && beat.can_be_batched();
            let Some((at, beat)) = coming.next_if(joins) else {
                break;
            };
            at_ms = at;
            notices.extend(beat.notices());
        }
        let by = dice.pick_weighted(&GATHERERS, |(weight, _)| *weight).1;
        let poison = dice.chance(poison).then(|| Poison::pick_for_batch(dice));
        gathered.push((at_ms, Beat::Batch { by, notices, poison }));
    }
    gathered
}

/// Of the notices: those that open a batch.
const BATCHED: f64 = 0.02;

/// By whom, in a hundred.
const GATHERERS: [(u64, Gatherer); 4] =
    [(40, Gatherer::Pipe), (40, Gatherer::Lines), (12, Gatherer::Firehose), (8, Gatherer::Lambda)];

/// How long a batch waits for more.
const BATCH_AGE_MS: i64 = 60_000;

impl Beat {
    /// Only event publishing has destinations that gather.
    fn can_be_batched(&self) -> bool {
        matches!(self, Self::Notice(notice) if notice.path == Path::EventPublishing)
    }

    /// The notices in it that can be understood.
    fn notices(&self) -> &[Notice] {
        match self {
            Self::Notice(notice) => std::slice::from_ref(notice),
            Self::Batch { notices, .. } => notices,
            Self::WriteLog(_) | Self::Poison { .. } | Self::Noise { .. } => &[],
        }
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteLog(row) => row.fmt(f),
            Self::Publish(body) => write!(f, "Publish({} bytes)", body.len()),
        }
    }
}

impl fmt::Debug for LogRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogRow({})", self.uuid)
    }
}
