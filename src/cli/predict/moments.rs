//! Dates and times as ISO 8601 writes them, without more digits than they have.
//!
//! # Source
//! Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.

/// A day, counted from 1970-01-01.
pub fn date(days: i64) -> String {
    let (year, month, day) = civil(days);
    match year {
        0..=9_999 => format!("{year:04}-{month:02}-{day:02}"),
        _ => format!("{year:+05}-{month:02}-{day:02}"),
    }
}

/// A time since midnight, in units of which `a_second` make up a second.
pub fn time_of_day(count: i64, a_second: i64) -> String {
    let (seconds, part) = (count.div_euclid(a_second), count.rem_euclid(a_second));
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let whole = format!("{hour:02}:{minute:02}:{second:02}");
    if part == 0 {
        return whole;
    }
    let width = a_second.ilog10() as usize;
    let digits = format!("{part:0width$}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

/// A moment since 1970-01-01; `is_utc` where it is one of the world and not of a clock on a wall.
pub fn moment(count: i64, a_second: i64, is_utc: bool) -> String {
    let a_day = 86_400 * a_second;
    let zone = if is_utc { "Z" } else { "" };
    let time = time_of_day(count.rem_euclid(a_day), a_second);
    format!("{}T{time}{zone}", date(count.div_euclid(a_day)))
}

fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates_before_and_after_1970() {
        for (days, text) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (11_016, "2000-02-29"),
            (19_783, "2024-03-01"),
            (-719_528, "0000-01-01"),
            (2_932_897, "+10000-01-01"),
            (-719_529, "-0001-12-31"),
        ] {
            assert_eq!(date(days), text);
        }
    }

    #[test]
    fn times_have_the_digits_that_they_need() {
        assert_eq!(time_of_day(0, 1), "00:00:00");
        assert_eq!(time_of_day(86_399_999, 1_000), "23:59:59.999");
        assert_eq!(time_of_day(1_500_000, 1_000_000), "00:00:01.5");
        assert_eq!(moment(-1, 1_000_000_000, true), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(moment(1_709_210_096, 1, false), "2024-02-29T12:34:56");
    }
}
