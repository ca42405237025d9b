//! Which columns of a Parquet file can be sent, by their types, and which are an index of pandas.

use arrow_schema::{DataType, SchemaRef};
use parquet::file::metadata::KeyValue;

use super::columns::{Chosen, column};
use super::parquet::ParquetFault;
use super::parquet_values::{is_element, is_key};

/// The columns that pandas has made of an index, and read back would be none.
pub fn index_columns(pairs: Option<&Vec<KeyValue>>) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Pandas {
        /// Names of columns, and objects for an index that is no column.
        index_columns: Vec<serde_json::Value>,
    }
    let pandas = pairs.into_iter().flatten().find(|pair| pair.key == "pandas");
    let text = pandas.and_then(|pair| pair.value.as_deref()).unwrap_or_default();
    let pandas: Option<Pandas> = serde_json::from_str(text).ok();
    let columns = pandas.map(|pandas| pandas.index_columns).unwrap_or_default();
    columns
        .iter()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

/// True of a column that is an index of pandas.
pub fn is_index(name: &str, index: &[String]) -> bool {
    let level = name
        .strip_prefix("__index_level_")
        .and_then(|rest| rest.strip_suffix("__"));
    let is_level = level.is_some_and(|level| !level.is_empty() && level.bytes().all(|digit| digit.is_ascii_digit()));
    is_level || index.iter().any(|known| known == name)
}

/// Refuses what no row could be made of, before anything is read. `declared` is what Arrow noted: Parquet itself knows no
/// durations, which would pass for integers.
///
/// # Errors
/// A column is of a type that cannot be sent, or be a key.
pub fn check(schema: &SchemaRef, declared: Option<SchemaRef>, chosen: &Chosen) -> Result<(), ParquetFault> {
    let duration = |place: usize| {
        let field = declared.as_ref()?.fields().get(place)?;
        holds_duration(field.data_type()).then(|| field.data_type().to_string())
    };
    let column = |place: usize| column(place, Some(schema.field(place).name()));
    for &place in &chosen.columns {
        let came = schema.field(place).data_type();
        if let Some(came) = duration(place).or_else(|| (!is_element(came)).then(|| came.to_string())) {
            let column = column(place);
            return Err(ParquetFault::Type { column, came });
        }
    }
    for &place in &chosen.keys {
        let came = schema.field(place).data_type();
        if let Some(came) = duration(place).or_else(|| (!is_key(came)).then(|| came.to_string())) {
            let column = column(place);
            return Err(ParquetFault::KeyType { column, came });
        }
    }
    Ok(())
}

fn holds_duration(data_type: &DataType) -> bool {
    match data_type {
        DataType::Duration(_) => true,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            holds_duration(item.data_type())
        }
        DataType::Dictionary(_, value) => holds_duration(value),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_of_pandas_is_known_by_its_name_or_the_metadata() {
        let metadata = r#"{"index_columns": ["id", {"kind": "range"}], "columns": []}"#;
        let pairs = vec![
            KeyValue::new("ARROW:schema".to_owned(), None),
            KeyValue::new("pandas".to_owned(), metadata.to_owned()),
        ];

        let index = index_columns(Some(&pairs));

        assert_eq!(index, ["id"]);
        for (name, expected) in [
            ("id", true),
            ("__index_level_0__", true),
            ("__index_level_12__", true),
            ("__index_level___", false),
            ("a", false),
        ] {
            assert_eq!(is_index(name, &index), expected, "{name}");
        }
        assert!(index_columns(None).is_empty());
    }
}
