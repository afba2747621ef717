//! Durations and dates for people.

/// Returns a duration of so many seconds in its two largest units: `3 h 12 min`.
pub(super) fn span(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let whole = seconds.round() as u64;
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let first = units.iter().position(|&(unit, _)| whole >= unit).unwrap_or(3);
    let mut left = whole;
    let parts = units[first..].iter().take(2).map(|&(unit, name)| {
        let count = left / unit;
        left %= unit;
        (count, name)
    });
    let parts = parts.filter(|&(count, _)| count > 0).map(|(count, name)| format!("{count} {name}"));
    parts.collect::<Vec<_>>().join(" ")
}

/// Returns the date of a time since 1970-01-01 UTC: `2026-03-01 17:05:09 UTC`.
pub(super) fn date(seconds: f64) -> String {
    let whole = seconds as u64;
    let (days, clock) = (whole / 86_400, whole % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Returns year, month and day of so many days after 1970-01-01.
///
/// H. Hinnant, chrono-compatible low-level date algorithms, `civil_from_days`: years begin in March, so that the day of a
/// leap year is the last one.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (400 * era + year + u64::from(month <= 2), month, day)
}
