//! Reads Prometheus text.

/// One scrape of `/metrics`.
pub struct Metrics {
    text: String,
}

impl Metrics {
    pub fn new(text: String) -> Self {
        Self { text }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Sum over all series of the metric `name`; `None` if it has none.
    pub fn sum(&self, name: &str) -> Option<f64> {
        let values: Vec<f64> = self
            .text
            .lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with(['{', ' ']))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// Mean of the histogram `name`.
    pub fn mean(&self, name: &str) -> Option<f64> {
        Some(self.sum(&format!("{name}_sum"))? / self.sum(&format!("{name}_count"))?)
    }
}
