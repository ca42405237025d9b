//! Which permission the broker misses in us. Pure.
//!
//! RabbitMQ has three for each user on each virtual host, patterns for names: to configure, to write, to read. Its refusal
//! names user, virtual host and thing; older versions leave out the permission, which follows from what was asked.

use std::fmt;

/// What the broker was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    DeclareExchange,
    DeclareQueue,
    Bind,
    Consume,
    Publish,
}

/// A permission that the broker's user does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    permission: &'static str,
    /// Such as `queue 'inferq.digits'`.
    thing: String,
    vhost: String,
    user: String,
}

impl Lacking {
    /// Reads a refusal; `None` if it is not worded as RabbitMQ does.
    ///
    /// # Source
    /// `rabbit_access_control:check_resource_access`, in RabbitMQ 3.10 "access to THING in vhost 'V' refused for user 'U'",
    /// in 4 with the permission before "access".
    pub fn of(said: &str, act: Act) -> Option<Self> {
        let (before, rest) = said.split_once("access to ")?;
        let (thing, rest) = rest.split_once(" in vhost ")?;
        let (vhost, user) = rest.split_once(" refused for user ")?;
        let word = before.split_whitespace().last();
        let named = NAMES.into_iter().find(|name| word == Some(*name));
        Some(Self {
            permission: named.unwrap_or_else(|| permission(act, thing)),
            thing: thing.to_owned(),
            vhost: unquoted(vhost).to_owned(),
            user: unquoted(user).to_owned(),
        })
    }

    /// Whether the broker left open which of two it is.
    pub fn is_ambiguous(&self) -> bool {
        self.permission == EITHER
    }

    /// Decides it.
    pub fn decide(&mut self, configure: bool) {
        self.permission = if configure { CONFIGURE } else { READ };
    }
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            permission,
            thing,
            vhost,
            user,
        } = self;
        write!(
            f,
            "user `{user}` lacks the permission `{permission}` on {thing} in virtual host `{vhost}`; give it with \
             `rabbitmqctl set_permissions -p {vhost} {user} CONFIGURE WRITE READ` and the patterns under \"Permissions\" in the \
             README"
        )
    }
}

/// What is asked of a user for an act, by the thing that it touches.
///
/// # Source
/// RabbitMQ documentation, "Access Control", table "How Authorisation Works".
fn permission(act: Act, thing: &str) -> &'static str {
    let is_queue = thing.starts_with("queue");
    match act {
        Act::DeclareExchange => CONFIGURE,
        Act::DeclareQueue if is_queue => EITHER,
        // Its dead letter exchange.
        Act::DeclareQueue => WRITE,
        Act::Bind if is_queue => WRITE,
        Act::Bind | Act::Consume => READ,
        Act::Publish => WRITE,
    }
}

fn unquoted(text: &str) -> &str {
    text.trim_matches(|c: char| c == '\'' || c == '.' || c.is_whitespace())
}

const CONFIGURE: &str = "configure";
const WRITE: &str = "write";
const READ: &str = "read";
const NAMES: [&str; 3] = [CONFIGURE, WRITE, READ];
/// A queue with a dead letter exchange must also be readable by whoever makes it.
const EITHER: &str = "configure or read";

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking(said: &str, act: Act) -> String {
        Lacking::of(said, act).unwrap().to_string()
    }

    #[test]
    fn what_the_broker_leaves_out_follows_from_what_was_asked() {
        const QUEUE: &str = "ACCESS_REFUSED - access to queue 'inferq.m' in vhost 'v' refused for user 'u'";
        const EXCHANGE: &str = "ACCESS_REFUSED - access to exchange 'inferq' in vhost 'v' refused for user 'u'";
        for (said, act, permission) in [
            (QUEUE, Act::DeclareQueue, "configure or read"),
            (EXCHANGE, Act::DeclareQueue, "write"),
            (EXCHANGE, Act::DeclareExchange, "configure"),
            (QUEUE, Act::Bind, "write"),
            (EXCHANGE, Act::Bind, "read"),
            (QUEUE, Act::Consume, "read"),
            (EXCHANGE, Act::Publish, "write"),
        ] {
            let thing = if said == QUEUE {
                "queue 'inferq.m'"
            } else {
                "exchange 'inferq'"
            };
            let sentence = lacking(said, act);

            let expected = format!("user `u` lacks the permission `{permission}` on {thing} in virtual host `v`; ");
            assert!(sentence.starts_with(&expected), "{sentence}");
            assert!(sentence.contains("rabbitmqctl set_permissions -p v u "), "{sentence}");
        }
    }

    #[test]
    fn what_the_broker_names_is_believed() {
        let said = "ACCESS_REFUSED - read access to queue 'inferq.m' in vhost '/' refused for user 'u'";

        let sentence = lacking(said, Act::DeclareQueue);

        assert!(
            sentence.contains("permission `read` on queue 'inferq.m' in virtual host `/`"),
            "{sentence}"
        );
    }

    #[test]
    fn another_wording_is_left_as_it_is() {
        assert_eq!(Lacking::of("ACCESS_REFUSED - not today", Act::Consume), None);
        assert_eq!(Lacking::of("", Act::Consume), None);
    }

    #[test]
    fn a_second_question_decides_between_two() {
        let said = "access to queue 'q' in vhost 'v' refused for user 'u'";
        for (configure, permission) in [(true, "`configure`"), (false, "`read`")] {
            let mut lacking = Lacking::of(said, Act::DeclareQueue).unwrap();
            assert!(lacking.is_ambiguous());

            lacking.decide(configure);

            assert!(!lacking.is_ambiguous());
            assert!(lacking.to_string().contains(permission), "{lacking}");
        }
    }
}
