//! Which of the broker's addresses is next: from a random one on, in turn, and never first the one that was just lost. Pure but
//! for the dice.

use std::net::SocketAddr;

/// Remembers where the last connection led.
#[derive(Debug, Clone, Default)]
pub struct Turn {
    /// Index of the URI, and the address that its name stood for.
    last: Option<(usize, SocketAddr)>,
    /// How many addresses there were to choose from.
    known: usize,
    /// Connections that were lost since there was a stable one.
    lost: usize,
}

impl Turn {
    /// The order in which `uris` are tried: after the last one, or from a random one on.
    pub(super) fn uris(&self, uris: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self
            .last
            .map_or_else(|| fastrand::usize(..uris.max(1)), |(last, _)| last + 1);
        (0..uris).map(move |tried| (first + tried) % uris)
    }

    /// The addresses of the URI at `index` in random order, since a fleet spreads over the nodes behind a name; the last one, which
    /// was lost, at the end.
    pub(super) fn addresses(&self, index: usize, mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
        fastrand::shuffle(&mut addresses);
        let was_lost = |address: &SocketAddr| self.last == Some((index, *address));
        addresses.sort_by_key(was_lost);
        addresses
    }

    /// Notes that there is a connection to `address`, one of `known` in all.
    pub(super) fn connected(&mut self, index: usize, address: SocketAddr, known: usize) {
        self.last = Some((index, address));
        self.known = known;
    }

    /// Notes that the connection is lost, and tells whether another address may be tried at once: as often as there are others,
    /// so that what ends a connection everywhere is not tried without a pause.
    pub fn is_next_at_once(&mut self, was_stable: bool) -> bool {
        if was_stable {
            self.lost = 0;
        }
        self.lost += 1;
        if self.lost < self.known {
            return true;
        }
        self.lost = 0;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn every_uri_is_tried_once_from_a_random_one_on() {
        let mut firsts = [0; 3];
        for _ in 0..300 {
            let order: Vec<usize> = Turn::default().uris(3).collect();

            firsts[order[0]] += 1;
            assert_eq!(order, [order[0], (order[0] + 1) % 3, (order[0] + 2) % 3]);
        }
        assert!(firsts.iter().all(|times| *times > 0), "{firsts:?}");
        assert_eq!(Turn::default().uris(1).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn after_a_lost_one_the_next_is_tried_and_the_lost_one_last() {
        let mut turn = Turn::default();
        turn.connected(1, address(1), 3);

        assert_eq!(turn.uris(3).collect::<Vec<_>>(), [2, 0, 1]);
        for _ in 0..20 {
            let order = turn.addresses(1, vec![address(1), address(2), address(3)]);
            assert_eq!(order[2], address(1));
        }
        let others: Vec<_> = (0..100)
            .map(|_| turn.addresses(0, vec![address(1), address(2)])[0])
            .collect();
        assert!(others.contains(&address(1)), "lost was the address of another URI");
    }

    #[test]
    fn others_are_tried_at_once_as_often_as_there_are_others() {
        let mut turn = Turn::default();
        turn.connected(0, address(1), 3);

        assert_eq!(
            [0; 5].map(|_| turn.is_next_at_once(false)),
            [true, true, false, true, true]
        );
        assert!(turn.is_next_at_once(true));
        let mut alone = Turn::default();
        alone.connected(0, address(1), 1);
        assert!(!alone.is_next_at_once(true));
    }
}
